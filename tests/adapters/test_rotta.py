import pytest
import torch
from torch import nn

from driftline.adapters import RoTTA
from driftline.adapters.memory import BalancedMemory
from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.stream.seeds import generator
from tests.adapters.recorded import LOGITS, Case, Recorded
from tests.golden import golden_names

VIEWS = {"identity": lambda x, random: x, "hflip": lambda x, random: x.flip(3)}
X = torch.rand(12, 3, 8, 8, generator=generator(1))


@pytest.mark.parametrize("name", golden_names("adapters", "rotta_*"))
def test_recorded(name):
    case = Case(name)
    given = case.hparams
    adapter = RoTTA(
        case.model(),
        optimizer=case.step(),
        capacity=given["memory_size"],
        update_every=given["update_frequency"],
        augmentation=VIEWS[given["augmentation"]],
        **{name: given[name] for name in ("alpha", "nu", "lambda_t", "lambda_u")},
    )
    case.play(adapter)
    case.compare(adapter.model)
    case.compare(adapter.teacher, "teacher/")
    wanted = case.part("memory/")
    images, labels, uncertainties, ages = adapter.memory.by_class()
    assert torch.equal(images, wanted["images"])
    assert torch.equal(labels, wanted["label"]) and torch.equal(ages, wanted["age"])
    tolerance = LOGITS[case.dtype]
    torch.testing.assert_close(uncertainties, wanted["uncertainty"].double(), rtol=0, atol=tolerance)


def test_the_memory_stays_balanced_when_one_class_floods_it():
    memory = BalancedMemory(10, 5)
    for number in range(40):
        memory.add(torch.zeros(1), 0 if number % 4 else number // 4 % 5, 1 / (number + 1))
    assert torch.bincount(memory.label[: memory.size], minlength=5).tolist() == [2, 2, 2, 2, 2]


def test_a_memory_of_another_size_is_refused():
    with pytest.raises(CheckpointError, match="places"):
        BalancedMemory(4, 3).load_state_dict(BalancedMemory(5, 3).state_dict())


def test_one_image_at_a_time_learns_as_from_batches():
    single, batch = (RoTTA(Recorded(), update_every=4, lr=0.01) for _ in range(2))
    batch.model.load_state_dict(single.model.state_dict())
    for adapter in (single, batch):
        adapter.teacher.load_state_dict(single.model.state_dict())
    for x in X:
        single.adapt(x[None])
    for part in X.split(4):
        batch.adapt(part)
    # Batches end where updates are due, so that predictions come from the same teachers.
    for one, other in zip(single.model.parameters(), batch.model.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_nan_activations_change_nothing():
    for broken in ("model", "teacher"):
        adapter = RoTTA(Recorded(), update_every=100)
        adapter.adapt(X)
        adapter.update_every = 1
        oldest = int(adapter.memory.age.max())
        with torch.no_grad():
            getattr(adapter, broken).fc.bias[0] = float("nan")
        parts = (adapter.model, adapter.teacher)
        before = [t.clone() for part in parts for t in part.state_dict().values()]
        with pytest.raises(InputError, match="NaN"):
            adapter.adapt(X[:1])
        after = [t for part in parts for t in part.state_dict().values()]
        assert all(torch.equal(p.nan_to_num(), q.nan_to_num()) for p, q in zip(before, after))
        assert not adapter.optimizer.state and adapter.seen == len(X)
        assert int(adapter.memory.age.max()) == oldest


def test_a_model_that_rotta_cannot_use_is_refused():
    with pytest.raises(ConfigError, match="no batch normalisation"):
        RoTTA(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)))
    with pytest.raises(ConfigError, match="keeps none"):
        RoTTA(nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)))


@pytest.mark.parametrize(
    "settings",
    [{"alpha": 1.5}, {"nu": -1.0}, {"capacity": 0}, {"update_every": 0}, {"lambda_t": -1.0}, {"classes": 1}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        RoTTA(Recorded(), **settings)
