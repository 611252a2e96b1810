from __future__ import annotations

import pytest
import torch
from torch import nn

from driftline.learners.renewers import ReDo


def network():
    """Six inputs that are the hidden activations, so that a test can choose them."""
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(6))
        model[0].bias.zero_()
    return model


def step(model, renewer, activations, optimizer=None):
    """Let the renewer follow up a step that changed nothing."""
    model(torch.as_tensor(activations, dtype=torch.float64))
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.0)
    renewer.renew(model, optimizer)


def renewed(model):
    return [i for i in range(6) if not torch.equal(model[0].weight[i], torch.eye(6, dtype=torch.float64)[i])]


@pytest.mark.parametrize(("tau", "expected"), [(0.0, [0]), (0.125, [0, 1]), (0.25, [0, 1, 2]), (1.0, [0, 1, 2, 3])])
def test_units_that_score_at_most_tau_are_renewed(tau, expected):
    # Magnitudes 0, 1, 2, 8, 11, 26 with mean 8: scores 0, 0.125, 0.25, 1, ...
    model = network()
    renewer = ReDo(model, tau=tau, every=1)
    step(model, renewer, [[0, 1, 2, 8, 11, 26]])
    assert renewed(model) == expected


def test_only_every_so_many_steps():
    model = network()
    renewer = ReDo(model, every=3)
    found = []
    for _ in range(3):
        step(model, renewer, [[0, 1, 1, 1, 1, 1]])
        found.append(renewed(model))
    assert found == [[], [], [0]]


@pytest.mark.parametrize("sizes", [[1] * 8, [2, 3, 3], [8], [3, 5]])
def test_the_latest_samples_are_judged_however_they_came(sizes):
    x = torch.rand(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = network()
    renewer = ReDo(model, tau=0.0, every=100, samples=5)
    for batch in x.split(sizes):
        step(model, renewer, batch)
    magnitudes = x[3:].mean(0)
    # sums of five numbers below 1 in another order
    torch.testing.assert_close(renewer.scores()[0], magnitudes / (magnitudes.mean() + 1e-9), rtol=0, atol=1e-14)


def test_no_more_batches_are_held_than_needed():
    model = network()
    renewer = ReDo(model, every=1000, samples=5)
    for size in (1, 1, 2, 3, 1, 7, 1):
        step(model, renewer, torch.ones(size, 6))
    assert [len(heard[0]) for heard in renewer.recent.batches] == [7, 1]


def test_each_pixel_of_a_channel_counts():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(36, 2)).double()
    x = torch.randn(7, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    renewer = ReDo(model, every=100, samples=4)
    first = model[0](x)
    second = model[1](first)
    for batch in x.split(3):
        model(batch)
        renewer.renew(model, torch.optim.SGD(model.parameters(), lr=0.0))
    for number, activation in enumerate((first, second)):
        magnitudes = activation[3:].abs().mean((0, 2, 3))
        # sums of 64 numbers around 1 in another order
        torch.testing.assert_close(renewer.recent.magnitudes(number), magnitudes, rtol=0, atol=1e-14)


def test_a_silent_layer_is_renewed_whole_but_not_by_the_released_code():
    for variant, expected in (("paper", list(range(6))), ("released", [])):
        model = network()
        step(model, ReDo(model, every=1, variant=variant), torch.zeros(2, 6))
        assert renewed(model) == expected


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_unit_that_is_not_finite_stays_and_the_others_are_judged_without_it(bad):
    model = network()
    renewer = ReDo(model, tau=0.1, every=1)
    with torch.no_grad():
        model[0].bias[5] = bad
    step(model, renewer, [[0, 1, 1, 1, 1, 1]])
    assert renewed(model) == [0]


def test_the_optimizer_forgets_but_not_in_the_released_code():
    for variant, forgets in (("paper", True), ("released", False)):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
        renewer = ReDo(model, tau=0.5, every=1, variant=variant)
        model(torch.tensor([[0.1, 1, 1, 1, 1, 1]], dtype=torch.float64)).sum().backward()
        optimizer.step()
        renewer.renew(model, optimizer)
        moments = [optimizer.state[p][name] for p in model.parameters() for name in ("exp_avg", "exp_avg_sq")]
        weight, weight2, bias, bias2, out, out2, *_ = moments
        of_unit = [weight[0], weight2[0], bias[0], bias2[0], out[:, 0], out2[:, 0]]
        assert renewed(model) == [0]
        assert not any(m.any() for m in of_unit) if forgets else all(m.any() for m in of_unit)
        assert weight[1].any() and bias2[1].any() and out[:, 1].any()
