"""Replay memories: preallocated tensors on the samples' device, constant work per sample.

Which slot a sample goes to is drawn on the host, so nothing is read back from the device (except the labels, by
:class:`ClassBalancedReplay`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Self, cast

import torch
from torch import Tensor

from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.stream.seeds import generator

State = dict[str, object]


class Replay(ABC):
    """A memory of at most ``capacity`` samples.

    Parameters
    ----------
    capacity : int
        Number of samples, at least 1. Memory is taken when the first sample comes.
    seed : int
        Keys every draw.

    Raises
    ------
    ConfigError
        When the capacity is below 1.
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        if capacity < 1:
            raise ConfigError(f"capacity={capacity}: a replay memory holds at least one sample")
        self.capacity = capacity
        self.seen = 0
        self._rng = generator(seed)
        self._x = self._y = torch.empty(0)

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    @abstractmethod
    def slots(self, y: Tensor) -> Sequence[int]:
        """Return the slot for each sample of a batch, or -1 to leave it out; ``seen`` counts those before it."""

    def add(self, x: Tensor, y: Tensor) -> None:
        """Offer samples (B, *input) and labels (B,) to the memory.

        Where two samples of a batch get the same slot, the later one stays.
        """
        self.put(self.place(y), x, y)

    def place(self, y: Tensor) -> dict[int, int]:
        """Draw where labels (B,) and their samples go, and count them; return the sample's number for each slot."""
        chosen = {slot: i for i, slot in enumerate(self.slots(y)) if slot >= 0}
        self.seen += len(y)
        return chosen

    def put(self, chosen: Mapping[int, int], x: Tensor, y: Tensor) -> None:
        """Write some of the samples (B, *input) and labels (B,): for each slot, the one of that number."""
        if not len(self._x):
            self._x = x.new_zeros((self.capacity, *x.shape[1:]))
            self._y = y.new_zeros((self.capacity, *y.shape[1:]))
        if chosen:
            slots = torch.tensor(list(chosen), device=x.device)
            new = torch.tensor(list(chosen.values()), device=x.device)
            self._x.index_copy_(0, slots, x.index_select(0, new))
            self._y.index_copy_(0, slots, y.index_select(0, new))

    def sample(self, count: int) -> tuple[Tensor, Tensor] | None:
        """Draw ``count`` samples without replacement (all there are, when fewer); None from an empty memory."""
        drawn = self.draw(count)
        return self.get(torch.tensor(drawn, device=self._x.device)) if drawn else None

    def draw(self, count: int) -> list[int]:
        """Draw the slots of ``count`` distinct samples; of all there are, when fewer."""
        filled = len(self)
        return self._distinct(min(count, filled), filled) if filled else []

    def get(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples and labels in slots (B,)."""
        return self._x.index_select(0, slots), self._y.index_select(0, slots)

    def _distinct(self, count: int, filled: int) -> list[int]:
        """Distinct slots in random order: uniform draws, repeats skipped, so the work does not grow with capacity."""
        if 2 * count >= filled:
            return cast(list[int], torch.randperm(filled, generator=self._rng)[:count].tolist())
        found: dict[int, None] = {}
        while len(found) < count:
            draws = torch.randint(filled, (count + 4,), generator=self._rng)
            found.update(dict.fromkeys(draws.tolist()))
        return list(found)[:count]

    @property
    def nbytes(self) -> int:
        """Bytes that the stored samples and labels take."""
        return sum(t.numel() * t.element_size() for t in (self._x, self._y))

    def describe(self) -> dict[str, object]:
        """Return name and capacity for the record."""
        return {"name": type(self).__name__, "capacity": self.capacity}

    def to(self, device: torch.device | str) -> Self:
        """Move the stored samples to ``device``."""
        self._x, self._y = self._x.to(device), self._y.to(device)
        return self

    def state_dict(self) -> State:
        """Return contents, counters and the random state."""
        filled = len(self)
        return {
            "kind": type(self).__name__,
            "capacity": self.capacity,
            "seen": self.seen,
            "rng": self._rng.get_state(),
            "x": self._x[:filled],
            "y": self._y[:filled],
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict` of a memory of the same kind and capacity.

        Raises
        ------
        CheckpointError
            When kind or capacity differ; nothing has been changed then.
        """
        if state.get("kind") != type(self).__name__:
            raise CheckpointError(f"saved from a {state.get('kind')}, but this memory is a {type(self).__name__}")
        if state.get("capacity") != self.capacity:
            raise CheckpointError(f"saved replay capacity {state.get('capacity')}, but this memory has {self.capacity}")
        self.seen = cast(int, state["seen"])
        self._rng.set_state(cast(Tensor, state["rng"]))
        x, y = cast(Tensor, state["x"]), cast(Tensor, state["y"])
        if len(x):
            self._x = x.new_zeros((self.capacity, *x.shape[1:]))
            self._y = y.new_zeros((self.capacity, *y.shape[1:]))
            self._x[: len(x)], self._y[: len(y)] = x, y
        else:
            self._x = self._y = torch.empty(0)


class ReservoirReplay(Replay):
    """Every sample seen so far is in the memory with the same probability.

    Algorithm R of Vitter, "Random Sampling with a Reservoir" (1985): sample n takes slot j, drawn uniformly from
    the n slots, if j is below the capacity. Each sample of a batch is counted on its own.

    Examples
    --------
    >>> import torch
    >>> memory = ReservoirReplay(capacity=3)
    >>> memory.add(torch.arange(10.0).unsqueeze(1), torch.arange(10))
    >>> x, y = memory.sample(2)
    >>> x.shape, len(memory)
    (torch.Size([2, 1]), 3)
    """

    def slots(self, y: Tensor) -> Sequence[int]:
        """Return a uniform slot among all seen so far, for each sample."""
        first, count = self.seen, len(y)
        if first + count <= self.capacity:
            return range(first, first + count)
        draws = torch.rand(count, dtype=torch.float64, generator=self._rng).tolist()
        places = (n if n < self.capacity else int(draw * (n + 1)) for n, draw in enumerate(draws, first))
        return [place if place < self.capacity else -1 for place in places]


class SlidingReplay(Replay):
    """The most recent samples.

    Examples
    --------
    >>> import torch
    >>> memory = SlidingReplay(capacity=3)
    >>> memory.add(torch.arange(10.0).unsqueeze(1), torch.arange(10))
    >>> sorted(memory.sample(3)[1].tolist())
    [7, 8, 9]
    """

    def slots(self, y: Tensor) -> Sequence[int]:
        """Return the slot of the oldest sample, for each new one."""
        return [n % self.capacity for n in range(self.seen, self.seen + len(y))]


class ClassBalancedReplay(Replay):
    """As many samples of each class as possible, each a uniform draw from its class.

    Class-balancing reservoir sampling of Chrysakis & Moens, "Online Continual Learning from Imbalanced Data" (ICML
    2020). Needs the labels of each batch on the host.

    Examples
    --------
    >>> import torch
    >>> memory = ClassBalancedReplay(capacity=4)
    >>> memory.add(torch.zeros(100, 1), torch.zeros(100, dtype=torch.long))
    >>> memory.add(torch.ones(2, 1), torch.ones(2, dtype=torch.long))
    >>> sorted(memory.sample(4)[1].tolist())
    [0, 0, 1, 1]
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        super().__init__(capacity, seed)
        self._members: dict[int, list[int]] = {}
        self._counts: dict[int, int] = {}
        self._full: set[int] = set()

    def slots(self, y: Tensor) -> Sequence[int]:
        """Return a free slot, then one of the largest class, or of the same class once that was the largest."""
        if y.is_floating_point():
            raise InputError(f"ClassBalancedReplay needs class indices, got {y.dtype} targets; use ReservoirReplay")
        draws = torch.rand(2 * len(y), dtype=torch.float64, generator=self._rng).tolist()
        return [self._slot(label, self.seen + i, draws[2 * i], draws[2 * i + 1]) for i, label in enumerate(y.tolist())]

    def _slot(self, label: int, position: int, accept: float, which: float) -> int:
        mine = self._members.setdefault(label, [])
        count = self._counts[label] = self._counts.get(label, 0) + 1
        if position < self.capacity:
            mine.append(position)
            return position
        self._full.update(self._largest())
        if label in self._full:
            return mine[int(which * len(mine))] if mine and accept <= len(mine) / count else -1
        largest = self._members[min(self._largest())]
        index = int(which * len(largest))
        largest[index], largest[-1] = largest[-1], largest[index]
        slot = largest.pop()
        mine.append(slot)
        return slot

    def _largest(self) -> list[int]:
        top = max(len(m) for m in self._members.values())
        return [c for c, m in self._members.items() if len(m) == top]

    def state_dict(self) -> State:
        """Return contents, counters, the random state and which slot belongs to which class."""
        classes = {str(c): (m, self._counts[c], c in self._full) for c, m in self._members.items()}
        return {**super().state_dict(), "classes": {c: [list(m), n, full] for c, (m, n, full) in classes.items()}}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict` of a memory of the same capacity."""
        super().load_state_dict(state)
        classes = cast(Mapping[str, tuple[list[int], int, bool]], state["classes"])
        self._members = {int(c): list(members) for c, (members, _, _) in classes.items()}
        self._counts = {int(c): count for c, (_, count, _) in classes.items()}
        self._full = {int(c) for c, (_, _, full) in classes.items() if full}
