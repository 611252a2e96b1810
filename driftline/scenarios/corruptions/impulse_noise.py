"""Impulse noise of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from driftline.scenarios.corruptions.severity import check_images, strength

CIFAR = (0.01, 0.02, 0.03, 0.05, 0.07)
IMAGENET = (0.03, 0.06, 0.09, 0.17, 0.27)


def impulse_noise(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Salt and pepper: some values become 0 or 1, as of broken bits.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 1 or 3.
    severity : float
        1 to 5: a share of 0.01 to 0.07 of the values up to 64 pixels, 0.03 to 0.27 above.
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
    ICLR 2019. Each channel's value is hit on its own, half of them become 1.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> impulse_noise(x, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(x, "impulse_noise")
    hit, salt = torch.rand(2, *x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return with_impulses(x, severity, hit, salt)


def with_impulses(x: Tensor, severity: float, hit: Tensor, salt: Tensor) -> Tensor:
    """Return what :func:`impulse_noise` makes of these uniform draws, (B, C, H, W) each."""
    return torch.where(hit <= strength(x, severity, CIFAR, IMAGENET), (salt <= 0.5).to(x.dtype), x)
