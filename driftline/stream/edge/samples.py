"""What comes out of the edge loop: predictions; and what goes in, as samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from driftline.stream.events import Id, Sample

Served = Literal["adapted", "shipped", "none"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer to one sample.

    Parameters
    ----------
    id : int or str
        Of the sample.
    position : int
        Which item of the source it was, from 0.
    scores : Tensor or None
        (classes,); None when the sample could not be used.
    served : "adapted", "shipped" or "none"
        Which model answered.
    latency : float
        Seconds from the sample's arrival to this answer.
    error : str, optional
        Why there are no scores.

    Examples
    --------
    >>> import torch
    >>> Prediction(7, 7, torch.tensor([0.1, 2.0]), "adapted", 0.004).label
    1
    """

    id: Id
    position: int
    scores: Tensor | None
    served: Served
    latency: float
    error: str | None = None

    @property
    def label(self) -> int | None:
        """The class with the highest score, or None."""
        return None if self.scores is None else int(self.scores.argmax())


def as_sample(item: object) -> Sample:
    """Return an item of a source as a sample: it is one, a pair (x, y), or x alone.

    Examples
    --------
    >>> as_sample(([1.0], 2)).y, as_sample([1.0]).y
    (2, None)
    """
    if isinstance(item, Sample):
        return item
    return Sample(*item) if isinstance(item, tuple) and len(item) == 2 else Sample(item)
