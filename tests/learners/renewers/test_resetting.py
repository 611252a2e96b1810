from __future__ import annotations

import pytest
import torch
from torch import nn

from driftline.learners.lockstep.modules import stack_models
from driftline.learners.renewers import find_unit_groups
from driftline.learners.renewers.resetting import compensate, reset_units
from driftline.learners.renewers.unit_state import Chosen


def linear(bias=True):
    return nn.Sequential(
        nn.Linear(4, 5, bias), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3, bias), nn.Tanh(), nn.Linear(3, 2, bias)
    ).double()


def flattened():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 2)
    ).double()


def scrambled(model):
    """Give every parameter and buffer values that no reset would."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(2 + torch.rand_like(tensor))
    return model


@pytest.mark.parametrize("make", [linear, flattened])
def test_units_are_fresh_and_silent_and_the_others_as_they_were(make):
    model = scrambled(make())
    group = find_unit_groups(model)[0]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    rows = torch.rand(2, group.in_module.weight[0].numel(), dtype=torch.float64)
    reset_units(group, Chosen(torch.tensor([2, 0])), rows)
    assert torch.equal(group.in_module.weight[[2, 0]].flatten(1), rows)
    assert not group.in_module.bias[[0, 2]].any()
    expected = dict(before)
    for name in ("0.weight", "0.bias"):
        expected[name][[0, 2]] = model.state_dict()[name][[0, 2]]
    for name, fresh in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
        expected[f"1.{name}"][[0, 2]] = fresh
    columns = torch.tensor([[0, 2], [0, 1, 2, 3, 8, 9, 10, 11]][make is flattened])
    if make is flattened:
        expected["4.weight"][columns], expected["4.bias"][columns] = 1, 0
    expected["5.weight" if make is flattened else "3.weight"][:, columns] = 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_layers_without_bias_have_none_to_reset_or_to_compensate():
    model = scrambled(linear(bias=False))
    group = find_unit_groups(model)[0]
    chosen = Chosen(torch.tensor([1]))
    compensate(group, chosen, torch.ones(1, dtype=torch.float64))
    reset_units(group, chosen, torch.zeros(1, 4, dtype=torch.float64))
    assert not model[3].weight[:, 1].any()


@pytest.mark.parametrize("make", [linear, flattened])
def test_compensation_is_what_the_units_say_on_average(make):
    model = scrambled(make())
    group = find_unit_groups(model)[0]
    hearer = group.out_module
    means = torch.tensor([0.5, -2.0], dtype=torch.float64)
    heard = torch.zeros(group.units, group.out_repeat, dtype=torch.float64)
    heard[[2, 0]] = means.unsqueeze(1)
    expected = hearer(heard.flatten())
    compensate(group, Chosen(torch.tensor([2, 0])), means)
    # a sum in another order
    torch.testing.assert_close(hearer.bias, expected, rtol=1e-14, atol=0)


def test_a_convolution_hears_a_constant_channel_everywhere_inside():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 3)).double()
    (group,) = find_unit_groups(model)
    image = torch.zeros(1, 3, 5, 5, dtype=torch.float64)
    image[:, 1] = 0.7
    expected = model[2](image)[0, :, 0, 0]
    compensate(group, Chosen(torch.tensor([1])), torch.tensor([0.7], dtype=torch.float64))
    torch.testing.assert_close(model[2].bias, expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("make", [linear, flattened])
def test_replicas_reset_their_own_units(make):
    singles = [scrambled(make()) for _ in range(3)]
    stacked = stack_models(singles)
    group = find_unit_groups(stacked)[0]
    units, counts = torch.tensor([[1, 0], [2, 1], [0, 2]]), torch.tensor([[True, True], [True, False], [False, False]])
    rows = torch.rand(3, 2, group.in_module.weight[0, 0].numel(), dtype=torch.float64)
    means = torch.rand(3, 2, dtype=torch.float64)
    compensate(group, Chosen(units, counts), means)
    reset_units(group, Chosen(units, counts), rows)
    for r, single in enumerate(singles):
        own, some = find_unit_groups(single)[0], counts[r]
        compensate(own, Chosen(units[r][some]), means[r][some])
        reset_units(own, Chosen(units[r][some]), rows[r][some])
        for name, tensor in single.state_dict().items():
            # a sum in another order
            torch.testing.assert_close(stacked.state_dict()[name][r], tensor, rtol=1e-14, atol=0)
