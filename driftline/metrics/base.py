"""The contract of a metric: updated at every step on the device, read when somebody looks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

from driftline.stream.live import LiveStream
from driftline.stream.step import Step
from driftline.stream.stream import Stream

Point = tuple[int, str, float]


class Metric(ABC):
    """Measures a run while it takes place.

    Attributes
    ----------
    looks_first : bool
        Whether :meth:`before` is to be called at each step.
    surrounds : bool
        Whether :meth:`around` is to be called at each step.
    definitions : mapping of str to str
        For each name in :meth:`value`, the definition in one line; ``*`` in a name stands for any text.
    """

    looks_first: ClassVar[bool] = False
    surrounds: ClassVar[bool] = False
    definitions: ClassVar[Mapping[str, str]]

    def begin(self, stream: Stream | LiveStream, batch_size: int) -> None:
        """Get ready for a stream, before its first batch; raise if it cannot be measured."""
        return

    def cuts(self, position: int, batch_size: int) -> int | None:
        """Return the next position at which the runtime should stop between steps; None: anywhere.

        The runtime may play many batches between two calls of :meth:`update` (``play(..., chunk=...)``); a metric that
        has to see some of them apart says so here. By default one that looks first sees each batch apart.
        """
        return position + batch_size if self.looks_first else None

    def before(self, step: Step) -> None:
        """Look at a batch before the learner meets it; ``step.prediction`` is still None."""
        return

    def around(self, step: Step) -> AbstractContextManager[object]:
        """Return a context in which the learner meets the batch: to watch what that costs."""
        return nullcontext()

    @abstractmethod
    def update(self, step: Step) -> None:
        """Take in a step after the learner has met the batch."""

    @abstractmethod
    def value(self) -> dict[str, float]:
        """Return the current values by name (NaN where there is nothing to measure yet)."""

    def points(self, position: int) -> list[Point]:
        """Return what belongs into the record at this position: by default, the current values."""
        return [(position, name, value) for name, value in self.value().items()]

    def timing(self) -> dict[str, float]:
        """Return measured times and memory by name (NaN: unknown), which differ from run to run.

        They are kept beside a run's wall time, not in its record, and start anew when it is resumed.
        """
        return {}

    def describe(self) -> dict[str, object]:
        """Return name and parameters for the record (JSON values): public attributes that are plain values."""
        plain = (bool, int, float, str, type(None))
        return {
            "name": type(self).__name__,
            **{k: v for k, v in vars(self).items() if k[0] != "_" and isinstance(v, plain)},
        }

    @abstractmethod
    def state_dict(self) -> dict[str, object]:
        """Return everything measured so far: tensors and plain values only."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
