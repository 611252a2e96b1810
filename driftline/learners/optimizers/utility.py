"""The first-order step of UPGD on lists of tensors: utility traces, their gates, and the gated step.

Elsayed & Mahmood, "Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning" (ICLR 2024),
Algorithm 1. With u the utility trace, c = 1 - beta^t its bias correction and openness = 1 - sigmoid(scaled u):

1. ``trace_``: u <- beta u + (1 - beta) M, with M = -g w, or M = S w^2 / 2 - g w for a diagonal Hessian S.
2. ``global_scale``: 1 / (c eta), where eta is the largest corrected utility of the whole network
   (``variant="paper"``) or the largest uncorrected one (``"released"``); 0 where that is no number to divide by.
3. ``openness``: sigmoid(-u * scale), so 1/2 everywhere at scale 0.
4. ``gated_step_``: w <- (1 - lr decay) w - lr (g + sigma n) openness  (protecting), or
   w <- (1 - lr decay) w - lr (g + sigma n openness).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from driftline.learners.optimizers.passes import Factor, add_, add_product_, in_front, plus, scale_
from driftline.learners.replicas import Setting

FLOOR = 1e-12
"""Smallest norm that local utilities are divided by."""


def trace_(
    traces: list[Tensor],
    params: list[Tensor],
    grads: list[Tensor],
    keep: Factor,
    minus_take: Factor,
    curvatures: list[Tensor] | None = None,
) -> None:
    """Update traces of the utility -g w, or S w^2 / 2 - g w: ``keep`` is beta, ``minus_take`` beta - 1."""
    scale_(traces, keep)
    add_product_(traces, grads, params, minus_take)
    if curvatures is not None:
        half = [f / -2 for f in minus_take] if isinstance(minus_take, list) else minus_take / -2
        add_product_(traces, list(torch._foreach_mul(curvatures, params)), params, half)


def global_scale(
    traces: list[Tensor], corrections: Sequence[Setting], replicas: int | None, released: bool
) -> list[Tensor]:
    """Return for each trace what it is multiplied by before the sigmoid: 0-dim, or (R, 1, ...).

    The paper leaves open what happens when no utility is positive. Here the scale is then 0: no weight is known to
    be of use, so none is protected more than another. The released code divides by the signed maximum, which
    reverses the order when all are negative and gives NaN when it is 0 (here: scale 0 as well).
    """
    if replicas is None:
        highest = torch.stack(torch._foreach_max(traces))  # (tensors,), or (tensors, R)
    else:
        highest = torch.stack([t.amax(tuple(range(1, t.dim()))) if t.dim() > 1 else t for t in traces])
    correction = _stacked(corrections, highest)
    if isinstance(correction, Tensor):
        divisor = (highest if released else highest / correction).amax(0) * correction
    else:
        divisor = highest.amax(0) * (correction if released else 1.0)
    # Below the smallest normal number 1 / divisor is infinite. NaN is not larger than anything.
    usable = (divisor.abs() if released else divisor) >= torch.finfo(divisor.dtype).tiny
    scale = torch.where(usable, divisor.reciprocal(), 0.0)
    each = list(scale) if isinstance(correction, Tensor) else [scale] * len(traces)
    return each if replicas is None else [in_front(s, trace) for s, trace in zip(each, traces)]


def local_scale(
    traces: list[Tensor], corrections: Sequence[Setting], replicas: int | None, released: bool
) -> list[Tensor]:
    """Return for each trace one over the norm of each unit's utilities; a vector counts as one unit.

    A unit is a row of a matrix and a filter of a convolution; in the released code each row of each kernel.
    """
    lead = 0 if replicas is None else 1
    scales = []
    for trace, correction in zip(traces, corrections):
        own = trace.dim() - lead
        if own == 0:
            norm = trace.abs()
        else:
            inner = (-1,) if released or own == 1 else tuple(range(lead + 1, trace.dim()))
            norm = torch.linalg.vector_norm(trace, dim=inner, keepdim=True)
        floor = _stacked([correction], norm)
        low = FLOOR * (in_front(floor[0], norm) if isinstance(floor, Tensor) else floor)
        scales.append(norm.clamp_min(low).reciprocal())
    return scales


def openness(traces: list[Tensor], scales: list[Tensor]) -> list[Tensor]:
    """Return sigmoid(-trace * scale): the share of a step that each entry makes."""
    same = scales[0]
    if same.dim() == 0 and all(s is same for s in scales):
        gates = list(torch._foreach_mul(traces, same.neg()))
    else:
        gates = [trace * scale.neg() for trace, scale in zip(traces, scales)]
    torch._foreach_sigmoid_(gates)
    return gates


def gated_step_(
    params: list[Tensor],
    directions: list[Tensor],
    gates: list[Tensor],
    noise: list[Tensor] | None,
    *,
    keep: Factor,
    rate: Factor,
    sigma: Factor,
    noise_rate: Factor,
    protecting: bool,
) -> None:
    """Shrink by ``keep`` = 1 - lr decay, then step; ``rate`` = -lr and ``noise_rate`` = -lr sigma."""
    scale_(params, keep)
    if protecting:
        add_product_(params, directions if noise is None else plus(directions, noise, sigma), gates, rate)
        return
    add_(params, directions, rate)
    if noise is not None:
        add_product_(params, noise, gates, noise_rate)


def _stacked(settings: Sequence[Setting], like: Tensor) -> float | Tensor:
    """Return one number where all are the same one, otherwise (tensors,) or (tensors, R)."""
    many = next((len(s) for s in settings if isinstance(s, Sequence)), None)
    if many is not None:
        return like.new_tensor([s if isinstance(s, Sequence) else [s] * many for s in settings])
    first = settings[0]
    return first if all(s == first for s in settings) else in_front(like.new_tensor(settings), like)  # type: ignore[return-value]
