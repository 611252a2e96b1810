"""Labels on their way: samples wait here until their label arrives."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from driftline.stream.segment import NEVER


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
        self._push(Waiting(x, y, due))

    def _push(self, waiting: Waiting) -> None:
        heapq.heappush(self._heap, (int(waiting.due[0]), next(self._count), waiting))

    def pop(self, now: int) -> tuple[Tensor, Tensor] | None:
        """Take out all samples whose label is due before position ``now``; None when there are none."""
        ready: list[Waiting] = []
        while self._heap and self._heap[0][0] < now:
            _, _, waiting = heapq.heappop(self._heap)
            cut = int(torch.searchsorted(waiting.due, now))
            ready.append(waiting.part(slice(0, cut)))
            if cut < len(waiting.due):
                self._push(waiting.part(slice(cut, None)))
        if not ready:
            return None
        if len(ready) == 1:
            return ready[0].x, ready[0].y
        return torch.cat([r.x for r in ready]), torch.cat([r.y for r in ready])

    def state_dict(self) -> dict[str, object]:
        """Return the waiting samples, in order."""
        return {"waiting": [[w.x, w.y, w.due] for _, _, w in sorted(self._heap, key=lambda entry: entry[:2])]}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        self._heap = []
        for x, y, due in cast(Sequence[tuple[Tensor, Tensor, Tensor]], state["waiting"]):
            self._push(Waiting(x, y, due))
