"""Where reading a live source has got to, so that a run can go on from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast, runtime_checkable

from torch import Tensor

from driftline.stream.events import Id, Labels
from driftline.stream.pending import PendingLabels


@runtime_checkable
class StatefulSource(Protocol):
    """A source that knows its place; ``iter(source)`` goes on from there."""

    def state_dict(self) -> dict[str, object]:
        """Return the place behind the last item given out: plain values only."""

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go to a place."""


class Reading:
    """One reading of a source, whose place is always that of the last batch given out."""

    def __init__(self, capacity: int, expire_after: int | None) -> None:
        self._limits = capacity, expire_after
        self._resumed = False
        self.restart(0)

    def restart(self, position: int) -> None:
        """Begin at a position of a source of samples only."""
        self.position = self.items = position
        self.labels: list[tuple[Id, Tensor]] = []
        self.pending = PendingLabels(*self._limits)

    def begin(self, start: int) -> None:
        """Begin to give out batches from a position on, or go on where this reading is."""
        if not self._resumed and (start == 0 or start != self.position):
            self.restart(start)
        self._resumed = False

    def take_labels(self, count: int) -> Labels:
        """Take out the first labels that wait to be given out."""
        taken, self.labels = self.labels[:count], self.labels[count:]
        return Labels(tuple(name for name, _ in taken), tuple(y for _, y in taken))

    def state_dict(self) -> dict[str, object]:
        """Return the place, and labels on their way."""
        return {
            "position": self.position,
            "items": self.items,
            "labels": [list(entry) for entry in self.labels],
            "pending": self.pending.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        self.position, self.items = cast(int, state["position"]), cast(int, state["items"])
        self.labels = [(name, y) for name, y in cast("list[tuple[Id, Tensor]]", state["labels"])]
        self.pending.load_state_dict(cast("Mapping[str, object]", state["pending"]))
        self._resumed = True
