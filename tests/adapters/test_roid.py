import math

import pytest
import torch
from torch import nn

from driftline.adapters.roid import ROID, likelihood_ratio, symmetric_cross_entropy
from driftline.errors import ConfigError, InputError
from tests.adapters.recorded import Case, Recorded
from tests.golden import golden_names

X = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
AUGMENT = {"identity": lambda x, draws: x, "hflip": lambda x, draws: x.flip(-1)}
NAMES = {"momentum_probs": "momentum_probs", "momentum_src": "momentum_source", "temperature": "temperature"}


@pytest.mark.parametrize("name", golden_names("adapters", "roid_*"))
def test_recorded(name):
    case = Case(name)
    assert case.hparams["batch_size_config"] == case.arrays["x"].shape[1] and case.hparams["use_weighting"]
    adapter = ROID(
        case.model(),
        optimizer=case.step(),
        augment=AUGMENT[case.hparams["augmentation"]],
        consistency=case.hparams["use_consistency"],
        prior_correction=case.hparams["use_prior_correction"],
        variant="released",
        **{NAMES[k]: v for k, v in case.hparams.items() if k in NAMES},
    )
    case.play(adapter)
    case.compare(adapter.model)


def quiet(**settings):
    return ROID(Recorded(), **{"augment": AUGMENT["hflip"], **settings})


def test_a_batch_of_equal_samples_is_used_with_weight_one():
    for scores in (torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[3.0, 1.0, 0.0]]).expand(4, 3)):
        weights, kept = quiet().weights(scores, torch.full((3,), 1 / 3))
        assert kept.all() and torch.equal(weights, torch.ones(len(scores)))


def test_a_certain_and_diverse_sample_weighs_most():
    average = torch.tensor([0.8, 0.1, 0.1])
    scores = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.5, 0.0]])
    weights, kept = quiet().weights(scores, average)
    assert kept.tolist() == [False, True, False] and weights.item() == pytest.approx(math.exp(3), rel=1e-5)


def test_without_weighting_every_sample_counts_alike():
    weights, kept = quiet(weighting=False).weights(torch.randn(5, 3), torch.full((3,), 1 / 3))
    assert kept.all() and torch.equal(weights, torch.ones(5))


def test_losses_by_hand():
    # p = (3/4, 1/4): the ratios are 3 and 1/3.
    scores = torch.tensor([[math.log(3.0), 0.0]])
    assert likelihood_ratio(scores).item() == pytest.approx(-0.5 * math.log(3), abs=1e-4)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert symmetric_cross_entropy(scores, scores).item() == pytest.approx(entropy, abs=1e-6)


def test_the_prior_by_hand():
    # A batch of 2 of 2 classes, p = (3/4, 1/4) each: smooth = (1/2) / (3/4) = 2/3, prior = (17, 11) / 28.
    scores = torch.tensor([[math.log(3.0), 0.0]]).expand(2, 2)
    prior = torch.tensor([17 / 28, 11 / 28])
    torch.testing.assert_close(quiet(variant="released").corrected(scores), scores * prior)
    wanted = torch.tensor([[0.75, 0.25]]) * prior
    torch.testing.assert_close(quiet().corrected(scores).softmax(1), (wanted / wanted.sum()).expand(2, 2))


def test_predictions_are_corrected_as_adapted_ones_are():
    for settings in ({}, {"variant": "released"}, {"prior_correction": False}):
        adapter = quiet(**settings)
        torch.testing.assert_close(adapter.predict(X), adapter.adapt(X))


def test_parameters_are_drawn_to_the_source():
    near, far = quiet(lr=0.01, momentum_source=0.5), quiet(lr=0.01, momentum_source=1.0)
    for adapter in (near, far):
        for _ in range(5):
            adapter.adapt(X)
    moved = [max(float((p - s).detach().abs().max()) for p, s in zip(a.chosen, a.source)) for a in (near, far)]
    assert 0 < moved[0] < 0.5 * moved[1]


def test_views_are_drawn_by_seed_and_batch():
    drawn = []

    def note(x, draws):
        drawn.append(torch.rand(1, generator=draws).item())
        return x

    for seed in (1, 1, 2):
        adapter = quiet(augment=note, seed=seed)
        adapter.adapt(X), adapter.adapt(X)
    assert drawn[:2] == drawn[2:4] and len(set(drawn)) == 4


def test_the_default_views_are_for_images():
    ROID(Recorded()).adapt(X)
    adapter = ROID(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))
    with pytest.raises(InputError, match="augmentation"):
        adapter.adapt(torch.randn(6, 4))
    assert adapter.average is None and adapter.batches == 0


@pytest.mark.parametrize("second", [False, True])
def test_nan_activations_change_nothing(second):
    class Broken(Recorded):
        left = 100

        def forward(self, x):
            self.left -= torch.is_grad_enabled()
            return super().forward(x) * (torch.nan if self.left < 0 else 1.0)

    adapter = ROID(Broken(), augment=AUGMENT["hflip"])
    adapter.adapt(X)
    before = {k: v.clone() for k, v in adapter.model.state_dict().items()}
    average = adapter.average.clone()
    adapter.model.left = int(second)
    with pytest.raises(InputError, match="NaN"):
        adapter.adapt(X)
    assert all(torch.equal(v, before[k]) for k, v in adapter.model.state_dict().items())
    assert torch.equal(adapter.average, average) and adapter.batches == 1


@pytest.mark.parametrize(
    "settings",
    [{"lr": 0.0}, {"temperature": 0.0}, {"momentum_probs": 1.5}, {"momentum_source": -0.1}, {"variant": "fast"}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ROID(Recorded(), **settings)
