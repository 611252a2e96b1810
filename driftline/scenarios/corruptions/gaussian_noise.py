"""Gaussian noise of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from driftline.scenarios.corruptions.severity import check_images, strength

CIFAR = (0.04, 0.06, 0.08, 0.09, 0.10)
IMAGENET = (0.08, 0.12, 0.18, 0.26, 0.38)


def gaussian_noise(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Independent normal noise on every pixel, as a sensor has in low light.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1].
    severity : float
        1 to 5: standard deviation 0.04 to 0.10 up to 64 pixels, 0.08 to 0.38 above.
    generator : torch.Generator
        On the device of x.

    Returns
    -------
    Tensor, shape (B, C, H, W)
        Clipped to [0, 1].

    Raises
    ------
    InputError
        When x is not images.

    Notes
    -----
    Source: Hendrycks & Dietterich, *Benchmarking neural network robustness to common corruptions and perturbations*,
    ICLR 2019. Theirs is rounded down to bytes afterwards, and for ImageNet-C saved as JPEG; this is not.

    Examples
    --------
    >>> grey = torch.full((1, 3, 32, 32), 0.5)
    >>> round(float(gaussian_noise(grey, 5, torch.Generator().manual_seed(0)).std()), 2)
    0.1
    """
    check_images(x, "gaussian_noise")
    return with_noise(x, severity, torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype))


def with_noise(x: Tensor, severity: float, normal: Tensor) -> Tensor:
    """Return what :func:`gaussian_noise` makes of these standard normal draws, (B, C, H, W)."""
    return (x + strength(x, severity, CIFAR, IMAGENET) * normal).clamp_(0, 1)
