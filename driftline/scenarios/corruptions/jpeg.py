"""What JPEG (ITU-T T.81, 1992) loses, to the same bytes as libjpeg: baseline, slow integer transform, 4:2:0 colour.

Entropy coding loses nothing and is left out. The transforms of Loeffler, Ligtenberg & Moschytz (ICASSP 1989) are linear
in whole numbers up to one rounding in each direction, so that they are matrices here; double precision holds their sums
exactly.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8 for _ in range(4)),
)
"""Steps between the values that are kept, at quality 50 (T.81, annex K)."""
BITS = 13
"""Binary places of the transforms' constants."""


def compress(levels: Tensor, quality: int) -> Tensor:
    """Return images as they are after JPEG of this quality.

    Parameters
    ----------
    levels : Tensor, shape (B, 1 or 3, H, W)
        Whole numbers from 0 to 255 of floating point.
    quality : int
        1 to 100.

    Returns
    -------
    Tensor, shape (B, 1 or 3, H, W)
        Whole numbers from 0 to 255.

    Examples
    --------
    >>> compress(torch.full((1, 1, 8, 8), 77.0), 50)[0, 0, 0, :3]
    tensor([76., 76., 76.])
    """
    x = levels.double()
    if x.shape[1] == 1:
        return _coded(x, quality, LUMINANCE).to(levels.dtype)
    r, g, b = x.unbind(1)
    y = _fixed(0.299) * r + _fixed(0.587) * g + _fixed(0.114) * b
    cb = -_fixed(0.168735892) * r - _fixed(0.331264108) * g + _fixed(0.5) * b
    cr = _fixed(0.5) * r - _fixed(0.418687589) * g - _fixed(0.081312411) * b
    y = ((y + 32768) / 65536).floor_()[:, None]
    colour = ((torch.stack([cb, cr], 1) + (128 << 16) + 32767) / 65536).floor_()
    y = _coded(y, quality, LUMINANCE)
    colour = _grown(_coded(_halved(colour), quality, CHROMINANCE), *x.shape[-2:]) - 128
    y, (cb, cr) = y[:, 0], colour.unbind(1)
    red = y + ((_fixed(1.402) * cr + 32768) / 65536).floor_()
    green = y + ((-_fixed(0.344136286) * cb - _fixed(0.714136286) * cr + 32768) / 65536).floor_()
    blue = y + ((_fixed(1.772) * cb + 32768) / 65536).floor_()
    return torch.stack([red, green, blue], 1).clamp_(0, 255).to(levels.dtype)


def _fixed(number: float) -> int:
    return int(number * 65536 + 0.5)


def steps(table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Return the steps between kept values at a quality, (8, 8)."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table) * scale + 50) // 100).clamp_(1, 255).double()


def _coded(plane: Tensor, quality: int, table: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return planes (B, C, H, W) after transform, rounding to steps, and back."""
    height, width = plane.shape[-2:]
    whole = pad(plane, (0, -width % 8, 0, -height % 8), mode="replicate") - 128
    down, across = whole.shape[-2] // 8, whole.shape[-1] // 8
    step = steps(table, quality).to(plane)
    forward, inverse = forward_matrix().to(plane), inverse_matrix().to(plane)
    # (B, C, down, 8, across, 8): a row of a block is the last dimension, a column the fourth.
    blocks = whole.view(*whole.shape[:2], down, 8, across, 8)
    rows = _rounded(blocks @ forward.T, BITS - 2).transpose(3, 4)
    found = _rounded(forward @ rows, BITS + 2)
    # What was found is eight times the transform.
    kept = ((found.abs() + 4 * step) / (8 * step)).floor_() * found.sign() * step
    columns = _rounded(inverse @ kept, BITS - 2)
    back = _rounded(columns @ inverse.T, BITS + 5).transpose(3, 4).reshape(whole.shape)
    return (back + 128).clamp_(0, 255)[:, :, :height, :width]


def _rounded(x: Tensor, bits: int) -> Tensor:
    return (x / (1 << bits) + 0.5).floor_()


def _halved(plane: Tensor) -> Tensor:
    """Return means of two by two; halves go down and up in turn, so that they do not add up."""
    height, width = plane.shape[-2:]
    # The encoder repeats the last column before it halves, the last row (but one that makes them even) afterwards.
    even = pad(plane, (0, -width % 16, 0, height % 2), mode="replicate")
    total = even[..., ::2, ::2] + even[..., ::2, 1::2] + even[..., 1::2, ::2] + even[..., 1::2, 1::2]
    bias = torch.arange(total.shape[-1], device=plane.device) % 2 + 1
    return ((total + bias) / 4).floor_()


def _grown(plane: Tensor, height: int, width: int) -> Tensor:
    """Return planes of twice the size, each pixel 3/4 the nearer and 1/4 the further one in each direction."""
    rows, columns = (height + 1) // 2, (width + 1) // 2
    plane = plane[..., :rows, :columns]
    ringed = pad(plane, (0, 0, 1, 1), mode="replicate")
    near = ringed[..., 1:-1, :] * 3
    sums = torch.stack([near + ringed[..., :-2, :], near + ringed[..., 2:, :]], -2).flatten(-3, -2)
    ringed = pad(sums, (1, 1, 0, 0), mode="replicate")
    left = ringed[..., 1:-1] * 3 + ringed[..., :-2] + 8
    right = ringed[..., 1:-1] * 3 + ringed[..., 2:] + 7
    return (torch.stack([left, right], -1).flatten(-2) / 16).floor_()[..., :height, :width]


@cache
def forward_matrix() -> Tensor:
    """Return the transform of eight values, times 2^13 sqrt(8), whose entries are whole numbers."""
    columns = []
    for place in range(8):
        d = [int(place == i) for i in range(8)]
        t0, t7, t1, t6 = d[0] + d[7], d[0] - d[7], d[1] + d[6], d[1] - d[6]
        t2, t5, t3, t4 = d[2] + d[5], d[2] - d[5], d[3] + d[4], d[3] - d[4]
        e0, e3, e1, e2 = t0 + t3, t0 - t3, t1 + t2, t1 - t2
        even = (e2 + e3) * 4433
        z1, z2, z3, z4 = -(t4 + t7) * 7373, -(t5 + t6) * 20995, t4 + t6, t5 + t7
        z5 = (z3 + z4) * 9633
        z3, z4 = z5 - z3 * 16069, z5 - z4 * 3196
        odd = (t7 * 12299 + z1 + z4, t6 * 25172 + z2 + z3, t5 * 16819 + z2 + z4, t4 * 2446 + z1 + z3)
        top, middle = (e0 + e1) << BITS, (e0 - e1) << BITS
        columns.append([top, odd[0], even + e3 * 6270, odd[1], middle, odd[2], even - e2 * 15137, odd[3]])
    return torch.tensor(columns, dtype=torch.float64).T.contiguous()


@cache
def inverse_matrix() -> Tensor:
    """Return the inverse transform, times 2^13 sqrt(8): its constants are those of :func:`forward_matrix`."""
    columns = []
    for place in range(8):
        d = [int(place == i) for i in range(8)]
        z = (d[2] + d[6]) * 4433
        t2, t3 = z - d[6] * 15137, z + d[2] * 6270
        t0, t1 = (d[0] + d[4]) << BITS, (d[0] - d[4]) << BITS
        even = (t0 + t3, t1 + t2, t1 - t2, t0 - t3)
        t0, t1, t2, t3 = d[7], d[5], d[3], d[1]
        z1, z2, z3, z4 = -(t0 + t3) * 7373, -(t1 + t2) * 20995, t0 + t2, t1 + t3
        z5 = (z3 + z4) * 9633
        z3, z4 = z5 - z3 * 16069, z5 - z4 * 3196
        odd = (t3 * 12299 + z1 + z4, t2 * 25172 + z2 + z3, t1 * 16819 + z2 + z4, t0 * 2446 + z1 + z3)
        columns.append([a + b for a, b in zip(even, odd)] + [a - b for a, b in zip(even[::-1], odd[::-1])])
    return torch.tensor(columns, dtype=torch.float64).T.contiguous()
