"""Speckle noise of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from driftline.scenarios.corruptions.severity import check_images, strength

CIFAR = (0.06, 0.1, 0.12, 0.16, 0.2)
IMAGENET = (0.15, 0.2, 0.35, 0.45, 0.6)


def speckle_noise(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Normal noise in proportion to the pixel's value.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 1 or 3.
    severity : float
        1 to 5: standard deviation of 0.06 to 0.2 of the value up to 64 pixels, 0.15 to 0.6 above.
    generator : torch.Generator
        On the device of x.

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
    ICLR 2019. One of the four that were held out for tuning.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> speckle_noise(x, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(x, "speckle_noise")
    return with_noise(x, severity, torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype))


def with_noise(x: Tensor, severity: float, normal: Tensor) -> Tensor:
    """Return what :func:`speckle_noise` makes of these standard normal draws, (B, C, H, W)."""
    return torch.addcmul(x, x, normal, value=strength(x, severity, CIFAR, IMAGENET)).clamp_(0, 1)
