"""Frosted glass of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from driftline.scenarios.corruptions.linear import blur
from driftline.scenarios.corruptions.severity import blend, check_images, row, to_levels

CIFAR = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))
IMAGENET = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
"""Standard deviation of the blur, furthest displacement, passes."""
PASSES = 3


def glass_blur(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Pixels take the places of their neighbours, as seen through frosted glass.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 1 or 3.
    severity : float
        1 to 5: blur of 0.05 to 0.4 pixels and displacement by 1 up to 64 pixels of size, 0.7 to 1.5 and 1 to 4 above;
        fractions blend the neighbouring images of the same draws.
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
    ICLR 2019. Their loop means to swap two pixels but copies one onto the other, and goes over the pixels one after
    the other. Here all pixels whose copies do not depend on each other go at once, to the same result.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> glass_blur(x, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(x, "glass_blur")
    shape = (len(x), PASSES, 2, *x.shape[-2:])
    return with_places(x, severity, torch.rand(shape, generator=generator, device=x.device))


def with_places(x: Tensor, severity: float, uniform: Tensor) -> Tensor:
    """Return what :func:`glass_blur` makes of these draws.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images.
    severity : float
        1 to 5.
    uniform : Tensor, shape (B, 3, 2, H, W)
        In [0, 1): for each pass how far down and how far to the right the pixel lies that is copied to this place.
    """

    def whole(level: int) -> Tensor:
        sigma, reach, passes = row(x, level, CIFAR, IMAGENET)
        delta = int(reach)
        steps = (uniform[:, : int(passes)] * (2 * delta)).floor().long().clamp_(max=2 * delta - 1) - delta
        levels = to_levels(blur(x, sigma)).flatten(2)
        source = sources(steps, delta)
        moved = levels.gather(2, source[:, None].expand(-1, x.shape[1], -1)).view_as(x)
        return blur(moved / 255, sigma).clamp_(0, 1)

    return blend(severity, whole)


def sources(steps: Tensor, delta: int) -> Tensor:
    """Return which pixel each place shows after copying in order, from the last pixel to the first.

    Parameters
    ----------
    steps : Tensor, shape (B, passes, 2, H, W)
        Down and right, -delta to delta - 1, from each place to the pixel copied there.
    delta : int
        Places nearer to the first edge than delta + 1, or to the other than delta, keep their pixel.

    Returns
    -------
    Tensor, shape (B, H * W)
    """
    many, passes, _, height, width = steps.shape
    device = steps.device
    y = torch.arange(delta + 1, height - delta + 1, device=device)
    x = torch.arange(delta + 1, width - delta + 1, device=device)
    place = torch.arange(height * width, device=device)
    shown = place.expand(many, -1).clone()
    if not len(y) or not len(x):
        return shown
    offsets = (steps[:, :, 0] * width + steps[:, :, 1]).flatten(2) + place
    inner = (y[:, None] * width + x).flatten()
    if delta == 1:  # a pixel is copied from places that are not written before it, so all go at once
        groups = [inner]
    else:  # what a pixel is copied from was written in an earlier group, or will be in a later one
        time = ((delta + 1) * (height - y)[:, None] + (width - x)).flatten()
        order = time.argsort(stable=True)
        first, last = (delta + 1) * delta + delta, (delta + 1) * (height - delta - 1) + width - delta - 1
        groups = list(torch.split(inner[order], _counts(height, width, delta, first, last)))
    for number in range(passes):
        for group in groups:
            shown[:, group] = shown.gather(1, offsets[:, number, group])
    return shown


def _counts(height: int, width: int, delta: int, first: int, last: int) -> list[int]:
    """Return how many pixels each group has, counted on the host."""
    down = torch.arange(delta, height - delta)
    right = torch.arange(delta, width - delta)
    return torch.bincount(((delta + 1) * down[:, None] + right).flatten(), minlength=last + 1)[first:].tolist()
