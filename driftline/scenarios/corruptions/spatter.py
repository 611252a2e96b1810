"""Spatter of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from driftline.scenarios.corruptions.linear import blur, grey
from driftline.scenarios.corruptions.severity import blend, check_images, row, to_levels
from driftline.scenarios.corruptions.shading import shading

CIFAR = (
    (0.62, 0.1, 0.7, 0.7, 0.5, 0),
    (0.65, 0.1, 0.8, 0.7, 0.5, 0),
    (0.65, 0.3, 1, 0.69, 0.5, 0),
    (0.65, 0.1, 0.7, 0.69, 0.6, 1),
    (0.65, 0.1, 0.5, 0.68, 0.6, 1),
)
IMAGENET = (
    (0.65, 0.3, 4, 0.69, 0.6, 0),
    (0.65, 0.3, 3, 0.68, 0.6, 0),
    (0.65, 0.3, 2, 0.68, 0.5, 0),
    (0.65, 0.3, 1, 0.65, 1.5, 1),
    (0.67, 0.4, 1, 0.65, 1.5, 1),
)
"""Mean, deviation and smoothness of the liquid, its threshold, opacity of water or blur of mud, whether it is mud."""
WATER = (175 / 255, 238 / 255, 238 / 255)
MUD = (63 / 255, 42 / 255, 20 / 255)


def spatter(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Drops of water (1 to 3) or splashes of mud (4 and 5) on the lens.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 1 or 3.
    severity : float
        1 to 5: more or larger drops; fractions blend the neighbouring images of the same draws.
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
    ICLR 2019. One of the four that were held out for tuning. Grey images take the grey of the liquid's colour.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> spatter(x, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(x, "spatter")
    normal = torch.randn(len(x), *x.shape[-2:], generator=generator, device=x.device, dtype=x.dtype)
    return with_liquid(x, severity, normal)


def with_liquid(x: Tensor, severity: float, normal: Tensor) -> Tensor:
    """Return what :func:`spatter` makes of standard normal draws (B, H, W)."""

    def whole(level: int) -> Tensor:
        mean, deviation, smoothness, threshold, last, mud = row(x, level, CIFAR, IMAGENET)
        # Double precision, because a threshold and an edge detector follow.
        liquid = blur(mean + deviation * normal[:, None].double(), smoothness)
        wet = liquid >= threshold
        if mud:
            cover = blur((liquid > threshold).to(x.dtype), last)
            cover = torch.where(cover < 0.8, 0, cover)
            return (x * (1 - cover) + _colour(MUD, x) * cover).clamp_(0, 1)
        levels = to_levels(torch.where(wet, liquid, 0).clamp_(max=1))[:, 0]
        light = (levels * shading(levels)).to(x.dtype)[:, None]
        most = light.amax((1, 2, 3), keepdim=True)
        light = torch.where(most > 0, light / most * last, 0)
        return (x + _colour(WATER, x) * light).clamp_(0, 1)

    return blend(severity, whole)


def _colour(rgb: tuple[float, ...], x: Tensor) -> Tensor:
    colour = torch.tensor(rgb, device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    return colour if x.shape[1] == 3 else grey(colour)
