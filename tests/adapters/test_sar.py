import math
import warnings

import pytest
import torch
from torch import nn

from driftline import models
from driftline.adapters import DeYO, Tent
from driftline.adapters.sar import SAR
from driftline.errors import ConfigError, InputError
from tests.adapters.recorded import Case, Layered, Recorded
from tests.golden import golden_names

pytestmark = pytest.mark.filterwarnings("ignore:exclude=")

X = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ALL = {"entropy_margin": 3.0, "reset_threshold": 0.0}
"""Keeps every sample, and never returns to the source."""


def recorded(case, **settings):
    hparams = {"entropy_margin" if k == "margin_e0" else k: v for k, v in case.hparams.items()}
    return SAR(case.model(), optimizer=case.step(), **{"variant": "released", **hparams, **settings})


@pytest.mark.parametrize("name", golden_names("adapters", "sar_*"))
def test_recorded(name):
    case = Case(name)
    adapter = recorded(case)
    case.play(adapter)
    case.compare(adapter.model)


@pytest.mark.parametrize("name", golden_names("adapters", "sar_reset*") + golden_names("adapters", "sar_gn_b1*"))
def test_recorded_average(name):
    case = Case(name)
    adapter = recorded(case)
    for x, wanted in zip(case.arrays["x"], case.arrays["extra/ema"], strict=True):
        adapter.adapt(x)
        found = math.nan if adapter.average is None else adapter.average
        assert found == pytest.approx(float(wanted), abs=1e-5, nan_ok=True)


def test_the_paper_returns_to_the_source_and_forgets_the_average():
    case = Case("sar_reset_f64")
    adapter, source = recorded(case, variant="paper"), case.model()
    returns = 0
    for x in case.arrays["x"]:
        adapter.adapt(x)
        if adapter.average is None:
            returns += 1
            assert torch.equal(adapter.model.bn1.weight, source.bn1.weight) and not adapter.optimizer.state
    # The released code returns at each of the last five batches, since it keeps the average that was too low.
    assert 0 < returns < int(case.arrays["extra/reset"].sum()) == 5


def test_released_keeps_momentum_and_average_where_paper_does_not():
    for variant, keeps in (("paper", False), ("released", True)):
        settings = {"entropy_margin": 3.0, "reset_threshold": 100.0, "optimizer": "sgd"}
        adapter = SAR(Recorded(), variant=variant, **settings)
        source = adapter.model.bn1.weight.detach().clone()
        adapter.adapt(X)
        assert torch.equal(adapter.model.bn1.weight, source)
        assert bool(adapter.optimizer.state) == (adapter.average is not None) == keeps


def test_where_nothing_is_reliable_only_the_released_variant_moves():
    for variant, moves in (("paper", False), ("released", True)):
        adapter = SAR(Recorded(), optimizer="sgd", lr=0.1, variant=variant, **ALL)
        adapter.adapt(X)
        adapter.entropy_margin = 0.0
        before = adapter.model.bn1.weight.detach().clone()
        adapter.adapt(X)
        assert torch.equal(adapter.model.bn1.weight, before) != moves


def test_the_last_stage_stays():
    adapter = SAR(Layered(), lr=0.1, **ALL)
    before = {k: v.clone() for k, v in adapter.model.state_dict().items()}
    adapter.adapt(X)
    changed = {k for k, v in adapter.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"layer1.bn.weight", "layer1.bn.bias"}


def test_without_perturbation_it_is_a_plain_step():
    torch.manual_seed(0)
    adapter = SAR(Recorded(), optimizer="sgd", lr=0.1, rho=0.0, **ALL)
    twin = Recorded()
    twin.load_state_dict(adapter.model.state_dict())
    tent = Tent(twin, optimizer="sgd", lr=0.1)
    adapter.adapt(X), tent.adapt(X)
    torch.testing.assert_close(adapter.model.bn1.weight, tent.model.bn1.weight)


def test_the_perturbation_is_rho_long():
    adapter = SAR(Recorded(), rho=0.3, **ALL)
    before = [p.detach().clone() for p in adapter.chosen]
    with adapter.perturbed(tuple(torch.ones_like(p) for p in adapter.chosen)):
        moved = sum(float((p.detach() - b).square().sum()) for p, b in zip(adapter.chosen, before))
    assert moved == pytest.approx(0.09, rel=1e-4)
    assert all(torch.equal(p, b) for p, b in zip(adapter.chosen, before))


class Failing(nn.Module):
    """A model whose passes fail, in a way of the caller's choice, once the countdown is over."""

    def __init__(self, fail, after):
        super().__init__()
        self.inner, self.fail, self.left = Recorded(), fail, after

    def forward(self, x):
        scores = self.inner(x)
        if torch.is_grad_enabled():
            self.left -= 1
        return self.fail(scores) if self.left < 0 else scores


def out_of_memory(scores):
    raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    ("fail", "error"), [(out_of_memory, RuntimeError), (lambda scores: scores * torch.nan, InputError)]
)
@pytest.mark.parametrize("after", [2, 3])
def test_an_error_in_either_pass_changes_nothing(fail, error, after):
    adapter = SAR(Failing(fail, after), lr=0.01, **ALL)
    adapter.adapt(X)
    before = {k: v.clone() for k, v in adapter.model.state_dict().items()}
    average, steps = adapter.average, [s["step"].clone() for s in adapter.optimizer.state.values()]
    with pytest.raises(error):
        adapter.adapt(X)
    assert all(torch.equal(v, before[k]) for k, v in adapter.model.state_dict().items())
    assert adapter.average == average and steps == [s["step"] for s in adapter.optimizer.state.values()]


def test_the_default_threshold_is_that_of_the_paper_for_a_thousand_classes():
    adapter = SAR(Recorded())
    assert adapter.threshold(torch.zeros(1, 1000)) == pytest.approx(0.2)
    assert adapter.threshold(torch.zeros(1, 10)) == pytest.approx(0.0667, abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"lr": 0.0},
        {"rho": -1.0},
        {"entropy_margin": -1.0},
        {"reset_threshold": math.nan},
        {"variant": "fast"},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        SAR(Recorded(), **settings)


def test_excluding_every_normalisation_is_refused():
    with pytest.raises(ConfigError, match="exclude"):
        SAR(Recorded(), exclude=["*"])


def trained_stages(model, **settings):
    """Which of a ResNet's stages have parameters that are trained."""
    adapter = SAR(model, **settings)
    trained = {name.split(".")[1] for name, p in adapter.model.named_parameters() if p.requires_grad}
    return {stage for stage in trained if stage.startswith("layer")}


def test_the_last_stage_of_a_network_with_the_published_names_stays():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trained_stages(models.resnet18((3, 32, 32), 10, width=2)) == {"layer1", "layer2", "layer3"}


@pytest.mark.parametrize("make", [SAR, DeYO])
def test_a_network_with_other_names_is_trained_whole_with_a_warning_that_says_what_to_give(make):
    with pytest.warns(
        UserWarning, match=r"matches none of this model's .*\(body.layer3.2.bn2.weight.*exclude=\['\*layer3"
    ):
        make(models.resnet20())


@pytest.mark.filterwarnings("error")
def test_naming_the_last_stage_or_nothing_is_no_mistake():
    assert trained_stages(models.resnet20(), exclude="*layer3.*") == {"layer1", "layer2"}
    assert trained_stages(models.resnet20(), exclude=["*layer3.*"]) == {"layer1", "layer2"}
    assert trained_stages(models.resnet20(), exclude=[]) == {"layer1", "layer2", "layer3"}
