from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from driftline.errors import InputError
from driftline.plasticity import (
    gradient_norm,
    matrices,
    nonzero_share,
    sample_plasticity,
    total_norm,
    update_norm,
    weight_magnitude,
    weight_rank,
)
from tests.golden import golden

POOLS = {
    "weight_magnitude": weight_magnitude,
    "total_norm": total_norm,
    "l1": lambda tensors, **kw: total_norm(tensors, 1, **kw),
    "nonzero_share": nonzero_share,
    "update_norm": lambda tensors, **kw: update_norm(tensors, [t * t for t in tensors], **kw),
}


def tensors(*shapes, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.relu(torch.randn(shape, generator=rng)) for shape in shapes]


def test_all_entries_of_all_tensors_count_alike():
    weights = [torch.tensor([[3.0, -1.0], [0.0, 0.0]]), torch.tensor([-4.0])]
    assert weight_magnitude(weights) == 8 / 5
    assert total_norm(weights, 1) == 8
    assert total_norm(weights).item() == pytest.approx(math.sqrt(26))
    assert nonzero_share(weights) == 3 / 5


def test_large_and_small_entries_neither_overflow_nor_vanish():
    assert total_norm([torch.tensor([3e30]), torch.tensor([4e30])]).item() == pytest.approx(5e30, rel=1e-6)
    assert total_norm([torch.tensor([3e-30]), torch.tensor([4e-30])]).item() == pytest.approx(5e-30, rel=1e-6)


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_each_replica_has_what_it_has_alone(pool):
    many = tensors((3, 4, 5), (3, 4), (3, 2, 3, 2, 2))
    together = pool(many, replicas=3)
    assert together.shape == (3,)
    # the order of sums differs
    assert together.tolist() == pytest.approx([pool([t[i] for t in many]).item() for i in range(3)], rel=1e-12)


@pytest.mark.parametrize("pool", [*POOLS.values(), gradient_norm], ids=[*POOLS, "gradient_norm"])
def test_no_tensors_are_refused(pool):
    with pytest.raises(InputError, match="no tensors to measure"):
        pool([])


def test_matrices_are_weights_and_kernels_without_biases_and_norms():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 3))
    assert [tuple(w.shape) for w in matrices(model.parameters())] == [(2, 1, 3, 3), (3, 4)]
    assert [tuple(w.shape) for w in matrices([torch.ones(5, 3, 4), torch.ones(5, 3)], replicas=5)] == [(5, 3, 4)]


def test_only_gradients_that_there_are_count():
    layer = nn.Linear(2, 1)
    assert math.isnan(gradient_norm(layer.parameters()).item())
    layer.bias.requires_grad = False
    layer(torch.tensor([[3.0, 4.0]])).sum().backward()
    assert gradient_norm(layer.parameters()) == 5
    assert gradient_norm(layer.parameters(), order=1) == 7


def test_sparse_gradients_count_each_row_once():
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1, 1, 3])).sum().backward()
    assert gradient_norm(table.parameters()).item() == pytest.approx(math.sqrt(2 * 2**2 + 2 * 1**2))


def test_gradients_of_replicas_are_told_apart():
    weight = nn.Parameter(torch.ones(2, 3))
    assert gradient_norm([weight], replicas=2).isnan().tolist() == [True, True]
    weight.grad = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 7.0]])
    assert gradient_norm([weight], replicas=2).tolist() == [3, 7]


def test_gradients_that_are_not_finite_show():
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, float("inf")])
    assert gradient_norm([weight]) == float("inf")
    weight.grad = torch.tensor([1.0, float("nan")])
    assert math.isnan(gradient_norm([weight]).item())


def test_an_update_is_measured_over_all_parameters():
    assert update_norm([torch.zeros(1, 1), torch.ones(1)], [torch.full((1, 1), 3.0), torch.tensor([-3.0])]) == 5


def test_an_update_needs_the_same_parameters():
    with pytest.raises(InputError, match="1 tensors before the update, 2 after it"):
        update_norm([torch.zeros(1)], [torch.zeros(1)] * 2)


def test_the_rank_of_weights_is_the_share_of_the_highest_possible():
    assert weight_rank([torch.eye(3)[:2], torch.zeros(2, 2)]).item() == 0.5
    assert weight_rank([torch.stack([torch.eye(2), torch.ones(2, 2)])]).tolist() == [1, 0.5]
    with pytest.raises(InputError, match="no weight matrices"):
        weight_rank([])


def test_plasticity_is_the_share_of_the_loss_taken_away_within_zero_and_one():
    before = torch.tensor([2.0, 2.0, 2.0, 0.0, float("nan")])
    after = torch.tensor([0.5, 3.0, 0.0, 0.0, 1.0])
    found = sample_plasticity(before, after).tolist()
    assert found[:4] == [0.75, 0, 1, 1]
    assert math.isnan(found[4])


def test_a_tiny_loss_counts_as_a_hundred_millionth():
    assert sample_plasticity(torch.tensor(1e-12), torch.tensor(5e-9)).item() == pytest.approx(0.5)


def test_magnitudes_are_those_of_the_reference():
    arrays, _ = golden("metrics", "dormant_and_magnitude")
    layers = {k: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("weights/")}
    # float32 quantities: the tolerance stated with the record
    close = {"rel": 1e-6}
    assert weight_magnitude(layers.values()).item() == pytest.approx(float(arrays["average_weight_magnitude"]), **close)
    only = matrices(layers.values())
    means = [weight_magnitude([w]).item() for w in only]
    assert means == pytest.approx(arrays["weight_abs_mean_per_layer"].tolist(), **close)
    sums = [total_norm([w], 1).item() for w in only]
    assert sums == pytest.approx(arrays["weight_abs_sum_per_layer"].tolist(), **close)
