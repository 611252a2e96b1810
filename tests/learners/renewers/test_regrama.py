from __future__ import annotations

import pytest
import torch
from torch import nn

from driftline.errors import ConfigError
from driftline.learners.renewers import ReGraMa


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def step(model, renewer, gradient):
    """Follow up a step that changed nothing, with gradients of which each row has one value."""
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model[0].weight.grad = torch.tensor(gradient, dtype=torch.float64).unsqueeze(1).expand(4, 3).clone()
    before = model[0].weight.clone()
    renewer.renew(model, torch.optim.SGD(model.parameters(), lr=0.0))
    return [i for i in range(4) if not torch.equal(model[0].weight[i], before[i])]


@pytest.mark.parametrize(("tau", "expected"), [(0.0, [0]), (0.02, [0, 1]), (1.0, [0, 1, 2])])
def test_units_that_score_at_most_tau_are_renewed(tau, expected):
    # Magnitudes 0, 1, 50, 149 with mean 50.
    model = network()
    assert step(model, ReGraMa(model, tau=tau, every=1), [0.0, -1.0, 50.0, -149.0]) == expected


def test_gradients_of_the_latest_steps_are_averaged_and_older_ones_forgotten():
    model = network()
    renewer = ReGraMa(model, tau=0.1, every=4, steps=2)
    still, lively = [0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]
    assert [step(model, renewer, g) for g in (lively, lively, still, still)] == [[], [], [], [0]]
    assert [step(model, renewer, g) for g in (still, still, still, lively)] == [[], [], [], []]


def test_more_steps_than_there_are_between_two_looks_are_all_of_them():
    model = network()
    renewer = ReGraMa(model, tau=0.1, every=2, steps=64)
    assert [step(model, renewer, g) for g in ([0, 0, 0, 9], [0, 0, 9, 9], [0, 9, 9, 9], [0, 9, 9, 9])] == [
        [],
        [0, 1],
        [],
        [0],
    ]


def test_a_layer_without_any_gradient_stays():
    model = network()
    assert step(model, ReGraMa(model, every=1), [0.0] * 4) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_unit_whose_gradient_is_not_finite_stays_and_the_others_are_judged_without_it(bad):
    model = network()
    assert step(model, ReGraMa(model, tau=0.1, every=1), [0.0, 1.0, bad, 1.0]) == [0]


def test_without_gradients_it_is_refused_before_any_change():
    model = network()
    renewer = ReGraMa(model)
    with pytest.raises(ConfigError, match="the weight of '0' has no gradient"):
        ReGraMa(model, every=1).renew(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert renewer.step == 0


def test_where_gradients_do_not_count_they_are_not_looked_at():
    model = network()
    renewer = ReGraMa(model, every=10, steps=2)
    renewer.renew(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert renewer.step == 1 and not any(summed.any() for summed in renewer.magnitudes)
