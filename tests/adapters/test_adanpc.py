import pytest
import torch
from torch import nn

from driftline.adapters import AdaNPC
from driftline.adapters.feature_memory import FeatureMemory
from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.stream.dataset import Dataset
from tests.adapters.recorded import LOGITS, Case, Recorded
from tests.golden import golden_names

X = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
SOURCE = (torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(40) % 10)


@pytest.mark.parametrize("name", golden_names("adapters", "adanpc_*"))
def test_recorded(name):
    case = Case(name)
    arrays, hparams = case.arrays, case.hparams
    single = hparams["confidence"].endswith("(single)")
    adapter = AdaNPC(
        case.model(),
        (arrays["source_x"], arrays["source_labels"]),
        **{key: hparams[key] for key in ("k", "temperature", "beta")},
        eps_ball=hparams["eps_ball"] if hparams["eps_ball"] <= 1 else None,
        variant="paper" if single else "released",
    )
    if single:
        # The recorded memory has the random row, which only the released variant has by itself.
        adapter.memory.add(arrays["init_row"], torch.tensor([0]))
    else:
        adapter.memory.features[0] = arrays["init_row"]
    sizes = []
    case.play(adapter, to=lambda scores: sizes.append(adapter.memory.size) or scores.exp())
    assert sizes == arrays["extra/memory_size"].tolist()
    new = int(arrays["extra/stored"].sum())
    rows = slice(adapter.memory.size - new, adapter.memory.size)
    wanted = slice(len(arrays["extra/memory"]) - new, None)
    assert torch.equal(adapter.memory.labels[rows], arrays["extra/memory_label"][wanted].long())
    torch.testing.assert_close(
        adapter.memory.features[rows], arrays["extra/memory"][wanted], rtol=0, atol=LOGITS[case.dtype]
    )


def test_a_dataset_is_a_source_too():
    model = Recorded()
    data = Dataset(*SOURCE)
    assert torch.equal(AdaNPC(model, data).adapt(X), AdaNPC(model, SOURCE).adapt(X))


def test_each_sample_has_its_own_ball_by_the_paper():
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
    source = (torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), torch.tensor([0, 1, 1]))
    x = torch.tensor([[1.0, 0.01], [-1.0, 0.2]])
    near = AdaNPC(model, source, k=3, eps_ball=0.9, temperature=1.0).predict(x).exp()
    assert near[0, 0] > 0.99 and near[1, 0] < 0.5
    whole = AdaNPC(model, source, k=3, eps_ball=0.9, temperature=1.0, variant="released").predict(x).exp()
    assert whole[0, 0] < 0.9


@pytest.mark.parametrize("eviction", ["oldest", "reservoir", "balanced"])
def test_a_bounded_memory_keeps_the_source_and_its_size(eviction):
    adapter = AdaNPC(Recorded(), SOURCE, capacity=15, eviction=eviction)
    source = adapter.memory.features[:40].clone()
    for _ in range(6):
        adapter.adapt(X)
    assert adapter.memory.size == len(adapter.memory.features) == 55
    assert torch.equal(source, adapter.memory.features[:40])


def numbered(eviction, labels, capacity):
    """The numbers of those that remain, of samples that come with these labels."""
    memory = FeatureMemory(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long), 3, capacity, eviction)
    numbers = torch.arange(len(labels), dtype=torch.float)[:, None]
    for some, their in zip(numbers.split(3), torch.tensor(labels).split(3)):
        memory.add(some, their)
    return sorted(memory.features[1 : memory.size, 0].int().tolist())


def test_the_oldest_go_first():
    assert numbered("oldest", [0] * 10, 4) == [6, 7, 8, 9]
    assert numbered("oldest", [0] * 3, 2) == [1, 2]


def test_the_balanced_memory_keeps_rare_classes():
    assert numbered("balanced", [1, 0, 0, 0, 0, 0, 0, 2, 0, 0], 4) == [0, 7, 8, 9]


def test_the_reservoir_keeps_early_and_late_samples_alike():
    kept = torch.zeros(200)
    for seed in range(60):
        memory = FeatureMemory(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long), 3, 50, "reservoir", seed)
        numbers = torch.arange(200, dtype=torch.float)[:, None]
        for some in numbers.split(7):
            memory.add(some, torch.zeros(len(some), dtype=torch.long))
        kept[memory.features[1:, 0].long()] += 1
    # A quarter each; 50 samples of 60 draws each: a mean's standard deviation is 0.008.
    assert all(abs(float(part.mean()) / 60 - 0.25) < 0.04 for part in kept.split(50))


def test_unbounded_memory_keeps_everything_in_order():
    memory = FeatureMemory(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), 2)
    numbers = torch.arange(1000, dtype=torch.float)[:, None]
    for some in numbers.split(7):
        memory.add(some, torch.ones(len(some), dtype=torch.long))
    assert torch.equal(memory.features[2 : memory.size], numbers) and memory.size == 1002


def test_a_state_of_another_kind_of_memory_is_refused():
    model = Recorded()
    bounded, other = AdaNPC(model, SOURCE, capacity=5), AdaNPC(model, SOURCE, capacity=6)
    with pytest.raises(CheckpointError, match="memory"):
        bounded.load_state_dict(other.state_dict())


def test_nan_activations_change_nothing():
    adapter = AdaNPC(Recorded(), SOURCE)
    with torch.no_grad():
        adapter.model.conv1.weight[0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        adapter.adapt(X)
    assert adapter.memory.size == 40


def test_a_model_without_a_classifier_is_refused():
    with pytest.raises(ConfigError, match="classifier="):
        AdaNPC(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192)), SOURCE)
    with pytest.raises(InputError, match="classifier="):
        AdaNPC(nn.Sequential(nn.Linear(4, 3), nn.Softplus()), (torch.randn(6, 4), torch.arange(6) % 3)).adapt(
            torch.randn(5, 4)
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"k": 0},
        {"temperature": 0.0},
        {"beta": -1.0},
        {"eps_ball": float("nan")},
        {"variant": "fast"},
        {"capacity": 0},
        {"eviction": "youngest"},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        AdaNPC(Recorded(), SOURCE, **settings)


@pytest.mark.parametrize("source", [(X, None), (X, torch.arange(12)), (X, torch.arange(5)), (X, torch.rand(12))])
def test_a_source_without_usable_labels_is_refused(source):
    with pytest.raises(ConfigError, match="source"):
        AdaNPC(Recorded(), source)
