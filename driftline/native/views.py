"""Random views of images on the kernel of views.c: its arguments are laid out here, and nowhere else."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from driftline.native.build import library

MARGIN = 2
"""Pixels around the image that the blur sees, as in views.c."""


class _Plan(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("images", "channels", "height", "width")),
        *((name, c_void_p) for name in ("x", "order", "colour", "place", "mirror", "taps", "noise", "out", "space")),
    ]


def image_views(
    x: Tensor, order: Tensor, colour: Tensor, place: Tensor, mirror: Tensor, taps: Tensor, noise: Tensor
) -> Tensor:
    """Return views of images (B, C, H, W) with 1 or 3 channels; see :class:`driftline.adapters.augmentation.Views`.

    Parameters
    ----------
    x, noise : Tensor, shape (B, C, H, W)
        For which :func:`driftline.native.fits` is true; what follows is on the CPU, and float32, too.
    order : Tensor, shape (B, 5)
        int64, within 0 to 4.
    colour : Tensor, shape (B, 5)
        Factors of brightness, contrast, saturation, hue and gamma.
    place : Tensor, shape (B, 4)
        Cosine and sine over the zoom, shift to the right and down.
    mirror : Tensor, shape (B,)
        -1 where left and right change places, or 1.
    taps : Tensor, shape (B, 3)
        Weights of the blur's taps, from the centre.

    Examples
    --------
    >>> import torch
    >>> from driftline import native
    >>> x, still = torch.rand(2, 3, 8, 8), torch.tensor([[1.0, 1, 1, 0, 1]]).repeat(2, 1)
    >>> place, taps = torch.tensor([[1.0, 0, 0, 0]]).repeat(2, 1), torch.tensor([[1.0, 0, 0]]).repeat(2, 1)
    >>> order, mirror = torch.arange(5).repeat(2, 1), torch.ones(2)
    >>> if native.available():
    ...     assert (native.image_views(x, order, still, place, mirror, taps, 0 * x) - x).abs().max() < 1e-5
    """
    images, channels, height, width = x.shape
    wide, tall = width + 2 * MARGIN, height + 2 * MARGIN
    out, space = torch.empty_like(x), x.new_empty(channels * (height * width + tall * wide) + 3 * wide)
    given = [t.contiguous() for t in (x, order, colour, place, mirror, taps, noise)]
    plan = _Plan(images, channels, height, width, *(t.data_ptr() for t in (*given, out, space)))
    library().image_views(ctypes.byref(plan))
    return out
