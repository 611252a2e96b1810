"""Shot noise of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from driftline.scenarios.corruptions.severity import check_images, strength

CIFAR = (500, 250, 100, 75, 50)
IMAGENET = (60, 25, 12, 5, 3)


def shot_noise(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Poisson noise on every pixel, as of light that comes in quanta.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 1 or 3.
    severity : float
        1 to 5: 500 to 50 quanta for a white pixel up to 64 pixels of size, 60 to 3 above.
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
    ICLR 2019. Theirs is rounded down to bytes afterwards; this is not.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> shot_noise(x, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(x, "shot_noise")
    return with_counts(x, severity, torch.poisson(x * strength(x, severity, CIFAR, IMAGENET), generator))


def with_counts(x: Tensor, severity: float, counts: Tensor) -> Tensor:
    """Return what :func:`shot_noise` makes of these numbers of quanta, (B, C, H, W)."""
    return (counts / strength(x, severity, CIFAR, IMAGENET)).clamp_(0, 1)
