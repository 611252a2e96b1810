"""The light on drops of water: edges, distances and an emboss, in whole numbers as OpenCV has them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, pad

from driftline.scenarios.corruptions.linear import reflect_101

LOW, HIGH = 50, 150
FAR = 20
STRAIGHT, DIAGONAL, KNIGHT = 65536, round(1.4 * 65536), round(2.1969 * 65536)
"""Lengths of the steps of which distances are made (Borgefors, CVGIP 1986), in 1/65536 pixel."""
EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))


def shading(levels: Tensor) -> Tensor:
    """Return how bright each place of a liquid is, 0 to 255, from its thickness in bytes, (B, H, W)."""
    distance = distances(edges(levels)).clamp_(max=FAR)
    even = equalized((_mean(distance) + 1e-4).floor_())
    kernel = torch.tensor(EMBOSS, dtype=levels.dtype, device=levels.device)
    lit = _filtered(even, kernel).clamp_(0, 255)
    return _mean(lit).round_()


def edges(levels: Tensor) -> Tensor:
    """Return where there are edges (Canny, TPAMI 1986), (B, H, W) of bool."""
    at = pad(levels[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    height, width = levels.shape[-2:]

    def near(x: Tensor, down: int, right: int) -> Tensor:
        return x[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    dx = near(at, -1, 1) - near(at, -1, -1) + 2 * (near(at, 0, 1) - near(at, 0, -1)) + near(at, 1, 1) - near(at, 1, -1)
    dy = near(at, 1, -1) - near(at, -1, -1) + 2 * (near(at, 1, 0) - near(at, -1, 0)) + near(at, 1, 1) - near(at, -1, 1)
    size = dx.abs() + dy.abs()
    around = pad(size, (1, 1, 1, 1))
    flat, steep = dx.abs() * 13573, dy.abs() * 32768  # 13573 / 32768 is the tangent of 22.5 degrees
    lies, stands = steep < flat, steep > flat + dx.abs() * 65536
    across = (size > near(around, 0, -1)) & (size >= near(around, 0, 1))
    along = (size > near(around, -1, 0)) & (size >= near(around, 1, 0))
    falling = (size > near(around, -1, -1)) & (size > near(around, 1, 1))
    rising = (size > near(around, -1, 1)) & (size > near(around, 1, -1))
    slanted = torch.where((dx < 0) ^ (dy < 0), rising, falling)
    ridge = torch.where(lies, across, torch.where(stands, along, slanted)) & (size > LOW)
    found = (ridge & (size > HIGH)).float()[:, None]
    weak = ridge.float()[:, None]
    while True:  # weak edges count when they touch one that counts
        grown = found
        for _ in range(8):
            grown = max_pool2d(grown, 3, 1, 1) * weak
        if torch.equal(grown, found):
            return found[:, 0] > 0
        found = grown


def distances(marked: Tensor) -> Tensor:
    """Return each place's distance to the nearest marked one in steps of a 5x5 mask, (B, H, W)."""
    far = float(1 << 22)  # whole numbers up to here are exact in float32
    field = torch.where(marked, 0.0, far)
    field = pad(field, (2, 2, 2, 2), value=far)
    field = _swept(_swept(field).flip(1, 2)).flip(1, 2)[:, 2:-2, 2:-2]
    return field / 65536


def _swept(field: Tensor) -> Tensor:
    """Let distances grow downwards and to the right, row after row."""
    height, width = field.shape[-2] - 4, field.shape[-1] - 4
    ramp = torch.arange(width, device=field.device, dtype=field.dtype) * STRAIGHT
    rows = list(field.unbind(1))
    for y in range(2, height + 2):
        above, higher = rows[y - 1], rows[y - 2]

        def part(row: Tensor, right: int) -> Tensor:
            return row[:, 2 + right : 2 + right + width]

        best = torch.minimum(rows[y][:, 2:-2], part(above, 0) + STRAIGHT)
        best = torch.minimum(best, torch.minimum(part(above, -1), part(above, 1)) + DIAGONAL)
        knights = torch.minimum(part(above, -2), part(above, 2))
        knights = torch.minimum(knights, torch.minimum(part(higher, -1), part(higher, 1)))
        best = torch.minimum(best, knights + KNIGHT)
        best = (best - ramp).cummin(1).values + ramp
        rows[y] = pad(best, (2, 2), value=float(1 << 22))
    return torch.stack(rows, 1)


def equalized(levels: Tensor) -> Tensor:
    """Return bytes (B, H, W) with their histogram spread over 0 to 255; an image of one level stays as it is."""
    flat = levels.flatten(1).long()
    counts = torch.zeros(len(flat), 256, dtype=torch.long, device=flat.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    lowest = flat.amin(1, keepdim=True)
    lowest_count = counts.gather(1, lowest)
    rest = flat.shape[1] - lowest_count
    scale = 255.0 / rest.clamp(min=1).float()
    spread = ((counts.cumsum(1) - lowest_count).float() * scale).round_().clamp_(0, 255)
    out = torch.where(rest > 0, spread.gather(1, flat), flat.float())
    return out.view_as(levels).to(levels.dtype)


def _mean(x: Tensor) -> Tensor:
    return _filtered(x, x.new_full((3, 3), 1 / 9))


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    rows, columns = (reflect_101(n, 1).to(x.device) for n in x.shape[-2:])
    return conv2d(x[:, rows[:, None], columns][:, None], kernel.to(x)[None, None])[:, 0]
