import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline.adapters.eata import EATA, ETA
from driftline.adapters.losses import entropy
from driftline.errors import ConfigError, InputError
from driftline.stream.dataset import Dataset
from tests.adapters.recorded import STATE, Case, Recorded
from tests.golden import golden_names

X = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ALL = {"entropy_margin": 3.0, "redundancy": 1.0}
"""Margins that keep every sample."""


def recorded(case):
    settings = {
        "optimizer": case.step(),
        "entropy_margin": case.hparams["e_margin"],
        "redundancy": case.hparams["d_margin"],
        "steps": case.hparams["steps"],
    }
    if case.config["method"] == "eta":
        return ETA(case.model(), **settings)
    clean = case.arrays["clean_x"]
    return EATA(
        case.model(),
        clean.flatten(0, 1),
        fisher_alpha=case.hparams["fisher_alpha"],
        fisher_batch_size=clean.shape[1],
        **settings,
    )


@pytest.mark.parametrize("name", [*golden_names("adapters", "eta_*"), *golden_names("adapters", "eata_*")])
def test_recorded(name):
    case = Case(name)
    adapter = recorded(case)
    case.play(adapter)
    case.compare(adapter.model)


@pytest.mark.parametrize("name", golden_names("adapters", "eata_*"))
def test_recorded_fisher_information(name):
    case = Case(name)
    adapter = recorded(case)
    for found, wanted in zip(adapter.fisher, case.part("fisher/").values(), strict=True):
        torch.testing.assert_close(found.data, wanted, rtol=0, atol=STATE[case.dtype])


@pytest.mark.parametrize("name", golden_names("adapters", "eata_adam*"))
def test_recorded_average_of_predictions(name):
    case = Case(name)
    adapter = recorded(case)
    for number, x in enumerate(case.arrays["x"]):
        adapter.adapt(x)
        assert (adapter.average is not None) == bool(case.arrays["extra/probs_ema_is_set"][number])
        if adapter.average is not None:
            wanted = case.arrays["extra/probs_ema"][number]
            torch.testing.assert_close(adapter.average, wanted, rtol=0, atol=1e-5)


def test_the_default_margin_is_a_share_of_the_largest_entropy():
    assert ETA(Recorded()).margin(torch.zeros(1, 10)) == pytest.approx(0.4 * math.log(10))


def test_where_nothing_is_kept_nothing_changes():
    adapter = EATA(Recorded(), X, entropy_margin=0.0, fisher_alpha=100.0)
    with torch.no_grad():
        adapter.model.bn1.weight.mul_(1.1)
    before = {k: v.clone() for k, v in adapter.model.state_dict().items()}
    adapter.adapt(X)
    assert all(torch.equal(v, before[k]) for k, v in adapter.model.state_dict().items())
    assert adapter.average is None and not adapter.optimizer.state


def test_samples_like_the_average_are_left_out():
    adapter = ETA(nn.Sequential(nn.BatchNorm1d(3)), entropy_margin=2.0, redundancy=0.9)
    scores = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    assert adapter.kept(scores).tolist() == [True, True]
    adapter.average = torch.tensor([1.0, 0.0, 0.0])
    assert adapter.kept(scores).tolist() == [False, True]


def test_fisher_information_holds_parameters_at_the_source():
    model = Recorded()

    def distance(alpha):
        adapter = EATA(model, X, lr=0.01, optimizer="sgd", fisher_alpha=alpha, **ALL)
        for _ in range(20):
            adapter.adapt(X)
        return sum(float((p.detach() - s).square().sum()) for p, s in zip(adapter.chosen.values(), adapter.start))

    free = distance(0.0)
    assert distance(300.0) < 0.9 * free


def test_source_samples_may_be_a_dataset_of_bytes():
    model = Recorded()
    images = (X * 255).to(torch.uint8)
    found = EATA(model, Dataset(images, torch.arange(12) % 2), fisher_batch_size=5).fisher
    wanted = EATA(model, images.float() / 255, fisher_batch_size=5).fisher
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


def test_the_fisher_information_of_one_batch_is_the_square_of_its_gradient():
    model = Recorded()
    adapter = EATA(model, X)
    twin = ETA(model).model
    scores = twin(X)
    F.cross_entropy(scores, scores.argmax(1)).backward()
    torch.testing.assert_close(adapter.fisher[0].data, twin.bn1.weight.grad.square())


@pytest.mark.parametrize(
    "source", [torch.zeros(0, 3, 8, 8), torch.full((2, 3, 8, 8), float("nan")), torch.zeros(4, 7), "images"]
)
def test_source_samples_that_cannot_be_used_are_refused(source):
    with pytest.raises(ConfigError, match="source"):
        EATA(Recorded(), source)


def test_the_average_survives_a_reset_in_the_released_variant_only():
    for variant, survives in (("paper", False), ("released", True)):
        adapter = ETA(Recorded(), variant=variant, **ALL)
        adapter.adapt(X)
        adapter.reset()
        assert (adapter.average is not None) == survives


def test_a_state_brings_its_fisher_information_along():
    model = Recorded()
    adapter, other = EATA(model, X), EATA(model, X.flip(0)[:5])
    other.load_state_dict(adapter.state_dict())
    assert all(torch.equal(f, w) for f, w in zip(other.fisher, adapter.fisher, strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"lr": 0.0},
        {"redundancy": 1.5},
        {"entropy_margin": -1.0},
        {"fisher_alpha": -1.0},
        {"fisher_batch_size": 0},
        {"variant": "fast"},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        EATA(Recorded(), X, **settings)


def test_a_model_without_normalisation_layers_is_refused():
    with pytest.raises(ConfigError, match="no normalisation layer"):
        ETA(nn.Linear(4, 3))


def test_nan_scores_of_one_sample_change_nothing():
    class Broken(Recorded):
        def forward(self, x):
            scores = super().forward(x)
            return torch.where(torch.arange(len(x))[:, None] == 1, torch.nan, scores) if len(x) == 12 else scores

    adapter = EATA(Broken(), X[:5], **ALL)
    adapter.adapt(X[:5])
    before = {k: v.clone() for k, v in adapter.model.state_dict().items()}
    average, steps = adapter.average.clone(), [s["step"].clone() for s in adapter.optimizer.state.values()]
    with pytest.raises(InputError, match="NaN"):
        adapter.adapt(X)
    assert all(torch.equal(v, before[k]) for k, v in adapter.model.state_dict().items())
    assert torch.equal(adapter.average, average)
    assert steps == [s["step"] for s in adapter.optimizer.state.values()]


def test_kept_samples_become_surer():
    adapter = ETA(Recorded(), lr=0.01, **ALL)
    before = entropy(adapter.predict(X)).mean()
    for _ in range(5):
        adapter.adapt(X)
    assert entropy(adapter.predict(X)).mean() < before
