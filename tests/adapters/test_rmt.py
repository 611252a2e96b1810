import pytest
import torch

from driftline import Dataset
from driftline.adapters.rmt import RMT
from driftline.errors import ConfigError, InputError
from driftline.stream.seeds import generator
from tests.adapters.recorded import STATE, Case, Recorded
from tests.golden import golden_names

X = torch.rand(6, 3, 8, 8, generator=generator(1))
SOURCE = (torch.rand(40, 3, 8, 8, generator=generator(2)), torch.arange(40) % 10)


@pytest.mark.parametrize("name", golden_names("adapters", "rmt_*"))
def test_recorded(name):
    case = Case(name)
    given = case.hparams

    class Replayed(RMT):
        """RMT whose projector starts as recorded."""

        def warm_up(self):
            self.projector.load_state_dict(case.part("projector/"))
            super().warm_up()

    x, y = case.arrays["source_x"], case.arrays["source_y"]
    adapter = Replayed(
        case.model(),
        (x.flatten(0, 1), y.flatten()),
        optimizer=case.step(),
        momentum=given["teacher_momentum"],
        contrast=given["lambda_cont"],
        replay=given["lambda_ce_src"],
        temperature=given["temperature"],
        projection=given["projection_dim"],
        batch=x.shape[1],
        warmup=given["warmup_steps"],
        augmentation=lambda x, random: x.flip(3),
    )
    tolerance = STATE[case.dtype]
    torch.testing.assert_close(adapter._prototypes, case.arrays["extra/prototypes"], rtol=0, atol=tolerance)
    if given["warmup_steps"]:
        case.compare(adapter.model, "after_warmup/")
        case.compare(adapter.teacher, "after_warmup_teacher/")
    case.play(adapter)
    case.compare(adapter.model)
    case.compare(adapter.teacher, "teacher/")
    case.compare(adapter.projector, "final_projector/")


def test_a_dataset_is_a_source_too():
    found, wanted = (RMT(Recorded(), source, batch=20) for source in (Dataset(*SOURCE), SOURCE))
    wanted.model.load_state_dict(found.model.state_dict())
    assert found._source_x.equal(wanted._source_x)


def test_without_source_samples_it_is_a_mean_teacher():
    adapter = RMT(Recorded())
    assert adapter.contrast == adapter.replay == 0
    assert all(torch.isfinite(adapter.adapt(x[None])).all() for x in X)


@pytest.mark.parametrize("broken", ["model", "teacher"])
def test_nan_activations_change_nothing(broken):
    adapter = RMT(Recorded(), SOURCE, batch=20)
    with torch.no_grad():
        getattr(adapter, broken).fc.bias[0] = float("nan")
    before = [p.detach().clone() for part in (adapter.model, adapter.teacher) for p in part.parameters()]
    with pytest.raises(InputError, match="NaN"):
        adapter.adapt(X)
    after = [p for part in (adapter.model, adapter.teacher) for p in part.parameters()]
    assert all(torch.equal(p.nan_to_num(), q.nan_to_num()) for p, q in zip(before, after))
    assert not adapter.optimizer.state and adapter.steps == 0


@pytest.mark.parametrize(
    "settings",
    [{"momentum": 2.0}, {"contrast": 1.0}, {"replay": 1.0}, {"warmup": 3}, {"temperature": 0.0}, {"batch": 0}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        RMT(Recorded(), **settings)
