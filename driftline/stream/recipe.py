"""Recipes: how rows of a dataset become samples, and when their labels arrive."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from driftline.stream.dataset import Dataset

NEVER = -1
"""Due position of a label that never arrives."""


@dataclass(frozen=True)
class Transform:
    """A function of a batch ``x``, or of ``x`` and a generator when ``random``."""

    function: Callable[..., Tensor]
    random: bool = False

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the transformed batch."""
        return self.function(x, generator) if self.random else self.function(x)


@dataclass(frozen=True, eq=False)
class Recipe:
    """How rows of a dataset become samples, and when their labels arrive.

    Parameters
    ----------
    data : Dataset
        Where the rows come from.
    transforms : tuple of Transform
        Applied in order.
    labels : Tensor, shape (len(data),), optional
        The truth of each row, in place of ``data.y``.
    relabel : Tensor, shape (classes,), optional
        Class c is presented as class ``relabel[c]``.
    delay : int
        Samples that pass before a label arrives.
    fraction : float
        Share of the samples whose label arrives at all.
    look : str
        Name of the domain, for metrics and records; empty: that of the segment.
    """

    data: Dataset
    transforms: tuple[Transform, ...] = ()
    labels: Tensor | None = None
    relabel: Tensor | None = None
    delay: int = 0
    fraction: float = 1.0
    look: str = ""

    @property
    def truth(self) -> Tensor | None:
        """The presented label of each row of the dataset, on the dataset's device."""
        y = self.data.y if self.labels is None else self.labels.to(self.data.x.device)
        return y if y is None or self.relabel is None else self.relabel.to(y.device)[y]

    @property
    def random(self) -> bool:
        """Whether a transform draws random numbers."""
        return any(t.random for t in self.transforms)

    def held_out(self, split: str) -> Recipe | None:
        """The recipe that shows another split's rows in the same way; None where there is no truth for them."""
        other = self.data.splits.get(split)
        if other is None or other.y is None or self.labels is not None:
            return None
        return replace(self, data=other, delay=0, fraction=1.0)

    @property
    def domain(self) -> Hashable:
        """Recipes of one domain show a sample in the same way (label policies aside)."""
        relabel = None if self.relabel is None else tuple(self.relabel.tolist())
        return (id(self.data), relabel, self.transforms)
