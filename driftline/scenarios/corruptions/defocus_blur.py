"""Defocus of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from driftline.scenarios.corruptions.linear import gaussian_taps, reflect_101
from driftline.scenarios.corruptions.severity import SMALL, blend, check_images, row

CIFAR = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
IMAGENET = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))

SHORT, LONG = 2, 12
"""How far the kernels reach up to 64 pixels, and above."""


def defocus_blur(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Blur with a disk, as of a lens out of focus.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 1 or 3.
    severity : float
        1 to 5: radius of 0.3 to 1.5 pixels up to 64 pixels of size, 3 to 10 above, smoothed at its rim; fractions
        blend the neighbouring kernels.
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
    ICLR 2019. At severities 1 to 3 of small images the disk is a point, so that what remains is the smoothing of its
    rim.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> defocus_blur(x, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(x, "defocus_blur")
    weights = blend(severity, lambda level: _framed(disk(*row(x, level, CIFAR, IMAGENET)), x))
    reach = weights.shape[-1] // 2
    rows = reflect_101(x.shape[-2], reach).to(x.device)
    if reach == SHORT:
        # A row of the result is one product with the rows that it is made of, side by side.
        beside = x.flatten(0, 1)[:, rows].flatten(1).unfold(1, (2 * reach + 1) * x.shape[-1], x.shape[-1])
        return (beside @ _bands(weights, x.shape[-1]).to(x)).view_as(x).clamp_(0, 1)
    columns = reflect_101(x.shape[-1], reach).to(x.device)
    padded = x.reshape(-1, 1, *x.shape[-2:])[:, :, rows[:, None], columns]
    return conv2d(padded, weights.to(x)[None, None]).view_as(x).clamp_(0, 1)


def _bands(kernel: Tensor, width: int) -> Tensor:
    """Return the matrix from the rows that a kernel covers, side by side, to its result's row, mirrored at the ends."""
    bands = torch.zeros(len(kernel), width, width, dtype=kernel.dtype)
    places = reflect_101(width, len(kernel) // 2).unfold(0, len(kernel), 1).T
    index = places.expand(len(kernel), -1, -1)
    return bands.scatter_add_(1, index, kernel[:, :, None].expand_as(index)).flatten(0, 1)


def disk(radius: float, alias: float) -> Tensor:
    """Return the kernel: a disk of this radius, smoothed by a normal kernel of standard deviation ``alias``.

    Examples
    --------
    >>> disk(1, 0.2)[7:10, 7:10].round(decimals=2)
    tensor([[0.0000, 0.2000, 0.0000],
            [0.2000, 0.2000, 0.2000],
            [0.0000, 0.2000, 0.0000]], dtype=torch.float64)
    """
    reach, taps = (8, 3) if radius <= 8 else (math.floor(radius), 5)
    line = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = (line[:, None] ** 2 + line**2 <= radius**2).double()
    kernel /= kernel.sum()
    smooth = gaussian_taps(alias, taps // 2)
    places = reflect_101(len(line), taps // 2)
    padded = kernel[places[:, None], places]
    return conv2d(padded[None, None], (smooth[:, None] * smooth)[None, None])[0, 0]


def _framed(kernel: Tensor, x: Tensor) -> Tensor:
    """Cut or fill a kernel to the size that all kernels for these images share."""
    reach = SHORT if max(x.shape[-2:]) <= SMALL else LONG
    more = reach - kernel.shape[-1] // 2
    return pad(kernel, (more,) * 4)
