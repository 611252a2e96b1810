"""Online (prequential) accuracy: each sample is predicted before it is learned from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self, cast

import torch
from torch import Tensor

from driftline.errors import ConfigError, InputError
from driftline.metrics.base import Metric
from driftline.stream.live import LiveStream
from driftline.stream.step import Step
from driftline.stream.stream import Stream

FLUSH = 128
"""Steps whose predictions are kept before they are counted together."""


class HitCounter:
    """Counts right predictions on the device: all of them, and in a window of the last ones.

    Predictions are kept for up to :data:`FLUSH` steps and then counted at once, which costs a step almost nothing.

    Parameters
    ----------
    window : int, optional
        Also keep the last ``window`` outcomes.
    """

    def __init__(self, window: int | None = None) -> None:
        if window is not None and window < 1:
            raise ConfigError(f"window={window}: must be at least 1 sample")
        self.window = window
        self.count = 0
        self._gaps = False
        self._hits: Tensor | None = None
        self._recent = torch.empty(0, dtype=torch.bool)
        self._pending: list[tuple[Tensor, Tensor]] = []

    def add(self, scores: Tensor, y: Tensor, known: int) -> None:
        """Take in scores (B, classes) and truth (B,), of which ``known`` are not -1."""
        self.count += known
        self._gaps |= known < len(y)
        self._pending.append((scores, y))
        if len(self._pending) >= FLUSH:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        y = torch.cat([truth for _, truth in self._pending])
        hits = _classes([scores for scores, _ in self._pending]) == y
        self._pending.clear()
        self._hits = hits.sum() if self._hits is None else self._hits + hits.sum()
        if self.window is not None:
            known = hits[y >= 0] if self._gaps else hits
            self._recent = torch.cat([self._recent.to(hits.device), known])[-self.window :]

    def rate(self) -> float:
        """Return the share of right predictions so far; NaN before the first."""
        self._flush()
        return float(self._hits) / self.count if self._hits is not None and self.count else float("nan")

    def recent_rate(self) -> float:
        """Return the share of right predictions in the window; NaN before the first."""
        self._flush()
        return float(self._recent.double().mean()) if len(self._recent) else float("nan")

    def merge(self, later: HitCounter) -> None:
        """Add the counts of a later part of the stream."""
        self._flush()
        later._flush()
        self.count += later.count
        parts = [h for h in (self._hits, later._hits) if h is not None]
        self._hits = torch.stack(parts).sum() if parts else None
        if self.window is not None:
            self._recent = torch.cat([self._recent, later._recent])[-self.window :]

    def state_dict(self) -> dict[str, object]:
        """Return the counts."""
        self._flush()
        return {"count": self.count, "gaps": self._gaps, "hits": self._hits, "recent": self._recent}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        self._pending.clear()
        self.count = cast(int, state["count"])
        self._gaps = cast(bool, state["gaps"])
        self._hits = cast("Tensor | None", state["hits"])
        self._recent = cast(Tensor, state["recent"])


def _classes(scores: list[Tensor]) -> Tensor:
    """Return the class predicted for each sample, also where the number of classes has grown on the way."""
    if all(s.shape[-1] == scores[0].shape[-1] for s in scores):
        return torch.cat(scores).argmax(-1)
    return torch.cat([s.argmax(-1) for s in scores])


class OnlineAccuracy(Metric):
    """Share of samples predicted right before they were learned from, over the whole stream and a recent window.

    With labels that arrive late this is prequential accuracy with delay. Samples without a known truth do not
    count. Beware: where labels come in runs, a classifier that never looks at its input scores high; report
    :class:`NearFutureAccuracy` and :class:`BlindAccuracy` beside it.

    Parameters
    ----------
    window : int, optional
        Samples in the window; None: no windowed value.

    References
    ----------
    Dawid, "Present position and potential developments: the prequential approach" (1984).

    Examples
    --------
    >>> import driftline
    >>> from driftline.learners import NearestClassMean
    >>> from driftline.metrics import OnlineAccuracy
    >>> stream = driftline.scenarios.iid(driftline.load("digits"))
    >>> for step in driftline.play(stream, NearestClassMean(), batch_size=10, metrics=[OnlineAccuracy()]):
    ...     pass
    >>> {name: round(value, 1) for name, value in step.metrics().items()}
    {'online_accuracy': 0.9, 'online_accuracy_window': 0.9}
    """

    definitions: ClassVar[Mapping[str, str]] = {
        "online_accuracy": "share of samples predicted right before being learned from, since the start",
        "online_accuracy_window": "the same over the most recent samples",
    }

    def __init__(self, window: int | None = 1000) -> None:
        self.window = window
        self._hits = HitCounter(window)

    def begin(self, stream: Stream | LiveStream, batch_size: int) -> None:
        """Check that the stream has classes."""
        need_classes(self, stream)

    def update(self, step: Step) -> None:
        """Count the step's right predictions."""
        y = step.batch.y
        if y is not None and step.prediction is not None:
            self._hits.add(step.prediction, y, step.batch.labelled)

    def value(self) -> dict[str, float]:
        """Return ``online_accuracy`` and, with a window, ``online_accuracy_window``, in [0, 1]."""
        values = {"online_accuracy": self._hits.rate()}
        if self.window is not None:
            values["online_accuracy_window"] = self._hits.recent_rate()
        return values

    def merge(self, later: Self) -> None:
        """Add what was measured on a later part of the stream."""
        self._hits.merge(later._hits)

    def state_dict(self) -> dict[str, object]:
        """Return the counts."""
        return self._hits.state_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        self._hits.load_state_dict(state)


def need_classes(metric: Metric, stream: Stream | LiveStream) -> None:
    """Raise when a metric of class predictions is asked to measure a stream without classes.

    Raises
    ------
    InputError
    """
    if not stream.classes:
        raise InputError(f"{type(metric).__name__} needs a stream with classes, and {stream.name!r} has none")
