"""Brightness of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from driftline.scenarios.corruptions.severity import check_images, strength

CIFAR = (0.05, 0.1, 0.15, 0.2, 0.3)
IMAGENET = (0.1, 0.2, 0.3, 0.4, 0.5)


def brightness(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """More light: the value of hue, saturation and value is raised.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 1 or 3.
    severity : float
        1 to 5: by 0.05 to 0.3 up to 64 pixels, 0.1 to 0.5 above.
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
    ICLR 2019. Raising the value at equal hue and saturation multiplies a pixel's channels by one number, so no colour
    space is entered.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> brightness(x, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(x, "brightness")
    value = x.amax(1, keepdim=True)
    raised = (value + strength(x, severity, CIFAR, IMAGENET)).clamp_(max=1)
    return torch.where(value > 0, x * (raised / value), raised).clamp_(0, 1)
