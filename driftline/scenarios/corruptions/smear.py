"""Blur along a line, as ImageMagick 6 does it: motion blur, and the flakes of snow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

NOTHING = 1e-7
"""Weights below this cannot be seen at the 16 bits at which the result is rounded."""


def smear(levels: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """Return images blurred on one side along a line.

    Parameters
    ----------
    levels : Tensor, shape (B, C, H, W)
        Values from 0 to 255.
    radius : int
        The kernel has 2 radius + 1 weights, half a normal density.
    sigma : float
        Its standard deviation, in pixels.
    degrees : Tensor, shape (B,)
        Direction from which each image is blurred: 0 from the right, 90 from below.

    Returns
    -------
    Tensor, shape (B, C, H, W)
        Whole numbers from 0 to 255, rounded at 16 bits and then down.
    """
    many, channels, height, width = levels.shape
    distance = torch.arange(2 * radius + 1, dtype=torch.float64)
    weights = torch.exp(-(distance**2) / (2 * sigma**2))
    weights = (weights / weights.sum())[weights / weights.sum() > NOTHING]
    reach = len(weights) - 1
    angle = torch.deg2rad(degrees.double())[:, None]
    distance = distance[: len(weights)].to(levels.device)
    right = torch.ceil(distance * torch.cos(angle) - 0.5).long()
    down = torch.ceil(distance * torch.sin(angle) - 0.5).long()
    padded = pad(levels, (reach,) * 4, mode="replicate")
    wide = width + 2 * reach
    # A window of a row is a row of this view, so that a line's place is one number for a row of pixels.
    windows = padded.flatten().unfold(0, width, 1)
    rows = torch.arange(many * channels, device=levels.device)[:, None] * (wide * (height + 2 * reach))
    rows = rows + (torch.arange(height, device=levels.device) + reach) * wide + reach
    shift = (down * wide + right).repeat_interleave(channels, 0)
    out = levels.new_zeros(many * channels * height, width)
    for i, weight in enumerate(weights.tolist()):
        out.add_(windows[(rows + shift[:, i : i + 1]).flatten()], alpha=weight)
    # A sixteenth of a 16-bit step covers the sums' rounding in float32.
    return ((out * 257 + 0.5).floor_() / 257 + 1e-4).floor_().view(levels.shape)
