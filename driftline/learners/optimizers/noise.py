"""Gaussian noise for a list of parameters: a fresh draw each step, or a pool drawn once and cycled through."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from driftline.learners.draws import Draws, split

POOL = 64
"""Draws in a pool."""
POOL_LANE = 1
"""Part of the address that keeps a pool's draws apart from fresh ones."""


def flat_normal(draws: Draws, step: int, tensors: Sequence[Tensor], replicas: int | None, lane: int = 0) -> Tensor:
    """Return one draw for all tensors together, (n,) or (R, n)."""
    first = tensors[0]
    count = sum(t.numel() for t in tensors) // (replicas or 1)
    return draws.normal(step, count, lane, device=first.device, dtype=first.dtype)


def cut(flat: Tensor, tensors: Sequence[Tensor], replicas: int | None) -> list[Tensor]:
    """Return a draw's parts in the shapes of the tensors, on their devices."""
    return [part.to(t) for part, t in zip(split(flat, tensors, replicas is not None), tensors)]


class NoisePool:
    """:data:`POOL` draws of which step t uses number t modulo POOL, so that a step costs no random numbers.

    A pool holds POOL numbers for each parameter. It is no state: the draws are made again from their addresses.
    """

    def __init__(self) -> None:
        self._made: list[Tensor | None] = [None] * POOL
        self._source: Draws | None = None

    def flat(self, draws: Draws, step: int, tensors: Sequence[Tensor], replicas: int | None) -> Tensor:
        """Return the step's draw, (n,) or (R, n)."""
        if draws is not self._source:
            self._made, self._source = [None] * POOL, draws
        number, first = step % POOL, tensors[0]
        count = sum(t.numel() for t in tensors) // (replicas or 1)
        made = self._made[number]
        if made is None or made.shape[-1] != count or made.device != first.device or made.dtype != first.dtype:
            made = self._made[number] = flat_normal(draws, number, tensors, replicas, POOL_LANE)
        return made

    def __reduce__(self) -> tuple[type[NoisePool], tuple[()]]:
        """Let copies and pickles begin empty."""
        return NoisePool, ()
