"""UPGD's first-order step with utilities of weights as one kernel in C, where it applies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from driftline import native
from driftline.learners.draws import Draws
from driftline.learners.optimizers.base import Ready
from driftline.learners.replicas import Setting

if TYPE_CHECKING:
    from driftline.learners.optimizers.upgd import UPGD


def fused_step(optimizer: UPGD, ready: list[Ready]) -> bool:
    """Make the whole step with ``native.upgd_step`` and return True, or do nothing and return False.

    The kernel makes what :mod:`driftline.learners.optimizers.utility` describes, for one group of parameters, with
    ``Draws.normal(step, count)`` over all of them in their order as noise.
    """
    if not native.available() or not _applies(optimizer, ready):
        return False
    part = ready[0]
    traces = part.tensors("utility")
    part.tick()
    replicas, draws = optimizer.replicas or 1, optimizer.draws
    lr, sigma, beta, decay = (
        _each(part.group[name], replicas) for name in ("lr", "sigma", "beta_utility", "weight_decay")
    )
    assert isinstance(draws, Draws)
    released = optimizer.variant != "paper"
    lead = 0 if optimizer.replicas is None else 1
    native.upgd_step(
        part.params,
        part.grads,
        traces,
        beta=beta,
        correction=[1 - b ** part.counts[0] for b in beta],
        keep=[1 - r * d for r, d in zip(lr, decay)],
        rate=[optimizer.stretch * r for r in lr],
        sigma=sigma,
        keys=draws.keys,
        step=optimizer.steps,
        released=released,
        protecting=optimizer.protecting,
        units=[_unit(p, lead, released) for p in part.params] if optimizer.scaling == "local" else None,
        replicas=optimizer.replicas,
    )
    return True


def _applies(optimizer: UPGD, ready: list[Ready]) -> bool:
    plain = (
        optimizer.order == 1
        and optimizer.scope == "weight"
        and optimizer.noise == "fresh"
        and not optimizer.moments
        and isinstance(optimizer.draws, Draws)
        and len(ready) == 1
    )
    if not plain or len({state.get("step", 0) for state in ready[0].states}) > 1:
        return False
    return native.fits(*ready[0].params, *ready[0].grads, *ready[0].tensors("utility"))


def _unit(p: Tensor, lead: int, released: bool) -> int:
    """Return how many utilities share a norm, as :func:`driftline.learners.optimizers.utility.local_scale` says."""
    own = p.shape[lead:]
    if len(own) < 2:
        return math.prod(own)
    return own[-1] if released else math.prod(own[1:])


def _each(value: Setting, replicas: int) -> list[float]:
    return list(value) if isinstance(value, Sequence) else [value] * replicas
