"""Labels on their way: samples wait here until their label arrives."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from driftline.stream.recipe import NEVER


@dataclass(frozen=True, slots=True)
class Waiting:
    """Samples in the order in which their labels arrive."""

    x: Tensor
    y: Tensor
    due: Tensor

    def part(self, places: slice) -> Waiting:
        """Return some of them."""
        return Waiting(self.x[places], self.y[places], self.due[places])


class LabelQueue:
    """Samples ordered by when their label arrives; those without one never enter.

    Examples
    --------
    >>> import torch
    >>> queue = LabelQueue()
    >>> queue.add(torch.rand(3, 2), torch.tensor([5, 6, 7]), due=torch.tensor([4, 9, -1]))
    >>> queue.pop(now=4) is None, queue.pop(now=5)[1].tolist(), len(queue)
    (True, [5], 1)
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Waiting]] = []
        self._count = itertools.count()

    def __len__(self) -> int:
        return sum(len(waiting.due) for _, _, waiting in self._heap)

    def __bool__(self) -> bool:
        return bool(self._heap)

    def add(self, x: Tensor, y: Tensor | None, due: Tensor) -> None:
        """Put samples in; ``due`` (B,) is on the CPU, the position at which each label arrives."""
        if y is None or bool((due == NEVER).all()):
            return
        kept = (due != NEVER).nonzero().flatten()
        order = kept[torch.argsort(due[kept], stable=True)]
        if not torch.equal(order, torch.arange(len(due))):
            index = order.to(x.device)
            x, y, due = x[index], y[index], due[order]
        self._push(next(self._count), Waiting(x, y, due))

    def _push(self, turn: int, waiting: Waiting) -> None:
        heapq.heappush(self._heap, (int(waiting.due[0]), turn, waiting))

    def pop(self, now: int) -> tuple[Tensor, Tensor] | None:
        """Take out all samples whose label is due before position ``now``; None when there are none.

        They come in the order in which their labels arrive; of labels that arrive at once, the older sample's first.
        """
        ready: list[tuple[int, Waiting]] = []
        while self._heap and self._heap[0][0] < now:
            _, turn, waiting = heapq.heappop(self._heap)
            cut = int(torch.searchsorted(waiting.due, now))
            ready.append((turn, waiting.part(slice(0, cut))))
            if cut < len(waiting.due):
                self._push(turn, waiting.part(slice(cut, None)))
        if not ready:
            return None
        parts = [waiting for _, waiting in sorted(ready, key=lambda entry: entry[0])]
        if len(parts) == 1:
            return parts[0].x, parts[0].y
        x, y, due = (torch.cat(column) for column in zip(*((p.x, p.y, p.due) for p in parts)))
        order = torch.argsort(due, stable=True)
        if torch.equal(order, torch.arange(len(due))):
            return x, y
        index = order.to(x.device)
        return x[index], y[index]

    def state_dict(self) -> dict[str, object]:
        """Return the waiting samples, in the order in which they came in."""
        return {"waiting": [[w.x, w.y, w.due] for _, _, w in sorted(self._heap, key=lambda entry: entry[1])]}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        self._heap = []
        for x, y, due in cast(Sequence[tuple[Tensor, Tensor, Tensor]], state["waiting"]):
            self._push(next(self._count), Waiting(x, y, due))
