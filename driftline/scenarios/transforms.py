"""Domains as functions of a batch: small frozen values that pickle and compare equal when they do the same."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from driftline.errors import InputError, ScenarioError


@dataclass(frozen=True)
class Rotate:
    """Rotate images counter-clockwise about their centre: bilinear, black outside.

    Parameters
    ----------
    degrees : float
        Angle; a multiple of 360 leaves images as they are, bit for bit.

    Raises
    ------
    InputError
        When called on anything but images (B, H, W) or (B, C, H, W) of floating point.

    Examples
    --------
    >>> import torch
    >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> Rotate(90)(image).round(decimals=4)
    tensor([[[[2., 4.],
              [1., 3.]]]])
    """

    degrees: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.degrees):
            raise ScenarioError(f"Rotate({self.degrees}): the angle must be a finite number of degrees")

    def __call__(self, x: Tensor) -> Tensor:
        """Return the rotated batch."""
        if x.dim() not in (3, 4) or not x.is_floating_point():
            raise InputError(f"Rotate: needs images (B, C, H, W) of floating point, got {tuple(x.shape)} of {x.dtype}")
        if self.degrees % 360 == 0:
            return x
        whole = x.unsqueeze(1) if x.dim() == 3 else x
        height, width = whole.shape[-2:]
        cos, sin = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        # The grid's unit is half the image's side, which differs between the axes when the image is not square.
        turn = torch.tensor([[[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]])
        grid = torch.nn.functional.affine_grid(turn, [1, 1, height, width], align_corners=False)
        grid = grid.to(device=x.device, dtype=x.dtype).expand(len(x), -1, -1, -1)
        return torch.nn.functional.grid_sample(whole, grid, align_corners=False).view_as(x)


@dataclass(frozen=True, eq=False)
class Permute:
    """Put the values of each sample in another order.

    Parameters
    ----------
    permutation : Tensor, shape (values of one sample,)
        Value i of the result is value ``permutation[i]`` of the flattened sample.

    Raises
    ------
    ScenarioError
        When it is not a permutation.
    InputError
        When called on samples of another size.

    Examples
    --------
    >>> import torch
    >>> Permute(torch.tensor([2, 0, 1]))(torch.tensor([[10.0, 11.0, 12.0]]))
    tensor([[12., 10., 11.]])
    """

    permutation: Tensor

    def __post_init__(self) -> None:
        order = torch.as_tensor(self.permutation)
        if order.dim() != 1 or not torch.equal(order.sort().values.long().cpu(), torch.arange(len(order))):
            raise ScenarioError("Permute: needs each of 0..n-1 once, for samples of n values")
        object.__setattr__(self, "permutation", order.long().cpu())

    def __call__(self, x: Tensor) -> Tensor:
        """Return the permuted batch."""
        flat = x.reshape(len(x), -1)
        if flat.shape[1] != len(self.permutation):
            raise InputError(
                f"Permute: made for samples of {len(self.permutation)} values, got shape {tuple(x.shape[1:])}"
            )
        return flat.index_select(1, self.permutation.to(x.device)).view_as(x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Permute) and torch.equal(self.permutation, other.permutation)

    def __hash__(self) -> int:
        return hash(self.permutation.numpy().tobytes())


@dataclass(frozen=True)
class Invert:
    """Turn values in [0, 1] into their negative: dark becomes bright.

    Examples
    --------
    >>> import torch
    >>> Invert()(torch.tensor([[0.0, 0.25, 1.0]]))
    tensor([[1.0000, 0.7500, 0.0000]])
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Return the inverted batch."""
        return 1 - x
