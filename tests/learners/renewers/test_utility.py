from __future__ import annotations

import pytest
import torch
from torch import nn

from driftline import native
from driftline.learners.lockstep.modules import stack_models
from driftline.learners.renewers import find_unit_groups
from driftline.learners.renewers.utility import absolute_sums, incoming, instantaneous, outgoing


def linear():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Conv2d(3, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)
    ).double()


def test_the_formulas_of_linear_units():
    model = linear()
    (group,) = find_unit_groups(model)
    h = torch.randn(7, 5, dtype=torch.float64)
    f = torch.randn(5, dtype=torch.float64)
    out, into = model[2].weight.detach().abs().mean(0), model[0].weight.detach().abs().mean(1)
    expected = {
        "weight": out,
        "contribution": out * h.abs().mean(0),
        "zero_contribution": out * (h - f).abs().mean(0),
        "adaptable_contribution": out * (h - f).abs().mean(0) / into,
        "adaptation": 1 / into,
        "feature_by_input": (h - f).abs().mean(0) / into,
    }
    for kind, utility in expected.items():
        # Sums in another order differ in the last digits.
        torch.testing.assert_close(instantaneous(kind, group, h, f).detach(), utility, rtol=1e-12, atol=0)


def test_a_channels_pixels_are_samples_of_it():
    model = convolutional()
    group = find_unit_groups(model)[0]
    h = torch.randn(6, 3, 3, 3, dtype=torch.float64)
    utility = instantaneous("contribution", group, group.samples(h), torch.zeros(3))
    expected = h.abs().mean((0, 2, 3)) * model[2].weight.detach().abs().mean((0, 2, 3))
    torch.testing.assert_close(utility.detach(), expected, rtol=1e-12, atol=0)


def test_a_flattened_channel_contributes_through_each_of_its_columns():
    model = convolutional()
    group = find_unit_groups(model)[1]
    h = torch.randn(6, 16, dtype=torch.float64)
    f = torch.randn(4, dtype=torch.float64)
    each = (h - f.repeat_interleave(4)).abs().mean(0) * model[5].weight.detach().abs().mean(0)
    utility = instantaneous("zero_contribution", group, group.samples(h), f)
    torch.testing.assert_close(utility.detach(), each.view(4, 4).mean(1), rtol=1e-12, atol=0)


def test_several_hearers_count_with_all_their_weights():
    one, other = nn.Linear(5, 3), nn.Linear(5, 1)

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.one, self.other = nn.Linear(4, 5), one, other

        def forward(self, x):
            x = torch.relu(self.body(x))
            return self.one(x), self.other(x)

    (group,) = find_unit_groups(Heads())
    both = torch.cat((one.weight, other.weight)).abs()
    torch.testing.assert_close(outgoing(group), both.sum(0))
    assert group.out_weights == 4


@pytest.mark.parametrize("make", [linear, convolutional])
@pytest.mark.parametrize("kind", ["contribution", "adaptable_contribution", "adaptation", "weight"])
def test_each_replica_has_the_utilities_of_its_model(make, kind):
    singles = [make() for _ in range(3)]
    stacked = find_unit_groups(stack_models(singles))
    for number, group in enumerate(stacked):
        own = [find_unit_groups(single)[number] for single in singles]
        size = group.units * group.out_repeat
        samples = torch.randn(3, 7, size, dtype=torch.float64)
        mean = torch.randn(3, group.units, dtype=torch.float64)
        together = instantaneous(kind, group, samples, mean)
        each = [instantaneous(kind, g, h, f) for g, h, f in zip(own, samples, mean)]
        torch.testing.assert_close(together, torch.stack(each), rtol=1e-12, atol=0)


@pytest.mark.skipif(not native.available(), reason="the kernels cannot be built here")
@pytest.mark.parametrize("shape", [(400, 500), (3, 220, 230)])
def test_the_kernel_sums_as_torch_does(shape):
    weight = torch.randn(shape)
    # float32 sums of some hundred numbers around 1 in another order
    torch.testing.assert_close(absolute_sums(weight), weight.abs().sum(-2), rtol=1e-5, atol=0)


def test_incoming_weights_of_large_layers():
    model = nn.Sequential(nn.Linear(500, 400), nn.ReLU(), nn.Linear(400, 2))
    (group,) = find_unit_groups(model)
    torch.testing.assert_close(incoming(group), model[0].weight.abs().mean(1), rtol=1e-5, atol=0)
