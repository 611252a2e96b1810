from __future__ import annotations

import math

import pytest
import torch

from driftline.plasticity import approximate_rank, effective_rank, singular_values, srank, stable_rank
from tests.golden import golden

RANKS = {
    "effective": effective_rank,
    "stable": stable_rank,
    "srank": srank,
    "approximate": approximate_rank,
}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_values_of_a_matrix_come_in_descending_order():
    assert singular_values(torch.diag(torch.tensor([1.0, -3.0, 2.0]))).tolist() == pytest.approx([3, 2, 1])


@pytest.mark.parametrize("rank", RANKS.values(), ids=RANKS)
def test_the_identity_has_full_rank(rank):
    assert rank(singular_values(torch.eye(5))).item() == pytest.approx(5)


@pytest.mark.parametrize("rank", RANKS.values(), ids=RANKS)
def test_one_direction_has_rank_one(rank):
    outer = torch.arange(1.0, 5).outer(torch.arange(1.0, 4)).double()
    assert rank(singular_values(outer)).item() == pytest.approx(1)


@pytest.mark.parametrize("rank", RANKS.values(), ids=RANKS)
def test_a_matrix_of_zeros_has_rank_zero(rank):
    assert rank(singular_values(torch.zeros(4, 3))).item() == 0


@pytest.mark.parametrize("rank", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite_has_no_rank_and_does_not_touch_the_others(rank, bad):
    matrices = random(3, 6, 4)
    broken = matrices.clone()
    broken[1, 2, 2] = bad
    found, whole = rank(singular_values(broken)).tolist(), rank(singular_values(matrices)).tolist()
    assert math.isnan(found[1])
    assert [found[0], found[2]] == pytest.approx([whole[0], whole[2]])


@pytest.mark.parametrize("rank", RANKS.values(), ids=RANKS)
def test_leading_dimensions_are_kept(rank):
    matrices = random(2, 3, 6, 4)
    together = rank(singular_values(matrices))
    alone = [[rank(singular_values(m)).item() for m in row] for row in matrices]
    assert together.shape == (2, 3)
    # batched singular values differ in rounding
    torch.testing.assert_close(together, torch.tensor(alone, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("rank", RANKS.values(), ids=RANKS)
def test_scale_does_not_matter(rank):
    values = singular_values(random(6, 4))
    assert rank(1e-150 * values).item() == pytest.approx(rank(values).item())
    assert rank(1e150 * values).item() == pytest.approx(rank(values).item())


def test_half_precision_features_are_measured():
    assert effective_rank(singular_values(torch.eye(3, dtype=torch.bfloat16))).item() == pytest.approx(3)


def test_delta_is_the_share_left_out():
    values = torch.tensor([6.0, 3.0, 1.0], dtype=torch.float64)
    assert [srank(values, d).item() for d in (0.5, 0.3, 0.05)] == [1, 2, 3]
    assert [approximate_rank(values, d).item() for d in (0.3, 0.1, 0.01)] == [1, 2, 3]


# --- recorded cases


def tolerance(features):
    """As stated with the records."""
    return 1e-9 if features.dtype == torch.float64 else 1e-4


@pytest.mark.parametrize("case", ["rank_metrics", "rank_metrics_f32"])
def test_ranks_are_those_of_the_reference(case):
    arrays, config = golden("metrics", case)
    names = [k.removeprefix("matrix/") for k in arrays if k.startswith("matrix/")]
    assert len(names) == 9
    for name in names:
        features = torch.from_numpy(arrays[f"matrix/{name}"])
        values = singular_values(features)
        close = {"rel": tolerance(features), "abs": tolerance(features)}
        assert values.tolist() == pytest.approx(arrays[f"singular_values/{name}"].tolist(), **close)
        if name == "zeros":
            # undefined; the reference's comparisons with NaN give 1, here it is 0 throughout
            continue
        assert effective_rank(values).item() == pytest.approx(float(arrays[f"post_effective_rank/{name}"]), **close)
        for backend in ("scipy", "torch"):
            # the reference rounds to float32
            found = float(arrays[f"effective_rank_{backend}/{name}"])
            assert effective_rank(values).item() == pytest.approx(found, rel=max(1e-5, close["rel"]))
            for prop in config["props"]:
                key = f"approximate_rank_{backend}_p{prop}/{name}"
                assert approximate_rank(values, 1 - prop).item() == int(arrays[key]), key
                assert srank(values, 1 - prop).item() == int(arrays[f"abs_{key}"]), key
        assert srank(values).item() == int(arrays[f"post_stable_rank/{name}"])
        assert srank(values).item() == int(arrays[f"def_srank_delta0.01/{name}"])
        assert stable_rank(values).item() == pytest.approx(float(arrays[f"def_stable_rank_frobenius/{name}"]), **close)
