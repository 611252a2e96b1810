"""Saturation of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from driftline.scenarios.corruptions.severity import blend, check_images, row

CIFAR = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))
IMAGENET = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))


def saturate(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Other saturation: nearly grey at 1 and 2, garish from 3 on.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 3.
    severity : float
        1 to 5: the saturation s becomes a s + b with (a, b) = (0.3, 0) to (2.5, 0.2) up to 64 pixels, (20, 0.2)
        above; fractions blend the neighbouring images, since between 2 and 3 the constants pass through no change at
        all.
    generator : torch.Generator
        On the device of x; nothing is drawn.

    Returns
    -------
    Tensor, shape (B, C, H, W)
        In [0, 1].

    Raises
    ------
    InputError
        When x is not images, or is grey, which has no saturation to change.

    Notes
    -----
    Source: Hendrycks & Dietterich, *Benchmarking neural network robustness to common corruptions and perturbations*,
    ICLR 2019. One of the four that were held out for tuning. A pixel without a hue counts as red, as theirs does.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> saturate(x, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(x, "saturate", (3,))
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    spread = high - low
    red = torch.tensor([0.0, 1.0, 1.0], device=x.device, dtype=x.dtype).view(3, 1, 1) * high
    # How far each channel lies below the highest, for a saturation of 1.
    below = torch.where(spread > 0, (high - x) * (high / spread), red)
    saturation = torch.where(high > 0, spread / high, 0)

    def whole(level: int) -> Tensor:
        factor, plus = row(x, level, CIFAR, IMAGENET)
        return (high - below * (saturation * factor + plus).clamp_(0, 1)).clamp_(0, 1)

    return blend(severity, whole)
