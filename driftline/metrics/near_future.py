"""Near-future accuracy and its blind baseline: how good the model is for data that comes a little later.

Hammoud et al., "Rapid Adaptation in Online Continual Learning: Are We Evaluating It Right?" (ICCV 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor

from driftline.errors import ConfigError, DataError
from driftline.metrics.base import Metric
from driftline.metrics.blind import BlindClassifier, decorrelating_shift
from driftline.metrics.online import HitCounter, need_classes
from driftline.stream.live import LiveStream
from driftline.stream.reader import Reader
from driftline.stream.step import Step
from driftline.stream.stream import Stream

WINDOWS = (1, 10, 100)
"""Windows of the blind baseline: it predicts the most frequent of the last k labels."""


AUTO_PREFIX = 200_000
"""Labels that ``shift="auto"`` looks at."""


class BlindAccuracy(Metric):
    """Accuracy of a classifier that never looks at its input: it repeats the most frequent recent label.

    Parameters
    ----------
    shift : int
        Samples between the newest label known and the one predicted, less one; 0 is the next sample.
    windows : sequence of int
        Numbers of recent labels; the best is reported.

    Notes
    -----
    The same number as :func:`driftline.metrics.blind.blind_accuracy`: nothing is predicted before the first label.

    Examples
    --------
    >>> import driftline
    >>> from driftline.learners import NearestClassMean
    >>> stream = driftline.scenarios.class_incremental(driftline.load("digits"), tasks=10)
    >>> from driftline.metrics import BlindAccuracy
    >>> for step in driftline.play(stream, NearestClassMean(), batch_size=10, metrics=[BlindAccuracy()]):
    ...     pass
    >>> step.metrics()["blind_accuracy"] > 0.9
    True
    """

    definitions: ClassVar[Mapping[str, str]] = {
        "blind_accuracy": "accuracy of repeating the most frequent of the last k labels, for the best k "
        "(with near-future accuracy: at the same shift)"
    }

    def __init__(self, shift: int = 0, windows: Sequence[int] = WINDOWS) -> None:
        if shift < 0 or not windows:
            raise ConfigError(f"shift={shift}, windows={windows}: give a shift of 0 or more and at least one window")
        self.shift, self.windows = shift, tuple(windows)
        self._classifiers: list[BlindClassifier] = []
        self._queues = [np.zeros(0, dtype=np.int64) for _ in self.windows]
        self._hits = [0 for _ in self.windows]
        self._count = 0
        self._started = False
        self._pending: list[Tensor] = []
        self._held = 0

    def begin(self, stream: Stream | LiveStream, batch_size: int) -> None:
        """Learn the number of classes."""
        need_classes(self, stream)
        self._classifiers = [BlindClassifier(k, len(stream.classes)) for k in self.windows]

    def update(self, step: Step) -> None:
        """Remember the labels; they are looked at when somebody reads the value."""
        if step.batch.y is not None:
            self._pending.append(step.batch.y)
            self._held += len(step.batch)
            if self._held >= 8192:
                self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        labels = torch.cat(self._pending)
        labels = labels[labels >= 0].cpu()
        self._pending, self._held = [], 0
        truth = labels.numpy()
        for i, classifier in enumerate(self._classifiers):
            made = np.asarray(classifier.run(labels.tolist()), dtype=np.int64)
            # Before the first label there is nothing to repeat.
            queue = np.concatenate([self._queues[i], made if self._started else made[1:]])
            judged = max(0, min(len(truth), len(queue) - self.shift))
            # The prediction made s samples before a label is at the head of the queue when that label comes.
            self._hits[i] += int((queue[:judged] == truth[len(truth) - judged :]).sum())
            self._queues[i] = queue[judged:]
            if i == 0:
                self._count += judged
        self._started |= len(truth) > 0

    def value(self) -> dict[str, float]:
        """Return ``blind_accuracy`` in [0, 1]."""
        self._flush()
        return {"blind_accuracy": max(self._hits) / self._count if self._count else float("nan")}

    def state_dict(self) -> dict[str, object]:
        """Return windows and counts."""
        self._flush()
        return {
            "classifiers": [c.state_dict() for c in self._classifiers],
            "queues": [torch.from_numpy(q) for q in self._queues],
            "hits": list(self._hits),
            "count": self._count,
            "started": self._started,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        for classifier, saved in zip(self._classifiers, cast(list[dict[str, "int | list[int]"]], state["classifiers"])):
            classifier.load_state_dict(saved)
        self._queues = [q.numpy() for q in cast(list[Tensor], state["queues"])]
        self._hits = list(cast(list[int], state["hits"]))
        self._count = cast(int, state["count"])
        self._started = cast(bool, state["started"])
        self._pending, self._held = [], 0

    def describe(self) -> dict[str, object]:
        """Return name and parameters, the windows among them."""
        return {**super().describe(), "windows": list(self.windows)}


class NearFutureAccuracy(Metric):
    """Accuracy on the samples that come ``shift`` later, by the model as it is now.

    At position t, with a model that has learned from samples 0..t-1, samples t+shift, ... (as many as the batch)
    are predicted; the value is the mean over the stream. Shift 0 is online accuracy. A seekable stream is looked
    ahead in (one more forward pass); a live stream must have its labels delayed by ``shift``, which gives the same
    number for free.

    Parameters
    ----------
    shift : int or "auto"
        Samples to look ahead. "auto": the smallest of 0, 1, 2, 4, ... at which a blind classifier falls to chance
        on this stream's labels, see :func:`driftline.metrics.blind.decorrelating_shift`.
    window : int, optional
        Also report the value over the most recent samples.

    Notes
    -----
    The published code counts the delay in *batches* (its option says samples), divides by positions that were never
    judged, and judges the last batch twice; this follows the definition. :class:`BlindAccuracy` at the same shift
    is reported beside it.

    Raises
    ------
    DataError
        When the stream is not longer than the shift, or "auto" finds none.

    Examples
    --------
    >>> import driftline
    >>> from driftline.learners import NearestClassMean
    >>> from driftline.metrics import NearFutureAccuracy
    >>> stream = driftline.scenarios.iid(driftline.load("digits"))
    >>> for step in driftline.play(stream, NearestClassMean(), batch_size=10, metrics=[NearFutureAccuracy(100)]):
    ...     pass
    >>> round(step.metrics()["near_future_accuracy"], 1)
    0.9
    """

    looks_first: ClassVar[bool] = True
    definitions: ClassVar[Mapping[str, str]] = {
        "near_future_accuracy": "accuracy on the samples that come S samples later, by the model as it is now",
        "near_future_accuracy_window": "the same over the most recent samples",
        "near_future_shift": "S, in samples",
        **BlindAccuracy.definitions,
    }

    def __init__(self, shift: int | Literal["auto"] = "auto", window: int | None = 1000) -> None:
        if shift != "auto" and (not isinstance(shift, int) or shift < 0):
            raise ConfigError(f'shift={shift!r}: must be "auto" or a number of samples, 0 or more')
        self.shift, self.window = shift, window
        self._hits = HitCounter(window)
        self._shift = 0
        self._blind = BlindAccuracy()
        self._reader: Reader | None = None
        self._device: torch.device | None = None
        self._batch_size = 1

    def begin(self, stream: Stream | LiveStream, batch_size: int) -> None:
        """Settle the shift, and check that the stream allows it."""
        need_classes(self, stream)
        if isinstance(stream, LiveStream):
            self._shift = self._delay_of(stream)
        elif self.shift == "auto":
            labels = stream.labels()
            if labels is None:
                raise DataError(f"{stream.name}: shift='auto' needs the stream's labels; give shift=S")
            self._shift = decorrelating_shift(labels, prefix=AUTO_PREFIX)
        else:
            self._shift = self.shift
        if isinstance(stream, Stream) and self._shift >= len(stream):
            raise DataError(f"{stream.name} has {len(stream)} samples, not more than the shift of {self._shift}")
        self._blind = BlindAccuracy(self._shift)
        self._blind.begin(stream, batch_size)
        self._batch_size = batch_size

    def _delay_of(self, stream: LiveStream) -> int:
        if self.shift == "auto":
            raise DataError(f"{stream.name} is live: its labels are not known beforehand; give shift=S")
        if stream.delay != self.shift:
            raise DataError(
                f"{stream.name} is live and cannot be looked ahead in; near-future accuracy with shift={self.shift} is "
                f"online accuracy with labels delayed by as much: play stream.delay_labels({self.shift})"
            )
        return self.shift

    def before(self, step: Step) -> None:
        """Predict the batch ``shift`` samples ahead with the model as it is."""
        stream = step.stream
        if not isinstance(stream, Stream) or self._shift == 0:
            return
        start = step.batch.position + self._shift
        stop = min(step.batch.stop + self._shift, len(stream))
        if start >= stop:
            return
        if self._reader is None:
            self._reader = stream.reader(self._batch_size, step.batch.x.device)
        x, y = self._reader.read(start, stop)
        if y is not None:
            step.learner.trusted = True
            try:
                scores = step.learner.predict(x)
            finally:
                step.learner.trusted = False
            self._hits.add(scores, y, stop - start)

    def update(self, step: Step) -> None:
        """Give the labels to the blind baseline; where labels are delayed, count the step itself."""
        self._blind.update(step)
        live = not isinstance(step.stream, Stream)
        if (live or self._shift == 0) and step.batch.y is not None and step.prediction is not None:
            if live and step.batch.position < self._shift:
                return
            self._hits.add(step.prediction, step.batch.y, step.batch.labelled)

    def value(self) -> dict[str, float]:
        """Return ``near_future_accuracy``, its window, the shift and ``blind_accuracy``."""
        values = {"near_future_accuracy": self._hits.rate()}
        if self.window is not None:
            values["near_future_accuracy_window"] = self._hits.recent_rate()
        return {**values, "near_future_shift": float(self._shift), **self._blind.value()}

    def state_dict(self) -> dict[str, object]:
        """Return the counts, the shift and the baseline."""
        return {"hits": self._hits.state_dict(), "shift": self._shift, "blind": self._blind.state_dict()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        self._hits.load_state_dict(cast(Mapping[str, object], state["hits"]))
        self._shift = cast(int, state["shift"])
        self._blind.load_state_dict(cast(Mapping[str, object], state["blind"]))
