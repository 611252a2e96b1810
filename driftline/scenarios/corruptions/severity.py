"""From a severity to a corruption's constants: by image size, and between the published severities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from driftline.errors import InputError

SMALL = 64
"""Images up to this many pixels high and wide take the constants of CIFAR-10-C, larger ones those of ImageNet-C."""

Row = tuple[float, ...]


def strength(x: Tensor, severity: float, cifar: Sequence[float], imagenet: Sequence[float]) -> float:
    """Return a corruption's constant for these images.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images.
    severity : float
        1 to 5; between whole numbers the constants are interpolated linearly.
    cifar, imagenet : sequence of float
        The published constants of severities 1 to 5, for 32 and for 224 pixels.

    Examples
    --------
    >>> import torch
    >>> strength(torch.zeros(1, 3, 32, 32), 2.5, [1, 2, 4, 8, 16], [0, 0, 0, 0, 0])
    3.0
    """
    table = cifar if max(x.shape[-2:]) <= SMALL else imagenet
    below = min(int(severity), len(table) - 1)
    return table[below - 1] + (severity - below) * (table[below] - table[below - 1])


def constants(x: Tensor, severity: float, cifar: Sequence[Row], imagenet: Sequence[Row]) -> Row:
    """Return several constants as :func:`strength` returns one."""
    return tuple(strength(x, severity, a, b) for a, b in zip(zip(*cifar), zip(*imagenet)))


def row(x: Tensor, level: int, cifar: Sequence[Row], imagenet: Sequence[Row]) -> Row:
    """Return the constants of a whole severity."""
    return (cifar if max(x.shape[-2:]) <= SMALL else imagenet)[level - 1]


def blend(severity: float, whole: Callable[[int], Tensor]) -> Tensor:
    """Return ``whole(severity)``, between whole numbers the blend of both neighbours.

    For corruptions whose constants are whole numbers or change what is done: each neighbour must use the same draws.

    Examples
    --------
    >>> blend(2.25, lambda level: torch.tensor([10.0 * level]))
    tensor([22.5000])
    """
    below = int(severity)
    out = whole(below)
    return out if severity == below else torch.lerp(out, whole(below + 1), severity - below)


def to_levels(x: Tensor) -> Tensor:
    """Return bytes, as floats, of values in [0, 1]: rounded down, as the published files are.

    A value is taken up that lies below a whole number by no more than rounding in float32 explains.
    """
    return (x * 255 + 1e-4).floor_()


def check_images(x: Tensor, where: str, channels: Sequence[int] = (1, 3)) -> None:
    """Raise :class:`InputError` unless ``x`` is (B, C, H, W) of floating point (its range is not looked at)."""
    if x.dim() != 4 or not x.is_floating_point():
        raise InputError(
            f"{where}: needs images (B, C, H, W) of floating point in [0, 1], got {tuple(x.shape)} of {x.dtype}"
        )
    if x.shape[1] not in channels:
        raise InputError(
            f"{where}: needs images of {' or '.join(map(str, channels))} channels, got {x.shape[1]} in shape "
            f"{tuple(x.shape)}"
        )


def check_range(x: Tensor, where: str) -> None:
    """Raise :class:`InputError` unless all of ``x`` lies in [0, 1] (a device would be waited for)."""
    if x.numel():
        low, high = (float(value) for value in torch.aminmax(x))
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"{where}: needs values in [0, 1], got {low:g} to {high:g}; corrupt images before they are standardised"
            )
