"""Elastic transform of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from driftline.scenarios.corruptions.linear import blur
from driftline.scenarios.corruptions.severity import check_images, constants
from driftline.scenarios.corruptions.warp import affine, displace

CIFAR = tuple(
    (a * 32, s * 32, p * 32)
    for a, s, p in ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
)
IMAGENET = tuple(
    (a * 244, s * 244, p * 244)  # 244, not 224: so it is in their code
    for a, s, p in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
)
"""Size and smoothness of the displacements, and how far the three points of the affine map move, in pixels."""


def elastic_transform(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """A random affine map, then smooth random displacements of the pixels.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 1 or 3.
    severity : float
        1 to 5: from an affine map to small and rough displacements.
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
    ICLR 2019. The affine map rounds its places to 1/32 pixel and mirrors at the edge as OpenCV 4 does.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> elastic_transform(x, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(x, "elastic_transform")
    points = torch.rand(len(x), 3, 2, generator=generator, device=x.device)
    return with_fields(x, severity, points, torch.rand(len(x), 2, *x.shape[-2:], generator=generator, device=x.device))


def with_fields(x: Tensor, severity: float, points: Tensor, fields: Tensor) -> Tensor:
    """Return what :func:`elastic_transform` makes of these draws in [0, 1).

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images.
    severity : float
        1 to 5.
    points : Tensor, shape (B, 3, 2)
        How far the three points move, each to the right and down.
    fields : Tensor, shape (B, 2, H, W)
        Displacements to the right and down before they are smoothed.
    """
    size, sigma, shift = constants(x, severity, CIFAR, IMAGENET)
    moved = affine(x, (points.double() * 2 - 1) * shift)
    if size == 0:
        return moved.clamp_(0, 1)
    smooth = blur(fields.to(x.dtype) * 2 - 1, sigma, "reflect", truncate=3) * size
    return displace(moved, smooth).clamp_(0, 1)
