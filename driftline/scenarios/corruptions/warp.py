"""Affine maps and displacements of images, with the roundings and edges of OpenCV 4 and scipy."""

from __future__ import annotations

import torch
from torch import Tensor

from driftline.scenarios.corruptions.linear import mirrored


def affine(x: Tensor, shifts: Tensor) -> Tensor:
    """Return images (B, C, H, W) after the affine map that moves three points about the middle.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images.
    shifts : Tensor, shape (B, 3, 2)
        How far right and down the points move, in pixels, in double precision.

    Returns
    -------
    Tensor, shape (B, C, H, W)
        Linear between pixels at places rounded to 1/32 pixel; mirrored outside, the edge's pixel not repeated.
    """
    height, width = x.shape[-2:]
    side, centre = min(height, width) // 3, (height // 2, width // 2)
    # Theirs takes (row, column) of the middle for (x, y), which is the same for square images.
    points = [(centre[0] + side, centre[1] + side), (centre[0] + side, centre[1] - side)]
    start = torch.tensor([*points, (centre[0] - side, centre[1] - side)], dtype=torch.float64).to(x.device)
    # Float32, as they pass the points on.
    start, end = start.float().double(), (start + shifts).float().double()
    ones = torch.ones(*end.shape[:2], 1, dtype=torch.float64, device=x.device)
    back = torch.linalg.solve(torch.cat([end, ones], 2), start.expand_as(end)).transpose(1, 2)
    columns = torch.arange(width, dtype=torch.float64, device=x.device)
    rows = torch.arange(height, dtype=torch.float64, device=x.device)
    along = (back[:, :, :1] * columns * 1024).round().long()
    down = ((back[:, :, 1:2] * rows + back[:, :, 2:]) * 1024).round().long() + 16
    places = (down[:, :, :, None] + along[:, :, None]) >> 5
    whole, part = places >> 5, (places & 31).to(x.dtype) / 32
    return _between(x, whole[:, 1], whole[:, 0], part[:, 1], part[:, 0], "101")


def displace(x: Tensor, field: Tensor) -> Tensor:
    """Return images (B, C, H, W) read at places moved by ``field`` (B, 2, H, W), right and down, linearly."""
    height, width = x.shape[-2:]
    columns = torch.arange(width, dtype=x.dtype, device=x.device) + field[:, 0]
    rows = torch.arange(height, dtype=x.dtype, device=x.device)[:, None] + field[:, 1]
    left, top = columns.floor(), rows.floor()
    return _between(x, top.long(), left.long(), rows - top, columns - left, "half")


def _between(x: Tensor, top: Tensor, left: Tensor, down: Tensor, right: Tensor, edge: str) -> Tensor:
    """Interpolate between the four pixels about (top, left) + (down, right), (B, H, W) each."""
    height, width = x.shape[-2:]
    inside = mirrored if edge == "101" else _reflected
    rows = [inside(top, height) * width, inside(top + 1, height) * width]
    columns = [inside(left, width), inside(left + 1, width)]
    flat = x.flatten(2)

    def at(row: Tensor, column: Tensor) -> Tensor:
        index = (row + column).flatten(1)[:, None].expand(-1, x.shape[1], -1)
        return flat.gather(2, index).view_as(x)

    right, down = right[:, None], down[:, None]
    upper = torch.lerp(at(rows[0], columns[0]), at(rows[0], columns[1]), right)
    return torch.lerp(upper, torch.lerp(at(rows[1], columns[0]), at(rows[1], columns[1]), right), down)


def _reflected(places: Tensor, size: int) -> Tensor:
    """Mirror places about the outer edges of the first and the last pixel."""
    places = places % (2 * size)
    return torch.minimum(places, 2 * size - 1 - places)
