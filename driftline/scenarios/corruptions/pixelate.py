"""Pixelation of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from driftline.scenarios.corruptions.linear import box_matrix
from driftline.scenarios.corruptions.severity import blend, check_images, row

CIFAR = ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))
IMAGENET = ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,))


def pixelate(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Fewer pixels: shrunk by averaging boxes and blown up again.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 1 or 3.
    severity : float
        1 to 5: to 0.95 to 0.65 of the size up to 64 pixels, 0.6 to 0.25 above; fractions blend the neighbouring
        images.
    generator : torch.Generator
        On the device of x; nothing is drawn.

    Returns
    -------
    Tensor, shape (B, C, H, W)
        In [0, 1].

    Raises
    ------
    InputError
        When x is not images.

    Notes
    -----
    Source: Hendrycks & Dietterich, *Benchmarking neural network robustness to common corruptions and perturbations*,
    ICLR 2019. As in Pillow, the values are bytes before and after each of the two directions.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> pixelate(x, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(x, "pixelate")
    height, width = x.shape[-2:]
    levels = (x * 255).round_()

    def whole(level: int) -> Tensor:
        (scale,) = row(x, level, CIFAR, IMAGENET)
        small = max(1, int(height * scale)), max(1, int(width * scale))
        out = (levels @ box_matrix(width, small[1]).T.to(x) + 0.5).floor_()
        out = (box_matrix(height, small[0]).to(x) @ out + 0.5).floor_()
        down, across = _nearest(small[0], height), _nearest(small[1], width)
        return out[:, :, down.to(x.device)[:, None], across.to(x.device)] / 255

    return blend(severity, whole)


def _nearest(small: int, size: int) -> Tensor:
    """Return which of ``small`` pixels each of ``size`` shows."""
    return box_matrix(small, size).argmax(1)
