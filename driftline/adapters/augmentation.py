"""Test-time augmentation of images: the random views that CoTTA's teacher averages (Wang et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from driftline.errors import ConfigError, InputError

GRAY = (0.2989, 0.587, 0.114)
MARGIN = 2
"""Pixels around the image that the blur's 5 taps see."""


class Augment(Protocol):
    """Makes one random view of each sample of a batch (B, *input), drawing from a generator on the batch's device."""

    def __call__(self, x: Tensor, generator: torch.Generator, /) -> Tensor:
        """Return the views, as many and of the same shape; ``x`` stays as it is."""
        ...


@dataclass(frozen=True)
class Views:
    """What was drawn for the views of B images.

    Attributes
    ----------
    order : Tensor
        (B, 5): the order of brightness (0), contrast (1), saturation (2), hue (3) and gamma (4).
    colour : Tensor
        (B, 5): their factors, in that numbering; the hue's is a part of the full circle.
    angle : Tensor
        (B,) degrees, clockwise as torchvision counts.
    shift : Tensor
        (B, 2) whole pixels to the right and down.
    scale, sigma : Tensor
        (B,) zoom, and the blur's standard deviation in pixels.
    flip : Tensor
        (B,) bool: left and right change places.
    noise : Tensor
        (B, C, H, W), added.
    """

    order: Tensor
    colour: Tensor
    angle: Tensor
    shift: Tensor
    scale: Tensor
    sigma: Tensor
    flip: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Augmentation:
    """Colour jitter, rotation, shift and zoom with the edges continued, blur, horizontal flip and noise.

    Parameters
    ----------
    brightness, contrast, saturation, hue, gamma : (float, float)
        Ranges of the colour jitter's factors; its five operations come in random order. An image of one channel has
        neither saturation nor hue.
    degrees : float
        Rotations are up to this, to both sides.
    translate : float
        Shifts are up to this part of twice the image's size, rounded to pixels: the published code shifts the image
        padded by half its size on each side.
    scale : (float, float)
        Range of the zoom.
    sigma : (float, float)
        Range of the blur's standard deviation, in pixels; it has 5 x 5 taps.
    flip : float
        Probability of a flip.
    noise : float
        Standard deviation of the noise.
    per_sample : bool
        Draw the parameters for each image; False: one draw for all, as the released code, where only the noise is
        drawn for each.

    Raises
    ------
    ConfigError
        For a range that is empty or negative where it must not be.

    Notes
    -----
    Source: Wang, Fink, Van Gool & Dai, *Continual test-time domain adaptation*, CVPR 2022, and its released code, whose
    constants are the defaults for every image size. The result is that of torchvision's operations one by one; the
    padding, rotation, cropping and flip are one resampling here, and the blur is separable.

    Examples
    --------
    >>> x = torch.rand(4, 3, 32, 32)
    >>> views = Augmentation()(x, torch.Generator().manual_seed(0))
    >>> views.shape, bool(views.min() >= 0), bool(views.max() <= 1)
    (torch.Size([4, 3, 32, 32]), True, True)
    """

    brightness: tuple[float, float] = (0.6, 1.4)
    contrast: tuple[float, float] = (0.7, 1.3)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: tuple[float, float] = (-0.06, 0.06)
    gamma: tuple[float, float] = (0.7, 1.3)
    degrees: float = 15.0
    translate: float = 1 / 16
    scale: tuple[float, float] = (0.9, 1.1)
    sigma: tuple[float, float] = (0.001, 0.5)
    flip: float = 0.5
    noise: float = 0.005
    per_sample: bool = True

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "hue", "gamma", "scale", "sigma"):
            low, high = getattr(self, name)
            least = -0.5 if name == "hue" else 0.0
            if not least <= low <= high or (name in ("gamma", "scale", "sigma") and not low > 0):
                raise ConfigError(f"{name}=({low}, {high}): must be a range from low to high, positive for a size")
        for name, most in (("degrees", 180.0), ("translate", 1.0), ("flip", 1.0), ("noise", float("inf"))):
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"{name}={getattr(self, name)}: must be from 0 to {most:g}")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return a view of each image (B, C, H, W), values in [0, 1]; what lies outside is clipped first.

        Raises
        ------
        InputError
            For anything but images of one or three channels.
        """
        check_images(x)
        return self.apply(x, self.draw(x, generator))

    def draw(self, x: Tensor, generator: torch.Generator) -> Views:
        """Draw the parameters of one view of each image (B, C, H, W)."""
        rows = len(x) if self.per_sample else 1
        u = torch.rand(rows, 16, generator=generator, device=x.device, dtype=x.dtype).expand(len(x), 16)
        low, high = x.new_tensor(
            [self.brightness, self.contrast, self.saturation, self.hue, self.gamma, self.scale, self.sigma]
        ).T
        ranged = torch.lerp(low, high, u[:, :7])
        most = [2 * self.translate * x.shape[-1], 2 * self.translate * x.shape[-2]]
        return Views(
            order=u[:, 11:].argsort(1),
            colour=ranged[:, :5],
            angle=(2 * u[:, 7] - 1) * self.degrees,
            shift=((2 * u[:, 8:10] - 1) * x.new_tensor(most)).round(),
            scale=ranged[:, 5],
            sigma=ranged[:, 6],
            flip=u[:, 10] < self.flip,
            noise=torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype).mul_(self.noise),
        )

    def apply(self, x: Tensor, views: Views) -> Tensor:
        """Return the views (B, C, H, W) that were drawn of images of the same shape."""
        x = jitter(x.clamp(0, 1), views.order, views.colour)
        x = blur(warp(x, views.angle, views.shift, views.scale, views.flip), views.sigma)
        return x.add_(views.noise).clamp_(0, 1)


augment = Augmentation()
"""CoTTA's augmentation with the published constants: ``augment(x, generator)``."""


def check_images(x: Tensor) -> None:
    """Raise unless a batch is one of images that can be augmented.

    Raises
    ------
    InputError
    """
    if x.dim() != 4 or x.shape[1] not in (1, 3) or not x.is_floating_point():
        raise InputError(
            f"x {tuple(x.shape)} {x.dtype}: the default augmentation is for images (B, 1 or 3, H, W) of floats in "
            "[0, 1]; give other data augmentations of its own"
        )


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
    radians = torch.deg2rad(angle)
    cos, sin = torch.cos(radians) / scale, torch.sin(radians) / scale
    # Where each pixel of the result comes from: rotation and zoom backwards, after the shift backwards.
    sign = torch.where(flip, -1.0, 1.0).to(x.dtype)
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


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur images (B, C, H + 4, W + 4) by Gaussian kernels of 5 taps, without the margin: (B, C, H, W)."""
    taps = torch.exp(-0.5 * (torch.arange(3, device=x.device, dtype=x.dtype) / sigma[:, None]) ** 2)
    taps = taps / (taps[:, :1] + 2 * taps[:, 1:].sum(1, keepdim=True))
    centre, near, far = (tap[:, None, None, None] for tap in taps.unbind(1))
    for axis in (2, 3):
        size = x.shape[axis] - 2 * MARGIN
        first, second, third, fourth, fifth = (x.narrow(axis, start, size) for start in range(5))
        x = (third * centre).addcmul_(second + fourth, near).addcmul_(first + fifth, far)
    return x
