"""Contrast of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from driftline.scenarios.corruptions.severity import check_images, strength

CIFAR = (0.75, 0.5, 0.4, 0.3, 0.15)
IMAGENET = (0.4, 0.3, 0.2, 0.1, 0.05)


def contrast(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Less contrast: values are drawn towards the mean of their image and channel.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 1 or 3.
    severity : float
        1 to 5: 0.75 to 0.15 of the contrast is left up to 64 pixels, 0.4 to 0.05 above.
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
    ICLR 2019.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> contrast(x, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(x, "contrast")
    left = strength(x, severity, CIFAR, IMAGENET)
    mean = x.mean((2, 3), keepdim=True)
    return torch.lerp(mean.expand_as(x), x, left).clamp_(0, 1)
