from __future__ import annotations

import math

import pytest
import torch

from driftline import native
from driftline.learners.draws import Draws, split
from driftline.learners.optimizers.utility import gated_step_, global_scale, local_scale, openness, trace_

pytestmark = pytest.mark.skipif(not native.available(), reason="no C compiler here, or switched off")

SHAPES = [(7, 33), (7,), (5, 7), (5,), (2, 3, 3, 3), ()]


def test_kernels_take_contiguous_float32_on_the_cpu_only():
    x = torch.zeros(4, 3)
    assert native.fits(x, x[0])
    assert not native.fits(x, x.double())
    assert not native.fits(x.T)
    assert not native.fits(x.to_sparse())
    assert not native.fits(x.to("meta"))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 8), (9, 17), (30, 5, 20), (2, 130, 33), (1, 0), (0, 4)])
def test_absolute_sums_are_those_of_rows_and_columns(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows, columns = native.absolute_sums(weight)
    # At most 130 float32 additions, in another order.
    torch.testing.assert_close(rows, weight.abs().sum(-1), rtol=3e-6, atol=1e-6)
    torch.testing.assert_close(columns, weight.abs().sum(-2), rtol=3e-6, atol=1e-6)


def test_absolute_sums_keep_what_is_not_finite_where_it_is():
    weight = torch.ones(9, 20)
    weight[2, 3], weight[8, 19] = math.nan, -math.inf
    rows, columns = native.absolute_sums(weight)
    assert rows.isnan().nonzero().flatten().tolist() == [2]
    assert columns.isnan().nonzero().flatten().tolist() == [3]
    assert rows[8] == columns[19] == math.inf


class Case:
    """Parameters with gradients and traces, and settings of each replica."""

    def __init__(self, replicas, shapes=SHAPES, **changed):
        generator = torch.Generator().manual_seed(3)
        lead, many = (() if replicas is None else (replicas,)), replicas or 1
        self.replicas = replicas
        self.params, self.grads, self.traces = (
            [torch.randn((*lead, *s), generator=generator) * 0.3 for s in shapes] for _ in range(3)
        )
        self.settings = {
            "beta": [0.9 + 0.01 * r for r in range(many)],
            "correction": [0.3 + 0.1 * r for r in range(many)],
            "keep": [0.999 - 0.1 * r for r in range(many)],
            "rate": [0.05 + 0.01 * r for r in range(many)],
            "sigma": [0.2 + 0.1 * r for r in range(many)],
        } | changed
        self.draws = Draws([5 + r for r in range(many)], "upgd", many)

    def reference(self, released=False, protecting=True, local=False):
        """Step copies with the operations in PyTorch; return parameters and traces."""
        params, traces = ([t.clone() for t in ts] for ts in (self.params, self.traces))
        many = self.replicas is not None

        def factors(values):
            each = [torch.tensor(values).view(-1, *(1 for _ in p.shape[1:])) for p in params]
            return each if many else values[0]

        given = self.settings
        trace_(traces, params, self.grads, factors(given["beta"]), factors([b - 1 for b in given["beta"]]))
        corrections = [given["correction"] if many else given["correction"][0]] * len(params)
        scale = local_scale if local else global_scale
        gates = openness(traces, scale(traces, corrections, self.replicas, released))
        count = sum(p.numel() for p in params) // (self.replicas or 1)
        drawn = self.draws.normal(9, count, lane=2)
        gated_step_(
            params,
            self.grads,
            gates,
            split(drawn if many else drawn[0], params, many) if any(given["sigma"]) else None,
            keep=factors(given["keep"]),
            rate=factors([-r for r in given["rate"]]),
            sigma=factors(given["sigma"]),
            noise_rate=factors([-r * s for r, s in zip(given["rate"], given["sigma"])]),
            protecting=protecting,
        )
        return params, traces

    def step(self, **how):
        """Step in place with the kernel."""
        native.upgd_step(
            self.params,
            self.grads,
            self.traces,
            **self.settings,
            keys=self.draws.keys,
            step=9,
            lane=2,
            replicas=self.replicas,
            **how,
        )
        return self.params, self.traces


def assert_agree(found, expected):
    for ours, theirs in zip(found, expected):
        for a, b in zip(ours, theirs):
            # float32 rounding of a dozen operations on numbers of about 1.
            torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("replicas", [None, 1, 3])
@pytest.mark.parametrize("protecting", [True, False])
@pytest.mark.parametrize("released", [True, False])
def test_a_step_is_that_of_the_operations_in_pytorch(replicas, protecting, released):
    case = Case(replicas)
    expected = case.reference(released=released, protecting=protecting)
    assert_agree(case.step(released=released, protecting=protecting), expected)


@pytest.mark.parametrize("replicas", [None, 3])
@pytest.mark.parametrize("protecting", [True, False])
def test_units_may_be_scaled_by_their_own_norms(replicas, protecting):
    case = Case(replicas, SHAPES[:4])
    expected = case.reference(protecting=protecting, local=True)
    assert_agree(case.step(protecting=protecting, units=[s[-1] for s in SHAPES[:4]]), expected)


@pytest.mark.parametrize("sigma", [[0.0], [0.0, 0.0, 0.5]])
def test_noise_of_strength_zero_changes_nothing(sigma):
    replicas = len(sigma) if len(sigma) > 1 else None
    case, quiet = Case(replicas, sigma=sigma), Case(replicas, sigma=[0.0] * len(sigma))
    for a, b in zip(case.step()[0], quiet.step()[0]):
        assert torch.equal(a, b) if replicas is None else torch.equal(a[:2], b[:2])


def test_a_replica_steps_as_it_would_alone():
    together = Case(3)
    alone = Case(3)
    alone.params, alone.grads, alone.traces = (
        [t[1].clone() for t in ts] for ts in (alone.params, alone.grads, alone.traces)
    )
    alone.settings = {name: values[1:2] for name, values in alone.settings.items()}
    alone.draws, alone.replicas = Draws(6, "upgd"), None
    for a, b in zip(together.step()[0], alone.step()[0]):
        assert torch.equal(a[1], b)


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-42], ids=["zero", "negative", "tiny"])
def test_utilities_that_cannot_be_divided_by_are_treated_alike(released, scale):
    case = Case(2, sigma=[0.0, 0.0])
    case.grads = [torch.zeros_like(g) for g in case.grads]
    case.traces = [t.abs() * scale for t in case.traces]
    expected = case.reference(released=released)
    assert_agree(case.step(released=released), expected)
    assert all(p.isfinite().all() for p in case.params)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 40, 230])
def test_a_gradient_that_is_not_finite_does_what_it_does_in_pytorch(bad, place):
    case = Case(2)
    case.grads[0].view(2, -1)[1, place] = bad
    expected = case.reference()
    found = case.step()
    assert_agree([[t[0] for t in ts] for ts in found], [[t[0] for t in ts] for ts in expected])
    for a, b in zip(*(parts[0] for parts in (found, expected))):
        assert torch.equal(a.isfinite(), b.isfinite())
        torch.testing.assert_close(a[b.isfinite()], b[b.isfinite()], rtol=2e-6, atol=1e-6)


def test_many_steps_stay_close():
    case = Case(None)
    for _ in range(200):
        expected = case.reference()
        assert_agree(case.step(), expected)
