"""How many weights layers keep, and which are exchanged."""

import pytest
import torch

from driftline.errors import ConfigError
from driftline.learners.renewers.sparsity import erdos_renyi_kernel, exchange, kept, share_at, uniform

SHAPES = {"first": (300, 784), "second": (100, 300), "third": (10, 100)}


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("allocate", [erdos_renyi_kernel, uniform])
def test_densities_add_up_to_the_one_asked_for(allocate, density):
    sizes = {name: a * b for name, (a, b) in SHAPES.items()}
    found = allocate(SHAPES, density)
    assert sum(found[name] * size for name, size in sizes.items()) == pytest.approx(density * sum(sizes.values()))
    assert all(0 < share <= 1 + 1e-9 for share in found.values())


def test_small_layers_stay_denser_and_are_kept_whole_where_they_would_overflow():
    found = erdos_renyi_kernel(SHAPES, 0.2)
    assert found["first"] < found["second"] < found["third"] == 1.0


def test_below_the_overflow_densities_are_proportional_to_the_sum_over_the_product():
    found = erdos_renyi_kernel(SHAPES, 0.05)
    assert found["first"] / found["second"] == pytest.approx((1084 / (300 * 784)) / (400 / (100 * 300)))


def test_a_layer_that_would_keep_nothing_is_refused_by_name():
    with pytest.raises(ConfigError, match="leaves none of the 1000 weights of 'third'"):
        kept(SHAPES, 1e-4, "uniform")
    assert kept(SHAPES, 1e-3, "erk")["third"] > 0


def test_the_share_falls_along_half_a_cosine_and_then_stops():
    shares = [share_at(step, 0.5, 0.1, 10) for step in range(13)]
    assert shares[0] == 0.5 and shares[5] == pytest.approx(0.3) and shares[10] == pytest.approx(0.1)
    assert shares[11:] == [0, 0]
    assert share_at(10**6, 0.5, 0.1, None) == 0.5


def test_the_smallest_are_dropped_and_the_most_wanted_grown():
    mask = torch.tensor([[True, True, True, False, False], [True, False, True, False, True]])
    size = torch.tensor([[0.3, 0.1, 0.2, 0.0, 0.0], [5.0, 0.0, 0.1, 0.0, 0.2]])
    wanted = torch.tensor([[0.0, 0.0, 0.0, 1.0, 2.0], [9.0, 1.0, 3.0, 2.0, 9.0]])
    found = exchange(mask, size, wanted, 1)
    assert found.tolist() == [[True, False, True, False, True], [True, False, True, False, True]]  # one comes back
