"""A network of a body and a head, and what making one needs: seeds, shapes, normalisation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from driftline.errors import ConfigError, unknown

NORMALIZATIONS = ("none", "layer", "batch")


class Network(nn.Module):
    """A body that makes features and a linear head that makes scores.

    Parameters
    ----------
    body : nn.Sequential
        Maps (B, *input) to features (B, F).
    head : nn.Linear
        Maps features to scores (B, classes).

    Examples
    --------
    >>> network = Network(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3))
    >>> network.features(torch.zeros(1, 4)).shape, network(torch.zeros(1, 4)).shape
    (torch.Size([1, 8]), torch.Size([1, 3]))
    """

    def __init__(self, body: nn.Sequential, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def features(self, x: Tensor) -> Tensor:
        """Return the features (B, F) that the head sees."""
        features: Tensor = self.body(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, classes)."""
        scores: Tensor = self.head(self.features(x))
        return scores


def normalization_of(name: str, units: int, images: bool = True) -> list[nn.Module]:
    """Return the normalisation layer of so many units, in a list: an empty one for none."""
    if name not in NORMALIZATIONS:
        raise unknown("normalization", str(name), NORMALIZATIONS)
    if name == "batch":
        return [nn.BatchNorm2d(units) if images else nn.BatchNorm1d(units)]
    if name == "layer":
        return [nn.GroupNorm(1, units) if images else nn.LayerNorm(units)]
    return []


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initialise modules from a seed and leave the global random state as it was.

    PyTorch's modules draw their initial weights from the global generator of the default device. So that is made
    the CPU's, whatever the caller's default device is; it starts at the seed in here, and fork_rng restores it,
    also after an error. torch.manual_seed would reseed the accelerators' generators as well, for good.
    """
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def image_shape(shape: Sequence[int], smallest: int) -> tuple[int, int, int]:
    """Return channels, height and width of an image, or raise."""
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < smallest:
        raise ConfigError(
            f"input_shape={tuple(shape)}: expected an image (channels, height, width) of at least "
            f"{smallest}x{smallest} pixels; use mlp for anything else"
        )
    return shape[0], shape[1], shape[2]


def check_sizes(**sizes: Sequence[int]) -> None:
    """Raise unless all sizes are whole numbers of at least 1."""
    for argument, values in sizes.items():
        if not all(isinstance(value, int) and value >= 1 for value in values):
            raise ConfigError(f"{argument}={tuple(values)}: sizes must be whole numbers of at least 1")
