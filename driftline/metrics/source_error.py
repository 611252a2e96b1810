"""What adapting makes a model forget: its error on clean samples of the source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch

from driftline.errors import ConfigError, DataError
from driftline.metrics.base import Metric, Point
from driftline.metrics.online import need_classes
from driftline.stream.dataset import Dataset
from driftline.stream.live import LiveStream
from driftline.stream.segment import Segment
from driftline.stream.step import Step
from driftline.stream.stream import Stream


class SourceError(Metric):
    """Error on clean samples of the source: before the first batch, every so many samples, and at the end.

    The learner or adapter predicts them with its state at the time, which changes nothing. One that normalises by the
    batch sees them in random batches of ``batch_size``.

    Parameters
    ----------
    source : Dataset, optional
        The clean samples, with labels. Default: the ``"test"`` splits of the stream's datasets, or, when there are
        none, the datasets' own samples; either without the stream's transforms.
    every : int, optional
        Samples between evaluations; None: only at the beginning and at the end.
    batch_size : int
        Samples per forward pass.

    Raises
    ------
    ConfigError
        When ``every`` or ``batch_size`` is below 1.
    DataError
        When there are no clean samples with labels, or they have other classes than the stream.

    See Also
    --------
    driftline.metrics.HeldOut : accuracy on held-out samples in the form (domain) in which the stream showed them.

    Examples
    --------
    >>> import driftline
    >>> from driftline.learners import NearestClassMean
    >>> from driftline.metrics import SourceError
    >>> stream = driftline.scenarios.iid(driftline.load("digits"))
    >>> for step in driftline.play(stream, NearestClassMean(), batch_size=10, metrics=[SourceError(None)]):
    ...     pass
    >>> values = step.metrics()
    >>> values["source_error"] < 0.2, values["source_forgetting"] < 0
    (True, True)
    """

    looks_first: ClassVar[bool] = True
    definitions: ClassVar[Mapping[str, str]] = {
        "source_error": "share of clean source samples predicted wrong, at the latest evaluation",
        "source_error_start": "the same before the first batch",
        "source_forgetting": "source_error minus source_error_start",
    }

    def __init__(self, source: Dataset | None = None, every: int | None = 1000, batch_size: int = 200) -> None:
        for name, value in (("every", every), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: must be at least 1 sample")
        self.source, self.every, self.batch_size = source, every, batch_size
        self._clean: Stream | None = None
        self._end: int | None = None
        self._first = self._last = float("nan")
        self._log: list[Point] = []

    def describe(self) -> dict[str, object]:
        """Return name and parameters, the source among them."""
        return {**super().describe(), "source": None if self.source is None else self.source.name}

    def begin(self, stream: Stream | LiveStream, batch_size: int) -> None:
        """Collect the clean samples."""
        need_classes(self, stream)
        self._end = None if isinstance(stream, LiveStream) else len(stream)
        datasets = [self.source] if self.source is not None else _clean(stream)
        if not datasets or any(d.y is None for d in datasets):
            raise DataError(f"SourceError: no clean samples with labels for {stream.name!r}; give SourceError(dataset)")
        if any(len(d.classes) != len(stream.classes) for d in datasets):
            counts = sorted({len(d.classes) for d in datasets})
            raise DataError(f"SourceError: the source has {counts} classes, the stream {len(stream.classes)}")
        # In random order, since a dataset sorted by class gives batches of one class.
        mix = torch.Generator().manual_seed(0)
        self._clean = Stream([Segment.of(d).shuffle(mix) for d in datasets], name="source")

    def cuts(self, position: int, batch_size: int) -> int | None:
        """Return where the next evaluation is due."""
        return None if self.every is None else (position // self.every + 1) * self.every

    def before(self, step: Step) -> None:
        """Evaluate the source model, once."""
        if self._first != self._first:
            self._first = self._evaluate(step)
            self._note(step.batch.position, self._first)

    def update(self, step: Step) -> None:
        """Evaluate where it is due."""
        start, stop = step.batch.position, step.batch.stop
        due = self.every is not None and stop // self.every > start // self.every
        if due or stop == self._end:
            self._note(stop, self._evaluate(step))

    def _note(self, position: int, error: float) -> None:
        self._last = error
        self._log.append((position, "source_error", error))

    def _evaluate(self, step: Step) -> float:
        if self._clean is None:
            raise ConfigError("SourceError has not begun; pass it to play() or run() as a metric")
        device = step.batch.x.device
        wrong = torch.zeros((), dtype=torch.long, device=device)
        step.learner.trusted = True
        try:
            for batch in self._clean.batches(self.batch_size, device=device):
                assert batch.y is not None
                wrong = wrong + step.learner.predict(batch.x).argmax(-1).ne(batch.y).sum()
        finally:
            step.learner.trusted = False
        return float(wrong) / len(self._clean)

    def value(self) -> dict[str, float]:
        """Return ``source_error``, ``source_error_start`` and their difference ``source_forgetting``."""
        return {
            "source_error": self._last,
            "source_error_start": self._first,
            "source_forgetting": self._last - self._first,
        }

    def points(self, position: int) -> list[Point]:
        """Return the evaluations made since the last call, each at its own position."""
        log, self._log = self._log, []
        return log

    def state_dict(self) -> dict[str, object]:
        """Return the evaluations."""
        return {"first": self._first, "last": self._last, "log": [list(point) for point in self._log]}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        self._first, self._last = cast(float, state["first"]), cast(float, state["last"])
        self._log = [(int(p), str(n), float(v)) for p, n, v in cast(list[tuple[int, str, float]], state["log"])]


def _clean(stream: Stream | LiveStream) -> list[Dataset]:
    if isinstance(stream, LiveStream):
        return []
    return [d.test for d in stream.datasets if d.test is not None] or stream.datasets
