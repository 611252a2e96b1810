"""Gaussian blur of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from driftline.scenarios.corruptions.linear import blur
from driftline.scenarios.corruptions.severity import check_images, strength

CIFAR = (0.4, 0.6, 0.7, 0.8, 1)
IMAGENET = (1, 2, 3, 4, 6)


def gaussian_blur(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Blur with a normal kernel; the edge's pixels are repeated outside.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 1 or 3.
    severity : float
        1 to 5: standard deviation of 0.4 to 1 pixels up to 64 pixels of size, 1 to 6 above.
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
    ICLR 2019. One of the four that were held out for tuning. The kernel ends at four deviations.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> gaussian_blur(x, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(x, "gaussian_blur")
    return blur(x, strength(x, severity, CIFAR, IMAGENET)).clamp_(0, 1)
