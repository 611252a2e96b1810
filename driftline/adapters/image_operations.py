"""What :mod:`driftline.adapters.augmentation` does to images, each with parameters of its own, on tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

GRAY = (0.2989, 0.587, 0.114)
MARGIN = 2
"""Pixels around the image that the blur's 5 taps see."""


def jitter(x: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, contrast, saturation, hue and gamma of images (B, C, H, W) in [0, 1], in place.

    Each image has its own order (B, 5), so at each of the five turns the images are grouped by the operation that is
    theirs; operations work on groups.
    """
    members = order.argsort(dim=0)
    counts = F.one_hot(order, len(COLOUR)).sum(0).tolist()
    for turn, sizes in enumerate(counts):
        start = 0
        for operation, size in enumerate(sizes):
            if size == len(x):
                COLOUR[operation](x, factors[:, operation, None, None, None])
            elif size:
                chosen = members[start : start + size, turn]
                group = x[chosen]
                COLOUR[operation](group, factors[chosen, operation, None, None, None])
                x.index_copy_(0, chosen, group)
            start += size
    return x


def _brightness(x: Tensor, factor: Tensor) -> None:
    x.mul_(factor).clamp_(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> None:
    mean = x.mean((2, 3), keepdim=True)
    if x.shape[1] == 3:
        mean = (mean * mean.new_tensor(GRAY).view(1, 3, 1, 1)).sum(1, keepdim=True)
    x.mul_(factor).add_((1 - factor) * mean).clamp_(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> None:
    if x.shape[1] == 3:
        r, g, b = x.unbind(1)
        gray = (r * GRAY[0]).add_(g, alpha=GRAY[1]).add_(b, alpha=GRAY[2]).mul_(1 - factor[:, 0])
        x.mul_(factor).add_(gray.unsqueeze(1)).clamp_(0, 1)


def _hue(x: Tensor, part: Tensor) -> None:
    """Turn hues by a part of the circle: the largest and the smallest of the three channels stay what they are."""
    if x.shape[1] == 1:
        return
    r, g, b = x.unbind(1)
    high, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    spread = high.sub_(low)
    red, green = r - low == spread, g - low == spread
    # In sixths of the circle; a gray pixel, whose spread is 0, has numerators 0.
    numerator = torch.where(red, g - b, torch.where(green, b - r, r - g))
    sixth = numerator.div_(spread.clamp(min=torch.finfo(x.dtype).tiny))
    sixth.add_(torch.where(red, 0.0, torch.where(green, 2.0, 4.0))).add_(6 * part[:, 0]).remainder_(6)
    torch.sub(sixth, 3, out=r).abs_().sub_(1).clamp_(0, 1)
    torch.sub(sixth, 2, out=g).abs_().neg_().add_(2).clamp_(0, 1)
    torch.sub(sixth, 4, out=b).abs_().neg_().add_(2).clamp_(0, 1)
    x.mul_(spread.unsqueeze(1)).add_(low.unsqueeze(1))


def _gamma(x: Tensor, power: Tensor) -> None:
    x.clamp_(min=1e-8).log_().mul_(power).exp_().clamp_(max=1)


COLOUR: tuple[Callable[[Tensor, Tensor], None], ...] = (_brightness, _contrast, _saturation, _hue, _gamma)


def warp(x: Tensor, angle: Tensor, shift: Tensor, scale: Tensor, flip: Tensor) -> Tensor:
    """Rotate, zoom, shift and flip images about their centres; the result keeps a margin of 2 pixels for the blur.

    Pixels beyond the edge are those of the edge.
    """
    height, width = x.shape[-2:]
    cos, sin = turned(angle, scale)
    # Where each pixel of the result comes from: rotation and zoom backwards, after the shift backwards.
    sign = mirrored(flip, x.dtype)
    dx, dy = shift.unbind(1)
    right = torch.arange(-MARGIN, width + MARGIN, device=x.device, dtype=x.dtype) - (width - 1) / 2
    down = torch.arange(-MARGIN, height + MARGIN, device=x.device, dtype=x.dtype) - (height - 1) / 2
    across = (sign[:, None] * right - dx[:, None]).unsqueeze(1)
    along = (down - dy[:, None]).unsqueeze(2)
    cos, sin = cos[:, None, None], sin[:, None, None]
    grid = torch.stack(
        [(cos * across + sin * along) * (2 / width), (cos * along - sin * across) * (2 / height)], dim=-1
    )
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def turned(angle: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of angles in degrees, over the zoom, (B,) each."""
    radians = torch.deg2rad(angle)
    return torch.cos(radians) / scale, torch.sin(radians) / scale


def mirrored(flip: Tensor, dtype: torch.dtype) -> Tensor:
    """Return -1 where left and right change places, else 1."""
    return torch.where(flip, -1.0, 1.0).to(dtype)


def blur_taps(sigma: Tensor) -> Tensor:
    """Return the weights (B, 3) of a blur's taps: in its centre, and one and two pixels from it."""
    taps = torch.exp(-0.5 * (torch.arange(MARGIN + 1, device=sigma.device, dtype=sigma.dtype) / sigma[:, None]) ** 2)
    return taps / (taps[:, :1] + 2 * taps[:, 1:].sum(1, keepdim=True))


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur images (B, C, H + 4, W + 4) by Gaussian kernels of 5 taps, without the margin: (B, C, H, W)."""
    centre, near, far = (tap[:, None, None, None] for tap in blur_taps(sigma).unbind(1))
    for axis in (2, 3):
        size = x.shape[axis] - 2 * MARGIN
        first, second, third, fourth, fifth = (x.narrow(axis, start, size) for start in range(5))
        x = (third * centre).addcmul_(second + fourth, near).addcmul_(first + fifth, far)
    return x
