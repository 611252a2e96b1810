"""From a severity to a corruption's constants: by image size, and between the published severities."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from driftline.errors import InputError

SMALL = 64
"""Images up to this many pixels high and wide take the constants of CIFAR-10-C, larger ones those of ImageNet-C."""


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


def check_images(x: Tensor, where: str) -> None:
    """Raise :class:`InputError` unless ``x`` is (B, C, H, W) of floating point (its range is not looked at)."""
    if x.dim() != 4 or not x.is_floating_point():
        raise InputError(
            f"{where}: needs images (B, C, H, W) of floating point in [0, 1], got {tuple(x.shape)} of {x.dtype}"
        )
