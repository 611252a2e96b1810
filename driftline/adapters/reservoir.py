"""NOTE's memory: a reservoir that is balanced over the predicted classes (Gong et al., NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, cast

import torch
from torch import Tensor

from driftline.adapters.settings import at_least
from driftline.errors import CheckpointError
from driftline.stream.seeds import derive_seed, generator


class BalancedReservoir:
    """Keeps samples as evenly as it can over predicted classes, and within a class over time.

    While there are places, everything is kept. Then a newcomer of a class that is not among the largest takes the place
    of a random sample of one of the largest; a newcomer of one of the largest replaces a random sample of its own with
    the probability (kept of the class) / (seen of the class).

    Parameters
    ----------
    capacity : int
        Places, at least 1.
    classes : int
        At least 2.
    seed : int
        For the draws, which depend on it and on how many samples have been seen.

    Attributes
    ----------
    samples : Tensor or None
        (capacity, *input); the first ``size`` are taken.
    label : Tensor
        (capacity,) integers, on the CPU, where decisions are made.
    counts : Tensor
        (classes,) samples seen of each class.

    Notes
    -----
    Source: Gong et al., *NOTE: robust continual test-time adaptation against temporal correlation*, NeurIPS 2022,
    prediction-balanced reservoir sampling.

    Examples
    --------
    >>> memory = BalancedReservoir(4, classes=2)
    >>> for number in range(20):
    ...     memory.add(torch.tensor([float(number)]), label=int(number >= 18))
    >>> sorted(memory.label.tolist())
    [0, 0, 1, 1]
    """

    def __init__(self, capacity: int, classes: int, seed: int = 0) -> None:
        at_least("capacity", capacity, 1)
        at_least("classes", classes, 2)
        self.capacity, self.classes, self.seed = capacity, classes, seed
        self.size = 0
        self.samples: Tensor | None = None
        self.label = torch.zeros(capacity, dtype=torch.long)
        self.counts = torch.zeros(classes, dtype=torch.long)

    def add(self, sample: Tensor, label: int) -> None:
        """Offer a sample (*input) and its predicted class."""
        self.counts[label] += 1
        place = self._place(label)
        if place is None:
            return
        if self.samples is None:
            self.samples = sample.new_zeros(self.capacity, *sample.shape)
        self.samples[place], self.label[place] = sample, label
        self.size = max(self.size, place + 1)

    def _place(self, label: int) -> int | None:
        """Return the place that a newcomer takes, or None when it must go."""
        if self.size < self.capacity:
            return self.size
        seen = int(self.counts.sum())
        u = torch.rand(3, generator=generator(derive_seed(self.seed, "reservoir", seen)), dtype=torch.float64).tolist()
        kept = torch.bincount(self.label, minlength=self.classes)
        largest = (kept == kept.max()).nonzero().flatten()
        if kept[label] < kept.max():
            label = int(largest[int(u[0] * len(largest))])
        elif u[0] * int(self.counts[label]) > int(kept[label]):
            return None
        own = (self.label == label).nonzero().flatten()
        return int(own[int(u[1] * len(own))])

    def kept(self) -> Tensor:
        """Return the samples (size, *input)."""
        assert self.samples is not None
        return self.samples[: self.size]

    def state_dict(self) -> dict[str, object]:
        """Return what is kept: tensors and numbers."""
        samples = None if self.samples is None else self.samples[: self.size]
        return {
            "capacity": self.capacity,
            "samples": samples,
            "label": self.label[: self.size],
            "counts": self.counts,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When the memory has another capacity or number of classes.
        """
        counts, samples = cast(Tensor, state["counts"]), cast(Tensor | None, state["samples"])
        if (state["capacity"], len(counts)) != (self.capacity, self.classes):
            raise CheckpointError(
                f"the state's memory has {state['capacity']} places for {len(counts)} classes, this one "
                f"{self.capacity} for {self.classes}"
            )
        device = None if self.samples is None else self.samples.device
        self.size = 0 if samples is None else len(samples)
        self.samples = None
        if samples is not None:
            self.samples = samples.new_zeros(self.capacity, *samples.shape[1:], device=device or samples.device)
            self.samples[: self.size] = samples
        self.label.zero_()
        self.label[: self.size] = cast(Tensor, state["label"])
        self.counts.copy_(counts)

    def to(self, device: torch.device | str) -> Self:
        """Move the samples."""
        if self.samples is not None:
            self.samples = self.samples.to(device)
        return self
