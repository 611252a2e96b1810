import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline.adapters import DRM
from driftline.adapters.drm import train_heads
from driftline.errors import ConfigError, InputError
from driftline.stream.dataset import Dataset

X = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))


def parts(count=3, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU()), [nn.Linear(8, 5) for _ in range(count)]


def probabilities(body, heads):
    p = torch.stack([head(body(X)).softmax(1) for head in heads])
    return p.detach(), -(p * p.log()).sum(-1).detach()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 5.0])
def test_heads_are_weighted_by_their_entropies(gamma):
    body, heads = parts()
    p, unsure = probabilities(body, heads)
    weights = unsure**-gamma / (unsure**-gamma).sum(0)
    torch.testing.assert_close(DRM(body, heads, gamma=gamma).adapt(X).exp(), (weights[..., None] * p).sum(0))


def test_infinite_gamma_chooses_each_samples_surest_head():
    body, heads = parts()
    p, unsure = probabilities(body, heads)
    expected = p[unsure.argmin(0), torch.arange(len(X))]
    torch.testing.assert_close(DRM(body, heads, gamma=math.inf).adapt(X).exp(), expected)


def test_the_released_variant_chooses_one_head_for_the_batch():
    body, heads = parts(4)
    p, unsure = probabilities(body, heads[:3])
    found = DRM(body, heads[:3], shared=heads[3], variant="released").adapt(X).exp()
    torch.testing.assert_close(found, p[unsure.mean(1).argmin()])


def test_the_released_variants_shared_head_takes_weight_but_does_not_vote():
    body, heads = parts(4)
    p, unsure = probabilities(body, heads)
    weights = unsure**-1 / (unsure**-1).sum(0)
    adapter = DRM(body, heads[:3], shared=heads[3], variant="released", pseudo_labels="own", beta=1.0)
    torch.testing.assert_close(adapter.adapt(X).exp(), (weights[:3, :, None] * p[:3]).sum(0))


@pytest.mark.parametrize("labels", ["own", "combined", "uniform", "shared"])
def test_heads_learn_their_labels_and_the_featuriser_stays(labels):
    body, heads = parts(4)
    adapter = DRM(body, heads[:3], shared=heads[3], pseudo_labels=labels, beta=0.0, lr=0.01)
    before = adapter.predict(X).softmax(1).amax(1).mean()
    for _ in range(20):
        adapter.adapt(X)
    assert adapter.predict(X).softmax(1).amax(1).mean() > before
    assert torch.equal(adapter.steered.featuriser[0].weight, body[0].weight)


def test_nothing_is_learned_from_unsure_samples():
    body, heads = parts()
    adapter = DRM(body, heads, pseudo_labels="own", beta=1.0, lr=0.1)
    adapter.adapt(X)
    assert torch.equal(adapter.steered.heads[0].weight, heads[0].weight)


def test_a_head_trained_on_a_domain_is_trusted_there():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 400, 4, generator=random)
    # The domains lie apart, and the class is told by opposite features.
    x[1, :, 3] += 4
    domains = [Dataset(x[0], (x[0, :, 0] > 0).long()), Dataset(x[1], (x[1, :, 0] < 0).long())]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body, heads = nn.Sequential(nn.Linear(4, 32), nn.ReLU()), [nn.Linear(32, 2), nn.Linear(32, 2)]
    train_heads(body, heads, domains, epochs=20, lr=1e-2)
    own = [(heads[d](body(domains[d].x)).argmax(1) == domains[d].y).float().mean() for d in range(2)]
    assert min(own) > 0.9


def test_single_samples_are_as_in_a_batch():
    body, heads = parts()
    adapter = DRM(body, heads)
    torch.testing.assert_close(torch.cat([adapter.adapt(x[None]) for x in X]), adapter.adapt(X))


def test_nan_activations_change_nothing():
    body, heads = parts()
    with torch.no_grad():
        heads[0].bias[0] = float("nan")
    adapter = DRM(body, heads, pseudo_labels="own", beta=0.0)
    before = adapter.steered.heads[1].weight.clone()
    with pytest.raises(InputError, match="NaN"):
        adapter.adapt(X)
    assert torch.equal(before, adapter.steered.heads[1].weight)


@pytest.mark.parametrize(
    "settings",
    [
        {"heads": [nn.Linear(8, 5)]},
        {"gamma": -1.0},
        {"pseudo_labels": "mine"},
        {"pseudo_labels": "shared"},
        {"beta": 2.0},
        {"lr": 0.0},
        {"variant": "fast"},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    body, heads = parts()
    with pytest.raises(
        ConfigError, match="shared" if settings.get("pseudo_labels") == "shared" else next(iter(settings))
    ):
        DRM(body, **{"heads": heads, **settings})


def test_domains_that_do_not_fit_are_refused():
    body, heads = parts()
    with pytest.raises(ConfigError, match="domains"):
        train_heads(body, heads, [Dataset(X, torch.arange(9) % 5)])
    with pytest.raises(ConfigError, match="domains"):
        train_heads(body, heads, [Dataset(X)] * 3)
    assert F.softmax(heads[0](body(X)), 1).shape == (9, 5)
