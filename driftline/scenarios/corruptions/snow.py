"""Snow of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from driftline.scenarios.corruptions.linear import both, grey, zoom_matrix
from driftline.scenarios.corruptions.severity import blend, check_images, row, to_levels
from driftline.scenarios.corruptions.smear import smear

CIFAR = (
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
IMAGENET = (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
"""Mean and deviation of the noise, zoom, threshold, radius and sigma of the blur, share of the image."""


def snow(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """White flakes that fall, in a brighter and greyer image.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 1 or 3.
    severity : float
        1 to 5: more and longer flakes; fractions blend the neighbouring images of the same draws.
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
    ICLR 2019. The flakes are normal noise, zoomed into, cut off below a threshold and blurred at -135 to -45 degrees;
    a second layer is the first upside down.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> snow(x, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(x, "snow")
    normal = torch.randn(len(x), *x.shape[-2:], generator=generator, device=x.device, dtype=x.dtype)
    return with_flakes(x, severity, normal, torch.rand(len(x), generator=generator, device=x.device) * 90 - 135)


def with_flakes(x: Tensor, severity: float, normal: Tensor, degrees: Tensor) -> Tensor:
    """Return what :func:`snow` makes of standard normal draws (B, H, W) and angles (B,)."""
    height, width = x.shape[-2:]
    light = torch.maximum(x, grey(x) * 1.5 + 0.5)

    def whole(level: int) -> Tensor:
        mean, deviation, zoom, threshold, radius, sigma, share = row(x, level, CIFAR, IMAGENET)
        layer = mean + deviation * normal[:, None]
        if zoom != 1:
            layer = both(layer, zoom_matrix(height, zoom).to(x), zoom_matrix(width, zoom).to(x))
        layer = to_levels(torch.where(layer < threshold, 0, layer).clamp_(0, 1))
        layer = smear(layer, int(radius), sigma, degrees) / 255
        return (torch.lerp(light, x, share) + layer + layer.flip(2, 3)).clamp_(0, 1)

    return blend(severity, whole)
