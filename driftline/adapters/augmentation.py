"""Test-time augmentation of images: the random views that CoTTA's teacher averages (Wang et al., CVPR 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from driftline import native
from driftline.adapters.image_operations import COLOUR, blur, blur_taps, jitter, mirrored, turned, warp
from driftline.errors import ConfigError, InputError


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
    padding, rotation, cropping and flip are one resampling here, and the blur is separable. Images of float32 on the
    CPU go through a kernel in C, one by one, where it can be built (see :mod:`driftline.native`): the same to
    a few units of float32's last places, in a fraction of the time.

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
        """Return the views (B, C, H, W) that were drawn of images of the same shape.

        Raises
        ------
        InputError
            For anything but images of one or three channels, and views drawn for others.
        """
        check_images(x)
        check_views(x, views)
        x = x.contiguous()
        if _for_native(x, views):
            return _natively(x, views)
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


def check_views(x: Tensor, views: Views) -> None:
    """Raise unless views were drawn for a batch of this shape.

    Raises
    ------
    InputError
    """
    rows = len(x)
    wanted: dict[str, tuple[int, ...]] = {name: (rows,) for name in ("angle", "scale", "sigma", "flip")}
    wanted |= {"order": (rows, 5), "colour": (rows, 5), "shift": (rows, 2), "noise": tuple(x.shape)}
    for name, shape in wanted.items():
        if (found := tuple(getattr(views, name).shape)) != shape:
            raise InputError(f"views.{name} {found}: must be {shape} for x {tuple(x.shape)}; draw them for this batch")
    # On an accelerator looking would wait for it, and the plain path raises by itself.
    on_cpu = rows and views.order.device.type == "cpu"
    if on_cpu and not 0 <= int(views.order.min()) <= int(views.order.max()) < len(COLOUR):
        raise InputError(f"views.order: must be numbers of operations, from 0 to {len(COLOUR) - 1}")


def _for_native(x: Tensor, views: Views) -> bool:
    """Whether the kernel in C can make the views, and no gradient is asked for."""
    tensors = (views.colour, views.angle, views.shift, views.scale, views.sigma)
    return (
        all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        and native.fits(x, views.noise)
        and views.order.device.type == views.flip.device.type == "cpu"
        and 0 < x.shape[2] * x.shape[3] < 2**31
        and not (torch.is_grad_enabled() and x.requires_grad)
        and native.available()
    )


def _natively(x: Tensor, views: Views) -> Tensor:
    cos, sin = turned(views.angle, views.scale)
    place = torch.cat([cos[:, None], sin[:, None], views.shift], dim=1)
    order, mirror = views.order.long(), mirrored(views.flip, x.dtype)
    return native.image_views(x, order, views.colour, place, mirror, blur_taps(views.sigma), views.noise)
