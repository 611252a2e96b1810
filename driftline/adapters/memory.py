"""RoTTA's memory: balanced over the predicted classes, and of recent and certain samples (Yuan et al., CVPR 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from driftline.adapters.settings import at_least
from driftline.errors import CheckpointError


def rounds(seen: int, samples: int, every: int) -> Iterator[tuple[slice, bool]]:
    """Cut a batch where updates fall, which come after every so many samples: parts, and whether one follows.

    Examples
    --------
    >>> [*rounds(seen=60, samples=10, every=64)]
    [(slice(0, 4, None), True), (slice(4, 10, None), False)]
    """
    start = 0
    while start < samples:
        stop = min(samples, start + every - (seen + start) % every)
        yield slice(start, stop), (seen + stop) % every == 0
        start = stop


class BalancedMemory:
    """Keeps samples by predicted class, age and uncertainty (category-balanced sampling, CSTU).

    Each class has an equal part of the places. A newcomer takes a free place; where its class has its part already, it
    must take one of its class, and where all places are taken, one of the largest class. It takes that of the worst
    item there, by a score of age and uncertainty, if that is worse than itself.

    Parameters
    ----------
    capacity : int
        Places, at least 1.
    classes : int
        At least 2.
    lambda_t, lambda_u : float
        Weights of age and uncertainty in an item's score: lambda_t / (1 + exp(-age / capacity)) + lambda_u u / ln C.

    Attributes
    ----------
    samples : Tensor or None
        (capacity, *input); the first ``size`` are taken, in the order in which they came.
    label, age : Tensor
        (capacity,) integers.
    uncertainty : Tensor
        (capacity,) in nats.

    Notes
    -----
    Source: Yuan, Xie & Li, *Robust test-time adaptation in dynamic scenarios*, CVPR 2023, with the decisions of its
    released code: a class's part is a fraction, of equally bad items the last goes, by class and by arrival, and
    everything ages by one with each newcomer, the newcomer too. Labels, ages and uncertainties are on the CPU, where
    the decisions are made one after another; samples are where the model is.

    Examples
    --------
    >>> memory = BalancedMemory(2, 2)
    >>> for number in range(3):
    ...     memory.add(torch.full((1,), float(number)), 0, uncertainty=0.5)
    >>> memory.size, memory.samples[: memory.size].flatten(), memory.age[: memory.size]
    (1, tensor([2.]), tensor([1]))
    """

    def __init__(self, capacity: int, classes: int, lambda_t: float = 1.0, lambda_u: float = 1.0) -> None:
        at_least("capacity", capacity, 1)
        at_least("classes", classes, 2)
        self.capacity, self.classes, self.lambda_t, self.lambda_u = capacity, classes, lambda_t, lambda_u
        self.size = 0
        self.samples: Tensor | None = None
        self.label = torch.zeros(capacity, dtype=torch.long)
        self.age = torch.zeros(capacity, dtype=torch.long)
        self.uncertainty = torch.zeros(capacity, dtype=torch.float64)

    def add(self, sample: Tensor, label: int, uncertainty: float) -> None:
        """Offer a sample (*input), its predicted class, and the entropy of the prediction in nats."""
        place = self._place(label, uncertainty)
        if place is not None:
            if self.samples is None:
                self.samples = sample.new_zeros(self.capacity, *sample.shape)
            if place < self.size:
                # Those after it move up, so that places are in the order of arrival.
                for column in (self.samples, self.label, self.age, self.uncertainty):
                    column[place : self.size - 1] = column[place + 1 : self.size].clone()
                self.size -= 1
            self.samples[self.size] = sample
            self.label[self.size], self.age[self.size], self.uncertainty[self.size] = label, 0, uncertainty
            self.size += 1
        self.age[: self.size] += 1

    def _place(self, label: int, uncertainty: float) -> int | None:
        """Return the place that a newcomer takes, or None when it must go."""
        # NumPy's view of the columns: its operations on a few dozen values take a tenth of torch's time.
        labels = self.label.numpy()[: self.size]
        counts = np.bincount(labels, minlength=self.classes)
        if counts[label] < self.capacity / self.classes:
            if self.size < self.capacity:
                return self.size
            candidates = counts[labels] == counts.max()
        else:
            candidates = labels == label
        scores = self.scores(self.age.numpy()[: self.size], self.uncertainty.numpy()[: self.size])
        worst = scores[candidates].max()
        if not worst > self.scores(np.zeros(1), np.array([uncertainty]))[0]:
            return None
        # The last of the equally bad, by class and then by arrival.
        equal = (candidates & (scores == worst)).nonzero()[0]
        return int(equal[np.argsort(labels[equal], kind="stable")[-1]])

    def scores(self, age: npt.NDArray[Any], uncertainty: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return how much items of an age and an uncertainty deserve to go."""
        old = 1 / (1 + np.exp(-age / self.capacity))
        return self.lambda_t * old + self.lambda_u * uncertainty / math.log(self.classes)

    def by_class(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return samples, labels, uncertainties and ages by class, and in each by arrival."""
        assert self.samples is not None
        order = torch.argsort(self.label[: self.size], stable=True)
        samples = self.samples[order.to(self.samples.device)]
        return samples, self.label[order], self.uncertainty[order], self.age[order]

    def state_dict(self) -> dict[str, object]:
        """Return what is kept: tensors and numbers."""
        samples = None if self.samples is None else self.samples[: self.size]
        columns = {name: getattr(self, name)[: self.size] for name in ("label", "age", "uncertainty")}
        return {"capacity": self.capacity, "classes": self.classes, "samples": samples, **columns}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When the memory has another capacity or number of classes.
        """
        if (state["capacity"], state["classes"]) != (self.capacity, self.classes):
            raise CheckpointError(
                f"the state's memory has {state['capacity']} places for {state['classes']} classes, this one "
                f"{self.capacity} for {self.classes}"
            )
        device = None if self.samples is None else self.samples.device
        samples = cast(Tensor | None, state["samples"])
        self.size = 0 if samples is None else len(samples)
        self.samples = None
        if samples is not None:
            self.samples = samples.new_zeros(self.capacity, *samples.shape[1:], device=device or samples.device)
            self.samples[: self.size] = samples
        for name in ("label", "age", "uncertainty"):
            column = getattr(self, name)
            column.zero_()
            column[: self.size] = cast(Tensor, state[name])

    def to(self, device: torch.device | str) -> Self:
        """Move the samples."""
        if self.samples is not None:
            self.samples = self.samples.to(device)
        return self
