"""A memory of labelled features on the device: adding one costs the same however many there are."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Literal, Self, cast

import torch
from torch import Tensor

from driftline.adapters.settings import at_least, one_of
from driftline.errors import CheckpointError

Eviction = Literal["oldest", "reservoir", "balanced"]


class FeatureMemory:
    """Features and labels in preallocated tensors: first those that stay, then those that come and go.

    Parameters
    ----------
    features : Tensor
        (N, F): what stays.
    labels : Tensor
        (N,) class indices.
    classes : int
        Number of classes.
    capacity : int, optional
        Places for what is added, at least 1. None: as many as it takes; the tensors are doubled when full, so that
        a sample's cost is constant on average.
    eviction : "oldest", "reservoir" or "balanced"
        Whose place a newcomer takes when all are taken. "oldest": of the one added first. "reservoir": of a random one,
        or it is not kept, such that all samples so far are kept with the same probability. "balanced": of the oldest
        in the largest class (its own, if that is as large), so that no class crowds out the others.
    seed : int
        For "reservoir".

    Attributes
    ----------
    size : int
        Samples in it; the first ``size`` rows of ``features`` and ``labels`` are taken.
    fixed : int
        Those of them that stay.
    seen : int
        Samples added so far, kept or not.

    Examples
    --------
    >>> memory = FeatureMemory(torch.zeros(1, 2), torch.tensor([0]), classes=2, capacity=3, eviction="balanced")
    >>> memory.add(torch.randn(5, 2), torch.tensor([0, 0, 1, 0, 0]))
    >>> memory.size, sorted(memory.labels[: memory.size].tolist())
    (4, [0, 0, 0, 1])
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        classes: int,
        capacity: int | None = None,
        eviction: Eviction = "oldest",
        seed: int = 0,
    ) -> None:
        if capacity is not None:
            at_least("capacity", capacity, 1)
        one_of("eviction", eviction, ("oldest", "reservoir", "balanced"))
        self.classes, self.capacity, self.eviction = classes, capacity, eviction
        self.fixed = self.size = len(features)
        self.seen = 0
        places = self.fixed + (max(64, self.fixed) if capacity is None else capacity)
        self.features = features.new_zeros(places, features.shape[1])
        self.labels = labels.new_zeros(places)
        self.features[: self.fixed], self.labels[: self.fixed] = features, labels
        self._random = torch.Generator().manual_seed(seed)
        # Of each class the places of what was added, oldest first; only "balanced" needs to know.
        self._queues: list[deque[int]] = [deque() for _ in range(classes)]

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add samples: features (n, F) and labels (n,)."""
        count = len(features)
        if count == 0:
            return
        if self.capacity is None:
            self._grow(self.size + count)
            place = slice(self.size, self.size + count)
            self.features[place], self.labels[place] = features, labels
            self.size += count
        else:
            # Of newcomers that take the same place the last has it.
            final = {place: number for number, place in enumerate(self._places(labels)) if place is not None}
            if final:
                places = torch.tensor([*final], device=self.features.device)
                numbers = torch.tensor([*final.values()], device=self.features.device)
                self.features.index_copy_(0, places, features[numbers])
                self.labels.index_copy_(0, places, labels[numbers])
        self.seen += count

    def _grow(self, needed: int) -> None:
        places = len(self.labels)
        if needed > places:
            more = max(needed, 2 * places) - places
            self.features = torch.cat((self.features, self.features.new_zeros(more, self.features.shape[1])))
            self.labels = torch.cat((self.labels, self.labels.new_zeros(more)))

    def _places(self, labels: Tensor) -> list[int | None]:
        """Return for each newcomer, one after another, the row it takes, or None when it is not kept."""
        assert self.capacity is not None
        end = self.fixed + self.capacity
        places: list[int | None] = []
        known = labels.tolist() if self.eviction == "balanced" else [0] * len(labels)
        for number, label in enumerate(known, self.seen):
            place: int | None
            if self.size < end:
                place = self.size
                self.size += 1
            elif self.eviction == "oldest":
                place = self.fixed + number % self.capacity
            elif self.eviction == "reservoir":
                drawn = int(torch.randint(number + 1, (), generator=self._random))
                place = self.fixed + drawn if drawn < self.capacity else None
            else:
                largest = max(range(self.classes), key=lambda c: (len(self._queues[c]), c == label))
                place = self._queues[largest].popleft()
            if self.eviction == "balanced":
                self._queues[label].append(cast(int, place))
            places.append(place)
        return places

    def state_dict(self) -> dict[str, object]:
        """Return what is kept: tensors and numbers."""
        return {
            "features": self.features[: self.size].clone(),
            "labels": self.labels[: self.size].clone(),
            "fixed": self.fixed,
            "seen": self.seen,
            "queues": [list(queue) for queue in self._queues],
            "random": self._random.get_state(),
            "rule": self.rule,
        }

    @property
    def rule(self) -> str:
        """What a state must agree on to be continued."""
        return f"{self.eviction} of {self.capacity}" if self.capacity else "unbounded"

    def check_state(self, state: Mapping[str, object]) -> None:
        """Raise if a state belongs to another memory.

        Raises
        ------
        CheckpointError
        """
        shape = tuple(cast(Tensor, state["features"]).shape)
        if state["rule"] != self.rule or shape[1] != self.features.shape[1]:
            raise CheckpointError(
                f"the state's memory is {state['rule']} with features of {shape[1]} values, this one {self.rule} with "
                f"{self.features.shape[1]}"
            )

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When it belongs to another memory; nothing has been changed then.
        """
        self.check_state(state)
        features, labels = cast(Tensor, state["features"]), cast(Tensor, state["labels"])
        self.size, self.fixed, self.seen = len(features), cast(int, state["fixed"]), cast(int, state["seen"])
        places = self.size + max(64, self.size) if self.capacity is None else self.fixed + self.capacity
        self.features = self.features.new_zeros(places, features.shape[1])
        self.labels = self.labels.new_zeros(places)
        self.features[: self.size], self.labels[: self.size] = features, labels
        self._queues = [deque(queue) for queue in cast(list[list[int]], state["queues"])]
        self._random.set_state(cast(Tensor, state["random"]).cpu())

    def to(self, device: torch.device | str) -> Self:
        """Move everything."""
        self.features, self.labels = self.features.to(device), self.labels.to(device)
        return self
