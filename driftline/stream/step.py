"""One step of a played stream, as metrics and users see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from driftline.stream.batch import Batch
from driftline.stream.live import LiveStream
from driftline.stream.stream import Stream

if TYPE_CHECKING:
    from driftline.adapters.base import Adapter
    from driftline.learners.base import Learner
    from driftline.metrics.base import Metric


class Step:
    """A batch, and what the learner said about it before learning from it.

    Attributes
    ----------
    batch : Batch
        The samples and their truth.
    prediction : Tensor, shape (B, classes), optional
        Scores; None until the learner has met the batch.
    stream : Stream or LiveStream
        What is being played.
    learner : Learner or Adapter
        Who plays.
    """

    __slots__ = ("_metrics", "batch", "learner", "prediction", "stream")

    def __init__(
        self, batch: Batch, stream: Stream | LiveStream, learner: Learner | Adapter, metrics: Sequence[Metric]
    ) -> None:
        self.batch = batch
        self.stream = stream
        self.learner = learner
        self.prediction: Tensor | None = None
        self._metrics = metrics

    @property
    def position(self) -> int:
        """Samples played so far, this batch included."""
        return self.batch.stop

    def metrics(self) -> dict[str, float]:
        """Return the current value of every metric; this reads from the device."""
        return {name: value for metric in self._metrics for name, value in metric.value().items()}
