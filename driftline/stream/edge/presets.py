"""Ways of adapting by what they cost a device, from nothing to the scales and shifts of all normalisations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from driftline.adapters import LOW_RANK, T3A, Adapter, BatchNormAdapter, RDumb, Source, Tent, low_rank
from driftline.errors import unknown
from driftline.learners.optimizers import Adam


@dataclass(frozen=True)
class Preset:
    """An adapter and how it is best fed.

    Parameters
    ----------
    about : str
        What is adapted.
    make : callable
        Builds the adapter around a model, which is copied.
    batch_size : int
        Samples of one adaptation.
    window : int
        Samples that are predicted together.
    """

    about: str
    make: Callable[[nn.Module], Adapter]
    batch_size: int
    window: int = 1


PRESETS = {
    "fixed": Preset("nothing: the baseline", Source, 1),
    "statistics": Preset(
        "running statistics of batch normalisation; no gradients, a forward pass for each batch",
        lambda model: BatchNormAdapter(model, "running", momentum=0.05),
        8,
    ),
    "last-layer": Preset("prototypes in place of the last layer (T3A); no gradients", T3A, 1),
    "affine": Preset(
        "scales and shifts of normalisation, by gradients (Tent); predicts a window of samples at a time",
        # torch's own Adam makes the same steps, but loads torch's compiler: 70 MB and seconds.
        lambda model: Tent(model, optimizer=Adam),
        16,
        16,
    ),
    "low-rank": Preset(
        "a pair of small matrices beside each weight, by gradients; predicts a window of samples at a time",
        # Steps of Tent undo the network little by little. Beginning anew every 4 000 samples keeps more than a guard
        # that sees it later.
        lambda model: RDumb(low_rank(model), parameters=LOW_RANK, optimizer=Adam, reset_every=250),
        16,
        16,
    ),
}


def preset(name: str) -> Preset:
    """Return a preset by name.

    Raises
    ------
    ConfigError
        For an unknown name.

    Examples
    --------
    >>> preset("statistics").batch_size
    8
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]
