import math

import pytest
import torch
from torch import nn

from driftline.adapters.deyo import DeYO, shuffle_patches
from driftline.adapters.losses import entropy
from driftline.errors import ConfigError, InputError
from driftline.stream.seeds import derive_seed, generator
from tests.adapters.recorded import Recorded

pytestmark = pytest.mark.filterwarnings("ignore:exclude=")

X = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ALL = {"entropy_margin": 3.0, "plpd_threshold": -1.0}
"""Keeps every image."""


def sharp():
    """A network whose predictions differ in confidence."""
    torch.manual_seed(0)
    model = Recorded().double()
    with torch.no_grad():
        model.fc.weight.mul_(8)
    return model


def test_it_is_the_paper_step_by_step():
    """The same by loops over images and a step written out, for a few batches."""
    scale, threshold, lr, x = 1.0, 0.05, 0.05, X.double()
    # Halfway between the eighth and the ninth of the entropies at first.
    margin = float(entropy(DeYO(sharp()).predict(x)).sort().values[7:9].mean())
    settings = {"entropy_margin": margin, "entropy_scale": scale, "plpd_threshold": threshold}
    adapter = DeYO(sharp(), optimizer=lambda p: torch.optim.SGD(p, lr=lr), patches=2, seed=5, **settings)
    twin = sharp().train()
    trained = [*twin.bn1.parameters(), *twin.bn2.parameters()]
    counts = []
    for batch in range(4):
        scores = twin(x)
        probabilities = scores.softmax(1)
        h = [-sum(p * p.log() for p in row) for row in probabilities]
        first = [i for i in range(len(x)) if float(h[i].detach()) < margin]
        draws = generator(derive_seed(5, "DeYO", batch, 0))
        orders = torch.rand(len(first), 4, generator=draws).argsort(1).tolist()
        shuffled = torch.empty(len(first), 3, 8, 8, dtype=torch.float64)
        for row, (i, order) in enumerate(zip(first, orders)):
            for place, piece in enumerate(order):
                (r, c), (top, left) = divmod(place, 2), divmod(piece, 2)
                shuffled[row, :, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4] = x[
                    i, :, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4
                ]
        with torch.no_grad():
            after = twin(shuffled).softmax(1)
        terms = []
        for row, i in enumerate(first):
            label = int(probabilities[i].argmax())
            plpd = float(probabilities[i, label].detach() - after[row, label])
            if plpd > threshold:
                terms.append((math.exp(scale - float(h[i].detach())) + math.exp(plpd)) * h[i])
        counts.append((len(first), len(terms)))
        if terms:
            gradients = torch.autograd.grad(sum(terms) / len(terms), trained)
            with torch.no_grad():
                for p, g in zip(trained, gradients):
                    p -= lr * g
        torch.testing.assert_close(adapter.adapt(x), scores.detach(), rtol=0, atol=1e-9)
    # Both filters leave some out and some over.
    assert counts[0][0] == 8 and all(0 < last < first for first, last in counts), counts
    torch.testing.assert_close(adapter.model.bn2.weight, twin.bn2.weight, rtol=0, atol=1e-9)


def test_shuffling_moves_patches_and_keeps_their_content():
    x = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8)
    found = shuffle_patches(x, 4, generator(0))
    assert not torch.equal(found, x) and torch.equal(found.flatten(1).sort().values, x.flatten(1).sort().values)
    pieces = {tuple(x[0, :, r : r + 2, c : c + 2].flatten().tolist()) for r in range(0, 8, 2) for c in range(0, 8, 2)}
    assert tuple(found[0, :, 2:4, 4:6].flatten().tolist()) in pieces


def test_images_are_shuffled_each_in_its_own_order():
    x = X[:1].expand(8, -1, -1, -1)
    found = shuffle_patches(x, 4, generator(0))
    assert len({tuple(image.flatten().tolist()) for image in found}) == 8


def test_sizes_that_patches_do_not_divide():
    assert shuffle_patches(torch.rand(2, 1, 9, 11), 4, generator(0)).shape == (2, 1, 9, 11)
    flat = torch.full((1, 1, 9, 11), 0.5)
    torch.testing.assert_close(shuffle_patches(flat, 4, generator(0)), flat)


def test_plpd_of_an_image_of_one_colour_is_zero():
    adapter = DeYO(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 5)))
    x = torch.full((2, 3, 8, 8), 0.3)
    torch.testing.assert_close(adapter.plpd(x, adapter.predict(x), 0), torch.zeros(2))


def test_images_whose_class_survives_shuffling_are_left_out():
    """A classifier of mean colours does not see patches at all."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(3), nn.Linear(3, 3))
    adapter = DeYO(model, entropy_margin=3.0, plpd_threshold=0.01)
    before = adapter.model[2].weight.detach().clone()
    adapter.adapt(X)
    assert torch.equal(adapter.model[2].weight, before)


def test_the_draws_are_those_of_seed_and_batch():
    scores = [[a.adapt(X) for _ in range(3)][-1] for a in (DeYO(sharp().float(), seed=s, **ALL) for s in (1, 1, 2))]
    assert torch.equal(scores[0], scores[1]) and not torch.equal(scores[0], scores[2])


def test_where_nothing_is_kept_there_is_no_step():
    for settings in ({"entropy_margin": 0.0}, {"entropy_margin": 3.0, "plpd_threshold": 1.0}):
        adapter = DeYO(Recorded(), **settings)
        adapter.adapt(X)
        assert not adapter.optimizer.state and adapter.batches == 1


@pytest.mark.parametrize("x", [torch.rand(4, 6), torch.rand(4, 3, 3, 3)])
def test_samples_that_are_no_images_are_refused(x):
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(x[0].numel()), nn.Linear(x[0].numel(), 3))
    with pytest.raises(InputError, match="patches of images"):
        DeYO(model).adapt(x)


@pytest.mark.parametrize("shuffled_only", [False, True])
def test_nan_activations_change_nothing(shuffled_only):
    class Broken(Recorded):
        broken = False

        def forward(self, x):
            scores = super().forward(x)
            return scores * torch.nan if self.broken and torch.is_grad_enabled() != shuffled_only else scores

    adapter = DeYO(Broken(), **ALL)
    adapter.adapt(X)
    before = {k: v.clone() for k, v in adapter.model.state_dict().items()}
    adapter.model.broken = True
    with pytest.raises(InputError, match="NaN"):
        adapter.adapt(X)
    assert all(torch.equal(v, before[k]) for k, v in adapter.model.state_dict().items()) and adapter.batches == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"lr": 0.0},
        {"patches": 1},
        {"entropy_margin": -1.0},
        {"entropy_scale": math.inf},
        {"plpd_threshold": 2.0},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        DeYO(Recorded(), **settings)
