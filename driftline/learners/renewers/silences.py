"""How long units stay silent between two times that they fire: one histogram for each unit, in bins of equal ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from driftline.errors import CheckpointError
from driftline.learners.replicas import Setting, spread

PER_OCTAVE = 8
"""Bins between a length and twice that length: a threshold is at most 9 % above its percentile."""
TENSORS = ("age", "threshold", "counts")


class Silences:
    """Lengths of silences, and from them how long a silence of each unit may last.

    Parameters
    ----------
    like : Tensor, shape (R?, units)
        Where the tensors are to be, and how many units there are.
    threshold : int
        Silence from which a unit is rejected at first, in samples.
    lowest, highest : int
        Bounds of thresholds.

    Attributes
    ----------
    age : Tensor
        int64 (R?, units): samples since a unit fired.
    threshold : Tensor
        int64 (R?, units): silence from which it is rejected.
    counts : Tensor
        int32 (R?, units, bins): past silences by length.

    Examples
    --------
    >>> silences = Silences(torch.zeros(2), threshold=100, lowest=2, highest=1000)
    >>> for fired in ([True, True], [False, False], [True, False], [False, False], [True, False]):
    ...     silences.meet(torch.tensor(fired), samples=1)
    >>> silences.age.tolist()
    [0, 4]
    >>> silences.adjust(eta=0.1)
    >>> silences.threshold.tolist()
    [2, 2]
    """

    def __init__(self, like: Tensor, threshold: int, lowest: int, highest: int) -> None:
        self.lowest, self.highest = lowest, highest
        bins = math.ceil(math.log2(highest) * PER_OCTAVE) + 1
        self.age = torch.zeros_like(like, dtype=torch.int64)
        self.threshold = torch.full_like(self.age, threshold)
        self.counts = torch.zeros(*like.shape, bins, dtype=torch.int32, device=like.device)

    def meet(self, fired: Tensor, samples: int) -> None:
        """Take in which units fired in a batch of so many samples; a silence ends where one did."""
        self.note(fired & (self.age > 0))
        self.age.add_(samples).masked_fill_(fired, 0)

    def note(self, over: Tensor) -> None:
        """Count the silences of these units, which are over."""
        place = (self.age.clamp_min(1).double().log2() * PER_OCTAVE).ceil().long()
        place = place.clamp_max(self.counts.shape[-1] - 1).unsqueeze(-1)
        self.counts.scatter_add_(-1, place, over.to(self.counts.dtype).unsqueeze(-1))

    def rejected(self) -> Tensor:
        """Return which units have been silent for too long: (R?, units)."""
        return self.age >= self.threshold

    def adjust(self, eta: Setting) -> None:
        """Set each threshold to the length that a share ``eta`` of past silences exceeded, and forget them.

        A threshold that this would not lower is doubled instead; without any silence it becomes the lowest.
        """
        below = self.counts.cumsum(-1).double()
        enough = below >= (1 - spread(eta, below)) * below[..., -1:]
        place = enough.byte().argmax(-1)
        length = torch.exp2(place.double() / PER_OCTAVE).floor().long()
        lowered = torch.where(length < self.threshold, length, 2 * self.threshold)
        self.threshold = lowered.clamp(self.lowest, self.highest)
        self.counts.zero_()

    def to(self, device: torch.device) -> None:
        """Follow the model to its device."""
        for name in TENSORS:
            setattr(self, name, getattr(self, name).to(device))

    def state(self) -> dict[str, object]:
        """Return copies of all tensors."""
        return {name: getattr(self, name).clone() for name in TENSORS}

    def check_state(self, state: Mapping[str, object]) -> None:
        """Raise unless a state is one of as many units and bins.

        Raises
        ------
        CheckpointError
        """
        for name in TENSORS:
            saved, own = (tuple(cast(Tensor, t).shape) for t in (state[name], getattr(self, name)))
            if saved != own:
                raise CheckpointError(f"the state's {name} has shape {saved}, here it has {own}")

    def load(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state`."""
        for name in TENSORS:
            getattr(self, name).copy_(state[name])
