"""Where a guarded adapter was taken back: each rollback's place in the stream, its signal and the level crossed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Protocol, cast, runtime_checkable

from driftline.metrics.base import Metric, Point
from driftline.stream.step import Step


@runtime_checkable
class Guard(Protocol):
    """What is looked at: any adapter that counts its rollbacks and describes the last ones."""

    rollbacks: int
    events: list[dict[str, object]]


class Rollbacks(Metric):
    """Count the rollbacks of a :class:`driftline.adapters.CollapseGuard`, and put each into the series.

    The guard may be inside of other wrappers. Where there is none the count is NaN. Unlike the guard's own, the count
    goes on when the adapter returns to its source.

    In the series each rollback has its own position: ``rollback_batch/*`` is the number of the stream's batch,
    ``rollback_value/*`` what the signal had come to and ``rollback_level/*`` the level it crossed. Scores or a loss
    that are not finite have neither value nor level.

    Examples
    --------
    >>> import torch, driftline
    >>> from driftline.adapters import CollapseGuard, Source
    >>> from driftline.metrics import Rollbacks
    >>> stream = driftline.scenarios.iid(driftline.load("digits"))
    >>> adapter = CollapseGuard(Source(driftline.models.mlp(stream.input_shape, 10)))
    >>> driftline.run(stream, adapter, batch_size=50, metrics=[Rollbacks()]).results
    {'rollbacks': 0.0}
    """

    looks_first: ClassVar[bool] = True
    definitions: ClassVar[Mapping[str, str]] = {
        "rollbacks": "times that a guard took its adapter back to a good state",
        "rollbacks/*": "those because of one signal of collapse",
        "rollback_batch/*": "number of the stream's batch, from 0, at which a signal of collapse led to a rollback",
        "rollback_value/*": "value of that signal there",
        "rollback_level/*": "level that it crossed there",
    }

    def __init__(self) -> None:
        self._batches = 0
        self._guarded = False
        self._counts: dict[str, int] = {}
        self._before: list[int] = []
        self._log: list[Point] = []

    def cuts(self, position: int, batch_size: int) -> int | None:
        """Stop nowhere: what may be played many batches at a time has no guard."""
        return None

    def before(self, step: Step) -> None:
        """Note how many rollbacks there were: a reset in between would hide one."""
        self._before = [guard.rollbacks for guard in _guards(step.learner)]

    def update(self, step: Step) -> None:
        """Take in what the guards did at this batch."""
        for guard, before in zip(_guards(step.learner), self._before):
            self._guarded = True
            new = guard.rollbacks - before
            for event in guard.events[-new:] if new else []:
                self._note(step.position, event)
        self._batches += 1

    def _note(self, position: int, event: Mapping[str, object]) -> None:
        signal = str(event["signal"])
        self._counts[signal] = self._counts.get(signal, 0) + 1
        self._log.append((position, f"rollback_batch/{signal}", float(self._batches)))
        for name in ("value", "level"):
            found = cast("float | None", event[name])
            if found is not None and math.isfinite(found):
                self._log.append((position, f"rollback_{name}/{signal}", float(found)))

    def value(self) -> dict[str, float]:
        """Return ``rollbacks``, and how many were because of each signal that led to one."""
        every = float(sum(self._counts.values())) if self._guarded else math.nan
        return {"rollbacks": every, **{f"rollbacks/{name}": float(n) for name, n in self._counts.items()}}

    def points(self, position: int) -> list[Point]:
        """Return the rollbacks since the last call, each at its own position, and the count."""
        log, self._log = self._log, []
        return [*log, (position, "rollbacks", self.value()["rollbacks"])]

    def state_dict(self) -> dict[str, object]:
        """Return the counts, and the rollbacks that are not in the series yet."""
        return {
            "batches": self._batches,
            "guarded": self._guarded,
            "counts": dict(self._counts),
            "log": [list(point) for point in self._log],
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        self._batches, self._guarded = cast(int, state["batches"]), bool(state["guarded"])
        self._counts = dict(cast(Mapping[str, int], state["counts"]))
        self._log = [(int(p), str(n), float(v)) for p, n, v in cast(list[tuple[int, str, float]], state["log"])]


def _guards(learner: object) -> Iterator[Guard]:
    """Return the guards among an adapter and those that it goes around."""
    while learner is not None:
        if isinstance(learner, Guard):
            yield learner
        learner = getattr(learner, "inner", None)
