"""Settings that differ per replica: R independent runs in lockstep have a leading dimension R on every tensor."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from driftline.errors import ConfigError

Setting = float | Sequence[float]
"""One number for all replicas, or one for each."""
Seeds = int | Sequence[int]


def check_setting(
    name: str, value: Setting, replicas: int | None, low: float | None = None, high: float | None = None
) -> None:
    """Raise unless a setting is one number, or one for each of ``replicas``, within bounds.

    Raises
    ------
    ConfigError

    Examples
    --------
    >>> check_setting("lr", [0.1, 0.2], replicas=3)
    Traceback (most recent call last):
    driftline.errors.ConfigError: lr has 2 values, but there are 3 replicas; give one for each, or one for all
    """
    many = isinstance(value, Sequence)
    values = list(value) if isinstance(value, Sequence) else [value]
    if many and replicas is None:
        raise ConfigError(f"{name} has {len(values)} values, but there are no replicas; give one number, or replicas=")
    if many and len(values) != replicas:
        raise ConfigError(
            f"{name} has {len(values)} values, but there are {replicas} replicas; give one for each, or one for all"
        )
    for number in values:
        fits = isinstance(number, (int, float)) and not isinstance(number, bool) and number == number
        if not fits or (low is not None and number < low) or (high is not None and number > high):
            above = "" if low is None else f" of at least {low:g}"
            below = "" if high is None else f" and at most {high:g}"
            raise ConfigError(f"{name}={number!r}: must be a number{above}{below}")


def seeds_of(seed: Seeds, replicas: int | None) -> list[int]:
    """Return one seed for each replica.

    Raises
    ------
    ConfigError
        When there are not as many seeds as replicas, or one is no whole number.
    """
    many = isinstance(seed, Sequence)
    seeds = list(seed) if isinstance(seed, Sequence) else [seed]
    if many and replicas is None:
        raise ConfigError(f"seed has {len(seeds)} values, but there are no replicas; give one number, or replicas=")
    if len(seeds) != (replicas or 1):
        found = f"seed has {len(seeds)} values" if many else f"seed={seed}"
        raise ConfigError(f"{found} for {replicas} replicas; give one for each")
    for number in seeds:
        if not isinstance(number, Integral) or isinstance(number, bool):
            raise ConfigError(f"seed={number!r}: must be a whole number")
    return [int(number) for number in seeds]


def spread(value: Setting, like: Tensor) -> float | Tensor:
    """Return a setting in the form that multiplies a tensor with replicas in front: a number, or (R, 1, ...).

    Examples
    --------
    >>> spread([1.0, 2.0], torch.zeros(2, 3, 4)).shape
    torch.Size([2, 1, 1])
    >>> spread(0.5, torch.zeros(2, 3))
    0.5
    """
    if not isinstance(value, Sequence):
        return value
    numbers = torch.tensor(value, dtype=like.dtype, device=like.device)
    return numbers.view(-1, *(1 for _ in range(like.dim() - 1)))
