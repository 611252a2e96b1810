"""Image corruptions of Hendrycks & Dietterich (ICLR 2019), one file each, drawn on the samples' device."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from driftline.errors import ConfigError, unknown
from driftline.scenarios.corruptions.brightness import brightness
from driftline.scenarios.corruptions.contrast import contrast
from driftline.scenarios.corruptions.defocus_blur import defocus_blur
from driftline.scenarios.corruptions.elastic_transform import elastic_transform
from driftline.scenarios.corruptions.fog import fog
from driftline.scenarios.corruptions.gaussian_blur import gaussian_blur
from driftline.scenarios.corruptions.gaussian_noise import gaussian_noise
from driftline.scenarios.corruptions.glass_blur import glass_blur
from driftline.scenarios.corruptions.impulse_noise import impulse_noise
from driftline.scenarios.corruptions.motion_blur import motion_blur
from driftline.scenarios.corruptions.pixelate import pixelate
from driftline.scenarios.corruptions.saturate import saturate
from driftline.scenarios.corruptions.shot_noise import shot_noise
from driftline.scenarios.corruptions.snow import snow
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
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur,
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
        1 (weak) to 5 (strong), in fractions where the corruption knows them; 0 leaves images as they are.
    """

    function: Function
    severity: float

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the corrupted batch."""
        return x if self.severity == 0 else self.function(x, self.severity, generator)


def names() -> dict[str, str]:
    """Return the corruptions, each with one line that says what it is.

    Examples
    --------
    >>> names()["gaussian_noise"]
    'Independent normal noise on every pixel, as a sensor has in low light.'
    """
    return {name: (inspect.getdoc(function) or "").partition("\n")[0] for name, function in CORRUPTIONS.items()}


def get(corruption: str | Function, severity: float = 3) -> Corruption:
    """Return a corruption at a severity.

    Parameters
    ----------
    corruption : str or callable
        A key of :func:`names`, or ``function(x, severity, generator) -> x`` for images (B, C, H, W) in [0, 1]; it must
        pickle for the stream to pickle.
    severity : float
        1 (weak) to 5 (strong), or 0 for none.

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
        return Corruption(CORRUPTIONS[corruption], float(severity))
    if not callable(corruption):
        raise ConfigError(f"corruption={corruption!r}: must be a name or function(x, severity, generator) -> x")
    return Corruption(corruption, float(severity))
