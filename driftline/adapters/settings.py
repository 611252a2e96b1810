"""Settings of adapters, checked before anything is built: a message says what was given and what is possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from driftline.errors import ConfigError

Variant = Literal["paper", "released"]
"""Where an adapter's paper and its authors' code differ: which of them is followed."""


def between(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise unless a number is finite and from ``low`` to ``high``.

    Raises
    ------
    ConfigError

    Examples
    --------
    >>> between("rho", -1.0, 0)
    Traceback (most recent call last):
    driftline.errors.ConfigError: rho=-1.0: must be from 0 to inf, and finite
    """
    if not (math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{name}={value}: must be from {low:g} to {high:g}, and finite")


def above(name: str, value: float, low: float) -> None:
    """Raise unless a number is finite and above ``low``.

    Raises
    ------
    ConfigError
    """
    if not (math.isfinite(value) and value > low):
        raise ConfigError(f"{name}={value}: must be above {low:g}, and finite")


def at_least(name: str, value: int, low: int) -> None:
    """Raise unless a whole number is at least ``low``.

    Raises
    ------
    ConfigError
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name}={value!r}: must be a whole number of at least {low}")


def one_of(name: str, value: str, choices: Sequence[str] = ("paper", "released")) -> None:
    """Raise unless a value is one of the choices.

    Raises
    ------
    ConfigError
    """
    if value not in choices:
        raise ConfigError(f"{name}={value!r}: must be one of {', '.join(map(repr, choices))}")
