from __future__ import annotations

import math

import pytest
import torch

from driftline.errors import ConfigError
from driftline.learners.replicas import check_setting, seeds_of, spread


@pytest.mark.parametrize(
    ("value", "replicas"), [(0.5, None), (0, None), (0.5, 3), ([0.1, 0.2, 0.3], 3), ((1, 2), 2), ([0.5], 1)]
)
def test_a_number_for_all_or_one_for_each_replica_is_a_setting(value, replicas):
    check_setting("lr", value, replicas, low=0)


@pytest.mark.parametrize(
    ("value", "replicas", "message"),
    [
        ([0.1, 0.2], 3, "lr has 2 values, but there are 3 replicas; give one for each, or one for all"),
        ([0.1, 0.2], None, "lr has 2 values, but there are no replicas; give one number, or replicas="),
        ([], 2, "lr has 0 values"),
        (-0.1, None, "lr=-0.1: must be a number of at least 0 and at most 1"),
        ([0.1, 1.5], 2, "lr=1.5: must be a number of at least 0 and at most 1"),
        (math.nan, None, "lr=nan: must be a number"),
        (math.inf, None, "lr=inf"),
        ("fast", 4, "lr="),
        ([0.1, "fast"], 2, "lr='fast': must be a number"),
        (True, None, "lr=True: must be a number"),
        (None, None, "lr=None: must be a number"),
    ],
)
def test_other_values_are_named(value, replicas, message):
    with pytest.raises(ConfigError, match=message):
        check_setting("lr", value, replicas, low=0, high=1)


def test_bounds_may_be_open_on_either_side():
    check_setting("shift", -5.0, None)
    with pytest.raises(ConfigError, match=r"shift=-5.0: must be a number of at least 0$"):
        check_setting("shift", -5.0, None, low=0)
    with pytest.raises(ConfigError, match=r"shift=5.0: must be a number and at most 0$"):
        check_setting("shift", 5.0, None, high=0)


@pytest.mark.parametrize(
    ("seed", "replicas", "expected"), [(4, None, [4]), (4, 1, [4]), ([4], 1, [4]), ((4, 5), 2, [4, 5])]
)
def test_every_replica_has_a_seed(seed, replicas, expected):
    assert seeds_of(seed, replicas) == expected


@pytest.mark.parametrize(
    ("seed", "replicas", "message"),
    [
        (4, 2, "seed=4 for 2 replicas; give one for each"),
        ([4, 5], 3, "seed has 2 values for 3 replicas; give one for each"),
        ([4], None, "seed has 1 values, but there are no replicas"),
        (True, None, "seed=True: must be a whole number"),
        (0.5, None, "seed=0.5: must be a whole number"),
        ([1, 0.5], 2, "seed=0.5: must be a whole number"),
    ],
)
def test_other_seeds_are_named(seed, replicas, message):
    with pytest.raises(ConfigError, match=message):
        seeds_of(seed, replicas)


def test_a_plain_number_stays_one():
    assert spread(0.5, torch.zeros(2, 3)) == 0.5
    assert isinstance(spread(0.5, torch.zeros(2, 3)), float)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 4, 5, 6)])
def test_settings_of_replicas_multiply_each_its_own_slice(shape):
    like = torch.ones(shape, dtype=torch.float64)
    factor = spread([3.0, 5.0], like)
    assert factor.dtype == torch.float64
    assert factor.dim() == like.dim()
    product = like * factor
    assert product.shape == like.shape
    assert (product[0] == 3).all()
    assert (product[1] == 5).all()
