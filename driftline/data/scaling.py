"""Inputs in [0, 1] moved to another range, as several published benchmarks have them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from driftline.errors import ConfigError, DataError
from driftline.stream.dataset import Dataset, as_input


def scale(data: Dataset, low: float, high: float) -> Dataset:
    """Return a float dataset whose inputs are moved from [0, 1] to [low, high], and those of its splits with them.

    Parameters
    ----------
    data : Dataset
        Image bytes (0 to 255), or floating point in [0, 1].
    low, high : float
        What 0 and 1 become. The usual (-1, 1) is torchvision's ``Normalize(0.5, 0.5)``; ``Normalize(m, s)`` is
        ``(-m / s, (1 - m) / s)``.

    Raises
    ------
    ConfigError
        When low is not below high.
    DataError
        When inputs are not in [0, 1].

    Examples
    --------
    >>> import torch
    >>> scale(Dataset(torch.tensor([[0, 255]], dtype=torch.uint8)), -1, 1).x.tolist()
    [[-1.0, 1.0]]
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"input_range=({low!r}, {high!r}): give two finite numbers, the lower one first")
    splits = {key: replace(split, x=_moved(split, low, high)) for key, split in data.splits.items()}
    source = {**data.source, "input_range": [low, high]} if data.source else {}
    return replace(data, x=_moved(data, low, high), splits=splits, source=source)


def both_ends(input_range: object) -> tuple[float, float]:
    """Return the two numbers of a range.

    Raises
    ------
    ConfigError
    """
    if isinstance(input_range, Sequence) and len(input_range) == 2 and not isinstance(input_range, str):
        low, high = input_range
        if all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in (low, high)):
            return low, high
    raise ConfigError(f"input_range={input_range!r}: give two numbers, such as (-1, 1)")


def _moved(data: Dataset, low: float, high: float) -> Tensor:
    x = data.x
    if x.dtype != torch.uint8:
        least, most = float(x.min()), float(x.max())
        if not x.is_floating_point() or least < 0 or most > 1:
            raise DataError(
                f"{data.name}: input_range is for bytes, or floating point in [0, 1]; found {x.dtype} from {least:g} "
                f"to {most:g}; use standardize"
            )
    return as_input(x) * (high - low) + low
