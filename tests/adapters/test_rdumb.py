import pytest
import torch

from driftline.adapters.rdumb import RDumb
from driftline.errors import ConfigError, InputError
from tests.adapters.recorded import Case, Recorded
from tests.golden import golden_names

X = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", golden_names("adapters", "rdumb_*"))
def test_recorded(name):
    case = Case(name)
    adapter = RDumb(
        case.model(),
        optimizer=case.step(),
        entropy_margin=case.hparams["e_margin"],
        redundancy=case.hparams["d_margin"],
        reset_every=case.hparams["reset_every"],
    )
    case.play(adapter)
    case.compare(adapter.model)


def test_all_of_it_returns_to_the_source():
    adapter = RDumb(Recorded(), reset_every=3, optimizer="sgd", lr=0.1, entropy_margin=3.0, redundancy=1.0)
    source = adapter.model.bn1.weight.detach().clone()
    for batch in range(1, 7):
        adapter.adapt(X)
        returned = batch % 3 == 0
        assert torch.equal(adapter.model.bn1.weight, source) == returned
        assert (adapter.average is None) == (not adapter.optimizer.state) == returned


def test_batches_without_a_step_count():
    adapter = RDumb(Recorded(), reset_every=4, entropy_margin=0.0)
    for _ in range(3):
        adapter.adapt(X)
    assert adapter.batches == 3


def test_a_batch_that_is_refused_does_not_count():
    adapter = RDumb(Recorded(), reset_every=4)
    adapter.adapt(X)
    with torch.no_grad():
        adapter.model.fc.bias[0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        adapter.adapt(X)
    assert adapter.batches == 1


@pytest.mark.parametrize("settings", [{"reset_every": 0}, {"redundancy": -1.0}, {"steps": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        RDumb(Recorded(), **settings)
