"""JPEG compression of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from driftline.scenarios.corruptions.jpeg import compress
from driftline.scenarios.corruptions.severity import blend, check_images, row

CIFAR = ((80,), (65,), (58,), (50,), (40,))
IMAGENET = ((25,), (18,), (15,), (10,), (7,))


def jpeg_compression(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Saved as JPEG of low quality and read again.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 1 or 3; rounded to bytes first.
    severity : float
        1 to 5: quality 80 to 40 up to 64 pixels, 25 to 7 above; fractions blend the neighbouring images.
    generator : torch.Generator
        On the device of x; nothing is drawn.

    Returns
    -------
    Tensor, shape (B, C, H, W)
        Bytes divided by 255.

    Raises
    ------
    InputError
        When x is not images.

    Notes
    -----
    Source: Hendrycks & Dietterich, *Benchmarking neural network robustness to common corruptions and perturbations*,
    ICLR 2019. Computed on the device of x with the integer arithmetic of libjpeg: see :mod:`.jpeg`.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> jpeg_compression(x, 3, torch.Generator()).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(x, "jpeg_compression")
    levels = (x * 255).round_()
    return blend(severity, lambda level: compress(levels, int(row(x, level, CIFAR, IMAGENET)[0])) / 255)
