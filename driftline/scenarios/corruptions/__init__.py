"""Image corruptions of Hendrycks & Dietterich (ICLR 2019), one file each, drawn on the samples' device."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from driftline.data.files import data_root
from driftline.errors import ConfigError, unknown
from driftline.scenarios.corruptions.brightness import brightness
from driftline.scenarios.corruptions.contrast import contrast
from driftline.scenarios.corruptions.defocus_blur import defocus_blur
from driftline.scenarios.corruptions.elastic_transform import elastic_transform
from driftline.scenarios.corruptions.fog import fog
from driftline.scenarios.corruptions.frost import FILES, Frost, frost
from driftline.scenarios.corruptions.gaussian_blur import gaussian_blur
from driftline.scenarios.corruptions.gaussian_noise import gaussian_noise
from driftline.scenarios.corruptions.glass_blur import glass_blur
from driftline.scenarios.corruptions.impulse_noise import impulse_noise
from driftline.scenarios.corruptions.jpeg_compression import jpeg_compression
from driftline.scenarios.corruptions.motion_blur import motion_blur
from driftline.scenarios.corruptions.pixelate import pixelate
from driftline.scenarios.corruptions.saturate import saturate
from driftline.scenarios.corruptions.severity import check_range, to_levels
from driftline.scenarios.corruptions.shot_noise import shot_noise
from driftline.scenarios.corruptions.snow import snow
from driftline.scenarios.corruptions.spatter import spatter
from driftline.scenarios.corruptions.speckle_noise import speckle_noise
from driftline.scenarios.corruptions.zoom_blur import zoom_blur

Function = Callable[[Tensor, float, torch.Generator], Tensor]
"""``function(x, severity, generator) -> x`` for images x (B, C, H, W) in [0, 1] and a severity from 1 to 5."""

STANDARD = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The fifteen corruptions of the benchmarks, in their order."""

EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The four that were held out for tuning."""

CORRUPTIONS: dict[str, Function] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur,
    "spatter": spatter,
    "saturate": saturate,
}


@dataclass(frozen=True)
class Corruption:
    """A corruption of one severity: a random transform ``(x, generator) -> x`` that pickles.

    Parameters
    ----------
    function : callable
        See :data:`Function`.
    severity : float
        1 (weak) to 5 (strong); between whole numbers constants are interpolated, or, where they are whole numbers or
        change what is done, the neighbouring images of the same draws are blended. 0 leaves images as they are.
    bytes : bool
        Round the result down to multiples of 1/255, as the published files are.

    Raises
    ------
    InputError
        When called on anything but images, or on the CPU on values outside [0, 1] (a device would be waited for).
    """

    function: Function
    severity: float
    bytes: bool = False

    @property
    def note(self) -> str:
        """What the record of a run must say of it besides the scenario's parameters; most often nothing."""
        return str(getattr(self.function, "note", ""))

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the corrupted batch."""
        if self.severity == 0:
            return x
        if x.device.type == "cpu" and x.is_floating_point():
            check_range(x, str(getattr(self.function, "__name__", self.function)))
        out = self.function(x, self.severity, generator)
        return to_levels(out).div_(255) if self.bytes else out


def names() -> dict[str, str]:
    """Return the corruptions, each with one line that says what it is.

    Examples
    --------
    >>> names()["gaussian_noise"]
    'Independent normal noise on every pixel, as a sensor has in low light.'
    """
    return {name: (inspect.getdoc(function) or "").partition("\n")[0] for name, function in CORRUPTIONS.items()}


def get(corruption: str | Function, severity: float = 3, bytes: bool = False) -> Corruption:
    """Return a corruption at a severity.

    Parameters
    ----------
    corruption : str or callable
        A key of :func:`names`, or ``function(x, severity, generator) -> x`` for images (B, C, H, W) in [0, 1]; it must
        pickle for the stream to pickle.
    severity : float
        1 (weak) to 5 (strong), or 0 for none.
    bytes : bool
        Round the result down to multiples of 1/255, as the published files are.

    Returns
    -------
    Corruption
        ``frost`` takes the original photographs where they are in ``$DRIFTLINE_DATA/frost`` (by default
        ``~/.cache/driftline/frost``), else textures of our own; its ``note``, which runs record, tells which. To
        choose, give ``Frost()`` or ``Frost(folder)`` in place of the name.

    Raises
    ------
    ConfigError
        For an unknown name, with the nearest one, or a severity out of range.

    Examples
    --------
    >>> import torch
    >>> noise = get("gaussian_noise", severity=3)
    >>> noise(torch.full((1, 1, 2, 2), 0.5), torch.Generator().manual_seed(0)).shape
    torch.Size([1, 1, 2, 2])
    >>> get("gausian_noise")
    Traceback (most recent call last):
    driftline.errors.ConfigError: unknown corruption 'gausian_noise'; did you mean 'gaussian_noise'? ...
    """
    if isinstance(severity, bool) or not isinstance(severity, Real) or not (severity == 0 or 1 <= severity <= 5):
        raise ConfigError(f"severity={severity!r}: must be a number from 1 (weak) to 5 (strong), or 0 for none")
    if isinstance(corruption, str):
        if corruption not in CORRUPTIONS:
            raise unknown("corruption", corruption, CORRUPTIONS)
        return Corruption(_found_frost() if corruption == "frost" else CORRUPTIONS[corruption], float(severity), bytes)
    if not callable(corruption):
        raise ConfigError(f"corruption={corruption!r}: must be a name or function(x, severity, generator) -> x")
    return Corruption(corruption, float(severity), bytes)


def _found_frost() -> Frost:
    folder = data_root() / "frost"
    return Frost(str(folder) if all((folder / name).is_file() for name in FILES) else None)
