"""Motion blur of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from driftline.scenarios.corruptions.severity import blend, check_images, row
from driftline.scenarios.corruptions.smear import smear

CIFAR = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
IMAGENET = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))


def motion_blur(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Blur along a line of random direction, as of a moving camera.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 1 or 3.
    severity : float
        1 to 5: a one-sided normal kernel of 1 to 2.5 pixels up to 64 pixels of size, 3 to 15 above, at -45 to 45
        degrees; fractions blend the neighbouring images of one angle.
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
    ICLR 2019. As in ImageMagick 6, the line's places are rounded to pixels, and the result to bytes.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> motion_blur(x, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(x, "motion_blur")
    return with_angle(x, severity, torch.rand(len(x), generator=generator, device=x.device) * 90 - 45)


def with_angle(x: Tensor, severity: float, degrees: Tensor) -> Tensor:
    """Return what :func:`motion_blur` makes of these angles, (B,)."""

    def whole(level: int) -> Tensor:
        radius, sigma = row(x, level, CIFAR, IMAGENET)
        return smear((x * 255).round_(), int(radius), sigma, degrees) / 255

    return blend(severity, whole)
