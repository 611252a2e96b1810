"""Frost of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019), from photographs or from a texture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from driftline.errors import ConfigError, MissingDataError
from driftline.scenarios.corruptions.severity import SMALL, check_images, constants

CIFAR = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
IMAGENET = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
"""Share of the image and of the frost."""
FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""There is a sixth photograph, which their code never draws."""
COLOURS = ((0.30, 0.58, 0.65), (0.79, 0.81, 0.84), (0.79, 0.81, 0.84), (0.54, 0.60, 0.65), (0.44, 0.48, 0.53))
DEVIATIONS = (0.17, 0.09, 0.09, 0.12, 0.17)
"""Mean colour and deviation of the photographs, which the textures are given."""
TEXTURE = 512


@dataclass(frozen=True)
class Frost:
    """A crop of an icy window, added to the image.

    Parameters
    ----------
    photographs : str, optional
        Folder of the original photographs, ``frost1.png`` to ``frost5.jpg`` (read with Pillow). None: textures of our
        own, which have the photographs' mean colours and deviations but are **not** the same images: error rates differ
        from those of the published sets.

    Raises
    ------
    MissingDataError
        When the folder lacks a photograph.

    Notes
    -----
    Source: Hendrycks & Dietterich, *Benchmarking neural network robustness to common corruptions and perturbations*,
    ICLR 2019. For images up to 64 pixels the photographs are shrunk to a fifth first. Where an image is larger than a
    photograph, the photograph goes on mirrored.

    Examples
    --------
    >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> Frost()(x, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """

    photographs: str | None = None

    def __post_init__(self) -> None:
        if self.photographs is not None:
            missing = [name for name in FILES if not Path(self.photographs, name).is_file()]
            if missing:
                raise MissingDataError(f"frost: {', '.join(missing)} not found in {self.photographs}")

    @property
    def note(self) -> str:
        """Which of the two it is, for records."""
        return "frost: textures of our own" if self.photographs is None else "frost: original photographs"

    def __call__(self, x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
        """Return the corrupted batch (B, C, H, W) of images in [0, 1], at a severity from 1 to 5."""
        check_images(x, "frost")
        pixels, heights, widths, starts = _photographs(self.photographs, max(x.shape[-2:]) <= SMALL, x.device)
        draws = torch.rand(len(x), 3, generator=generator, device=x.device)
        which = (draws[:, 0] * len(starts)).long().clamp_(max=len(starts) - 1)
        places = []
        for draw, sizes, want in zip(draws[:, 1:].unbind(1), (heights, widths), x.shape[-2:]):
            size = sizes[which]
            first = (draw * (size - want).clamp_(min=1)).long()
            place = (first[:, None] + torch.arange(want, device=x.device)) % (2 * size - 2)[:, None]
            places.append(torch.minimum(place, (2 * size - 2)[:, None] - place))
        rows = starts[which, None] + places[0] * widths[which, None]
        crops = pixels[:, rows[:, :, None] + places[1][:, None]].movedim(0, 1)
        return with_crop(x, severity, crops.to(x.dtype))


def frost(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """A crop of an icy window, added to the image; here of textures, see :class:`Frost` for photographs.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images in [0, 1], C = 1 or 3.
    severity : float
        1 to 5: a share of the frost of 0.2 to 0.45 up to 64 pixels, 0.4 to 0.75 above.
    generator : torch.Generator
        On the device of x.

    Examples
    --------
    >>> frost(torch.zeros(1, 3, 32, 32), 5, torch.Generator().manual_seed(0)).shape
    torch.Size([1, 3, 32, 32])
    """
    return Frost()(x, severity, generator)


def with_crop(x: Tensor, severity: float, crop: Tensor) -> Tensor:
    """Return images under these pieces of frost, (B, 3, H, W) in [0, 1]; grey images take their mean colour."""
    image, ice = constants(x, severity, CIFAR, IMAGENET)
    crop = crop if x.shape[1] == 3 else crop.mean(1, keepdim=True)
    return (image * x + ice * crop).clamp_(0, 1)


@cache
def _photographs(folder: str | None, small: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return all photographs or textures in one row of pixels (3, pixels), their heights, widths and first pixels."""
    if folder is None:
        made = [texture(number) for number in range(len(COLOURS))]
        parts = [part[:, ::2, ::2] if small else part for part in made]
    else:
        parts = _read(folder, small)
    heights, widths = (torch.tensor([part.shape[axis] for part in parts]) for axis in (1, 2))
    starts = (heights * widths).cumsum(0) - heights * widths
    pixels = torch.cat([part.flatten(1) for part in parts], 1)
    return pixels.to(device), heights.to(device), widths.to(device), starts.to(device)


def _read(folder: str, small: bool) -> list[Tensor]:
    try:
        import numpy as np
        from PIL import Image
    except ImportError:
        raise ConfigError('frost: photographs need Pillow; pip install "driftline[vision]"') from None
    read = []
    for name in FILES:
        with Image.open(Path(folder, name)) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0).float() / 255
        # A linear resize to a fifth meets the middle of every five pixels exactly.
        read.append(pixels[:, 2::5, 2::5] if small else pixels)
    return read


@cache
def texture(number: int) -> Tensor:
    """Return a texture like ice, (3, 512, 512) in [0, 1]: ridges where smooth random fields of many sizes pass zero.

    Examples
    --------
    >>> texture(0).shape
    torch.Size([3, 512, 512])
    """
    generator = torch.Generator().manual_seed(number)
    frequency = torch.fft.fftfreq(TEXTURE)
    down, across = frequency[:, None], frequency
    ice = torch.zeros(TEXTURE, TEXTURE)
    for size in (64, 32, 16, 8, 4):
        turn = torch.rand(1, generator=generator) * torch.pi
        along = down * turn.sin() + across * turn.cos()
        aside = across * turn.sin() - down * turn.cos()
        band = torch.exp(-((size * 2 * along) ** 2) - (size * 6 * aside) ** 2)
        noise = torch.fft.fft2(torch.randn(TEXTURE, TEXTURE, generator=generator))
        field = torch.fft.ifft2(noise * band).real
        ice += size**0.5 * torch.exp(-2 * (field / field.std()).abs())
    ice = (ice - ice.mean()) / ice.std()
    return (torch.tensor(COLOURS[number])[:, None, None] + DEVIATIONS[number] * ice).clamp_(0, 1)
