from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from driftline.learners.lockstep.modules import stack_models
from driftline.learners.renewers import UnitGroup, find_unit_groups
from driftline.learners.renewers.initialization import bound


def group(activation):
    return UnitGroup(nn.Linear(6, 8), (nn.Linear(8, 3),), activation=activation)


@pytest.mark.parametrize("activation", ["linear", "sigmoid", "tanh", "relu", "leaky_relu"])
def test_kaiming_has_torchs_gains(activation):
    gain = nn.init.calculate_gain(activation)
    assert bound(group(activation), "kaiming") == pytest.approx(gain * math.sqrt(3 / 6), rel=1e-15)
    assert bound(group(activation), "xavier") == pytest.approx(gain * math.sqrt(6 / (6 + 8)), rel=1e-15)


@pytest.mark.parametrize("activation", ["silu", "elu", "gelu"])
def test_other_activations_count_as_relu(activation):
    assert bound(group(activation), "kaiming") == bound(group("relu"), "kaiming")


def test_selu_always_takes_lecun():
    assert bound(group("selu"), "kaiming") == bound(group("relu"), "lecun") == math.sqrt(3 / 6)


def test_default_is_how_torch_draws_linear_layers():
    largest = nn.Linear(6, 10000).weight.abs().max().item()
    assert (
        largest == pytest.approx(bound(group("relu"), "default"), rel=1e-3)
        and bound(group("relu"), "default") > largest
    )


def test_convolutions_count_their_kernel_and_the_released_code_gives_them_default():
    one = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 1, 3))
    conv = find_unit_groups(one)[0]
    assert bound(conv, "kaiming") == pytest.approx(math.sqrt(2 * 3 / 18), rel=1e-15)
    assert bound(conv, "xavier") == pytest.approx(math.sqrt(2 * 6 / (18 + 45)), rel=1e-15)
    assert bound(conv, "kaiming", released=True) == bound(conv, "default") == math.sqrt(1 / 18)
    stacked = find_unit_groups(stack_models([one, one]))[0]
    assert [bound(stacked, i) for i in ("kaiming", "xavier", "default", "lecun")] == [
        bound(conv, i) for i in ("kaiming", "xavier", "default", "lecun")
    ]
    assert torch.is_tensor(one[0].weight)
