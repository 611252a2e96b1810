"""Blurring, zooming and shrinking as matrices, one for each direction, which hold the treatment of the edges."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

LUMINANCE = (0.299, 0.587, 0.114)


def blur(x: Tensor, sigma: float, edge: str = "nearest", truncate: float = 4) -> Tensor:
    """Return images (..., H, W) blurred by a normal kernel of standard deviation ``sigma`` pixels."""
    if int(truncate * sigma + 0.5) == 0:
        return x.clone()
    down, across = (gaussian_matrix(n, sigma, edge, truncate).to(x) for n in x.shape[-2:])
    return both(x, down, across)


def both(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return ``down @ x @ across.T`` of images (..., H, W), as two large products, not many small ones."""
    rows = x.reshape(-1, x.shape[-1]) @ across.T
    turned = rows.view(*x.shape[:-1], -1).transpose(-1, -2)
    return (turned.reshape(-1, x.shape[-2]) @ down.T).view(*turned.shape[:-1], -1).transpose(-1, -2).contiguous()


@cache
def gaussian_matrix(size: int, sigma: float, edge: str, truncate: float) -> Tensor:
    """Return the (size, size) matrix of a blur, in double precision; ``edge`` is "nearest" or "reflect"."""
    reach = int(truncate * sigma + 0.5)
    taps = gaussian_taps(sigma, reach)
    places = torch.arange(-reach, size + reach)
    if edge == "nearest":
        places = places.clamp(0, size - 1)
    else:
        places = places % (2 * size)
        places = torch.minimum(places, 2 * size - 1 - places)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    index = places.unfold(0, 2 * reach + 1, 1)
    return matrix.scatter_add_(1, index, taps.expand(size, -1))


def gaussian_taps(sigma: float, reach: int) -> Tensor:
    """Return 2 reach + 1 weights that sum to one."""
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
    return taps / taps.sum()


@cache
def zoom_matrix(size: int, zoom: float) -> Tensor:
    """Return the (size, size) matrix that blows up the middle linearly; the ends of what is cut out stay ends."""
    cut = math.ceil(size / zoom)
    grown = round(cut * zoom)
    top, trim = (size - cut) // 2, (grown - size) // 2
    places = torch.arange(trim, trim + size, dtype=torch.float64) * ((cut - 1) / max(1, grown - 1))
    below = places.floor().clamp(0, max(0, cut - 2)).long()
    part = places - below
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.scatter_add_(1, (below + top)[:, None], (1 - part)[:, None])
    return matrix.scatter_add_(1, (below + min(1, cut - 1) + top)[:, None], part[:, None])


@cache
def box_matrix(size: int, target: int) -> Tensor:
    """Return the (target, size) matrix of Pillow's box filter."""
    scale = size / target
    support = max(scale, 1.0) / 2
    matrix = torch.zeros(target, size, dtype=torch.float64)
    for i in range(target):
        centre = (i + 0.5) * scale
        first, last = max(0, int(centre - support + 0.5)), min(size, int(centre + support + 0.5))
        places = (torch.arange(first, last) - centre + 0.5) / max(scale, 1.0)
        matrix[i, first:last] = ((places > -0.5) & (places <= 0.5)).double()
    return matrix / matrix.sum(1, keepdim=True)


def reflect_101(size: int, reach: int) -> Tensor:
    """Return the places that stand at -reach to size + reach - 1 when the edge's pixel itself is not repeated.

    Examples
    --------
    >>> reflect_101(4, 2).tolist()
    [2, 1, 0, 1, 2, 3, 2, 1]
    """
    return mirrored(torch.arange(-reach, size + reach), size)


def mirrored(places: Tensor, size: int) -> Tensor:
    """Return places of any sign as places in [0, size), mirrored about the first and the last pixel."""
    if size == 1:
        return torch.zeros_like(places)
    places = places % (2 * size - 2)
    return torch.minimum(places, 2 * size - 2 - places)


def grey(x: Tensor) -> Tensor:
    """Return the luminance (B, 1, H, W) of images of one or three channels."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.unbind(1)
    return (r * LUMINANCE[0] + g * LUMINANCE[1] + b * LUMINANCE[2]).unsqueeze(1)
