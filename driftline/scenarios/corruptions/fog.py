"""Fog of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from driftline.scenarios.corruptions.severity import check_images, constants

CIFAR = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
IMAGENET = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))
"""Amount, and how much smoother fine structure is than coarse."""


def fog(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Plasma of the diamond-square algorithm, laid over the image.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 1 or 3.
    severity : float
        1 to 5: an amount of 0.2 to 1.5 up to 64 pixels, 1.5 to 3 above, with finer structure the stronger.
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
    ICLR 2019. The plasma is as large as the power of two that holds the image, at least 32. Draws are scaled twice by
    the step's size, as in their code.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> fog(x, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(x, "fog")
    size = plasma_size(x)
    return with_plasma(x, severity, torch.rand(len(x), size * size - 1, generator=generator, device=x.device))


def plasma_size(x: Tensor) -> int:
    """Return height and width of the plasma for these images, for which ``size^2 - 1`` numbers are drawn."""
    return max(32, 1 << (max(x.shape[-2:]) - 1).bit_length())


def with_plasma(x: Tensor, severity: float, uniform: Tensor) -> Tensor:
    """Return what :func:`fog` makes of these draws in [0, 1), (B, size^2 - 1), in the order in which they are used."""
    amount, decay = constants(x, severity, CIFAR, IMAGENET)
    height, width = x.shape[-2:]
    layer = plasma(uniform * 2 - 1, plasma_size(x), decay)[:, None, :height, :width].to(x.dtype)
    brightest = x.amax((1, 2, 3), keepdim=True)
    return ((x + amount * layer) * (brightest / (brightest + amount))).clamp_(0, 1)


def plasma(draws: Tensor, size: int, decay: float) -> Tensor:
    """Return fractal height maps (B, size, size) in [0, 1] from draws in [-1, 1), (B, size^2 - 1)."""
    field = draws.new_zeros(len(draws), size, size)
    step, wibble, used = size, 100.0, 0

    def wibbled(total: Tensor) -> Tensor:
        nonlocal used
        mine = draws[:, used : used + total[0].numel()].view_as(total)
        used += total[0].numel()
        return torch.add(total / 4, mine, alpha=wibble * wibble)

    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        field[:, half::step, half::step] = wibbled(pairs + pairs.roll(-1, 2))
        centres = field[:, half::step, half::step]
        field[:, ::step, half::step] = wibbled(centres + centres.roll(1, 1) + corners + corners.roll(-1, 2))
        field[:, half::step, ::step] = wibbled(centres + centres.roll(1, 2) + corners + corners.roll(-1, 1))
        step, wibble = half, wibble / decay
    field -= field.amin((1, 2), keepdim=True)
    return field / field.amax((1, 2), keepdim=True)
