"""In-place passes over lists of tensors, with one factor for all or one tensor of factors for each (replicas)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from driftline.learners.replicas import Setting, spread

BLOCK = 2**18
"""Entries in a block."""

Factor = float | list[Tensor]
"""A number for all tensors, or for each tensor one that broadcasts against it."""


def combine(rule: Callable[..., float], *settings: Setting) -> Setting:
    """Apply a rule to settings, for each replica where any of them has one value for each.

    Examples
    --------
    >>> combine(lambda lr, decay: 1 - lr * decay, [0.5, 0.25], 0.5)
    [0.75, 0.875]
    """
    many = [len(s) for s in settings if isinstance(s, Sequence)]
    if not many:
        return rule(*settings)
    return [rule(*(s[r] if isinstance(s, Sequence) else s for s in settings)) for r in range(many[0])]


class Factors:
    """Makes factors of settings, and keeps the tensors that replicas need for them."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, value: Setting, tensors: Sequence[Tensor]) -> Factor:
        """Return a setting in the form that multiplies these tensors; a plain number stays one."""
        if not isinstance(value, Sequence):
            return value
        return [self._spread(tuple(value), t) for t in tensors]

    def each(self, values: Sequence[Setting], tensors: Sequence[Tensor]) -> Factor | list[float]:
        """Return factors of settings that may differ between tensors."""
        if all(v == values[0] for v in values):
            return self(values[0], tensors)
        found = [self(v, [t]) for v, t in zip(values, tensors)]
        return [f[0] if isinstance(f, list) else f for f in found]  # type: ignore[return-value]

    def _spread(self, value: tuple[float, ...], like: Tensor) -> Tensor:
        key = (value, like.dim(), like.dtype, like.device)
        if key not in self._made:
            if len(self._made) >= 256:  # what depends on the step is new each time
                self._made.clear()
            self._made[key] = spread(value, like)  # type: ignore[assignment]
        return self._made[key]


def in_front(numbers: Tensor, like: Tensor) -> Tensor:
    """Return one number for each replica in the form that multiplies a tensor with replicas in front."""
    return numbers.view(-1, *(1 for _ in range(like.dim() - 1)))


def is_on(value: Setting) -> bool:
    """Whether a setting is not zero, for any replica."""
    return any(v != 0 for v in value) if isinstance(value, Sequence) else value != 0


def scale_(tensors: list[Tensor], factor: Factor | list[float]) -> None:
    """Multiply in place; a factor of exactly one is no pass at all."""
    if isinstance(factor, list) or factor != 1:
        torch._foreach_mul_(tensors, factor)


def add_(tensors: list[Tensor], others: list[Tensor], factor: Factor) -> None:
    """Add ``factor * others`` in place."""
    if isinstance(factor, list):
        for t, other, f in zip(tensors, others, factor):
            t.addcmul_(other, f)
    else:
        torch._foreach_add_(tensors, others, alpha=factor)


def blend_(tensors: list[Tensor], others: list[Tensor], take: Factor) -> None:
    """Move by the share ``take`` towards the others in place."""
    if isinstance(take, list):
        for t, other, f in zip(tensors, others, take):
            t.lerp_(other, f)
    else:
        torch._foreach_lerp_(tensors, others, take)


def add_product_(tensors: list[Tensor], a: list[Tensor], b: list[Tensor], factor: Factor) -> None:
    """Add ``factor * a * b`` in place."""
    if isinstance(factor, list):
        for t, x, y, f in zip(tensors, a, b, factor):
            t.addcmul_(x * f, y)
    else:
        torch._foreach_addcmul_(tensors, a, b, value=factor)


def plus(tensors: list[Tensor], others: list[Tensor], factor: Factor) -> list[Tensor]:
    """Return ``tensors + factor * others``."""
    if isinstance(factor, list):
        return [torch.addcmul(t, other, f) for t, other, f in zip(tensors, others, factor)]
    return list(torch._foreach_add(tensors, others, alpha=factor))


def block_by_block(change: Callable[..., None], tensor: Tensor, *others: object) -> None:
    """Call ``change(tensor, *others)`` on blocks of rows that stay in the cache while several passes go over them.

    Tensors with as many rows are cut along; everything else goes to every call as it is.
    """
    rows = tensor.shape[0] if tensor.dim() else 1
    block = max(1, BLOCK * rows // max(1, tensor.numel()))
    if tensor.device.type != "cpu" or block >= rows:
        change(tensor, *others)
        return
    parts = [
        torch.split(o, block) if isinstance(o, Tensor) and o.dim() and o.shape[0] == rows else itertools.repeat(o)
        for o in (tensor, *others)
    ]
    for arguments in zip(*parts):
        change(*arguments)
