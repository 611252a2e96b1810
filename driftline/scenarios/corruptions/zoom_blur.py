"""Zoom blur of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from driftline.scenarios.corruptions.linear import zoom_matrix
from driftline.scenarios.corruptions.severity import SMALL, blend, check_images, row

CIFAR = ((0.01, 7), (0.01, 12), (0.01, 16), (0.01, 21), (0.01, 26))
IMAGENET = ((0.01, 12), (0.01, 16), (0.02, 11), (0.02, 13), (0.03, 11))
"""Step from one zoom to the next, and how many, from 1 on."""


def zoom_blur(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """The mean of zooms into the middle, as of moving towards it.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 1 or 3.
    severity : float
        1 to 5: up to a zoom of 1.06 to 1.25 up to 64 pixels, 1.11 to 1.30 above; fractions blend the neighbouring
        images.
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
    ICLR 2019. The last zoom of some severities is one step further than named, as in their code.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> zoom_blur(x, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(x, "zoom_blur")
    height, width = x.shape[-2:]

    def whole(level: int) -> Tensor:
        step, count = row(x, level, CIFAR, IMAGENET)
        # The step as numpy's arange has it, whose last bit decides how a size of 32.5 pixels is rounded.
        zooms = [1 + ((1 + step) - 1) * i for i in range(int(count))]
        if height * width <= SMALL * SMALL // 4:
            summed = x.flatten(2) @ _operator(height, width, tuple(zooms)).to(x)
            return ((x + summed.view_as(x)) / (len(zooms) + 1)).clamp_(0, 1)
        down = torch.stack([zoom_matrix(height, zoom) for zoom in zooms]).to(x)
        across = torch.stack([zoom_matrix(width, zoom).T for zoom in zooms]).to(x)
        rows = torch.einsum("fij,bcjk->bcifk", down, x)
        summed = rows.reshape(-1, len(zooms) * width) @ across.reshape(-1, width)
        return ((x + summed.view_as(x)) / (len(zooms) + 1)).clamp_(0, 1)

    return blend(severity, whole)


@cache
def _operator(height: int, width: int, zooms: tuple[float, ...]) -> Tensor:
    """Return all zooms of a small image, summed, as one matrix between its pixels: (H * W, H * W)."""
    pairs = ((zoom_matrix(height, zoom), zoom_matrix(width, zoom)) for zoom in zooms)
    return sum((torch.kron(down, across) for down, across in pairs), torch.zeros(())).T.float().contiguous()
