"""One step of a played stream, as metrics and users see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from driftline.stream.batch import Batch
from driftline.stream.live import LiveStream
from driftline.stream.replicas import ReplicaStream
from driftline.stream.stream import Stream

if TYPE_CHECKING:
    from driftline.adapters.base import Adapter
    from driftline.learners.base import Learner
    from driftline.metrics.base import Metric


class Step:
    """A batch, and what the learner said about it before learning from it.

    When the runtime plays many batches between two looks, they are one batch here: every sample was still predicted
    before it was learned from.

    Attributes
    ----------
    batch : Batch
        The samples and their truth.
    prediction : Tensor, shape (B, classes), optional
        Scores; None until the learner has met the batch. With replicas, (R, B, classes).
    stream : Stream, LiveStream or ReplicaStream
        What is being played.
    learner : Learner or Adapter
        Who plays.
    """

    __slots__ = ("_metrics", "batch", "learner", "prediction", "stream")

    def __init__(
        self,
        batch: Batch,
        stream: Stream | LiveStream | ReplicaStream,
        learner: Learner | Adapter,
        metrics: Sequence[Metric],
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

    def replica(self, number: int) -> Step:
        """Return the step as one of the replicas met it."""
        return ReplicaStep(self, number)


class AnsweredStep(Step):
    """Labels that came for samples predicted earlier: the batch has those samples, with what was predicted then."""

    __slots__ = ("_position",)

    def __init__(
        self,
        batch: Batch,
        stream: Stream | LiveStream | ReplicaStream,
        learner: Learner | Adapter,
        metrics: Sequence[Metric],
        prediction: Tensor,
        position: int,
    ) -> None:
        super().__init__(batch, stream, learner, metrics)
        self.prediction, self._position = prediction, position

    @property
    def position(self) -> int:
        """Samples predicted so far."""
        return self._position


class ReplicaStep(Step):
    """What one replica met; its learner is made when somebody looks at it."""

    __slots__ = ("_number", "_whole")

    def __init__(self, whole: Step, number: int) -> None:
        self._whole, self._number = whole, number
        self.batch = whole.batch.replica(number)
        self.stream = whole.stream.replica(number) if isinstance(whole.stream, ReplicaStream) else whole.stream
        self.prediction = None if whole.prediction is None else whole.prediction[number]
        self._metrics = ()

    @property
    def learner(self) -> Learner | Adapter:  # type: ignore[override]
        """The replica, as a learner of its own."""
        whole = self._whole.learner
        assert not hasattr(whole, "adapt")
        return whole.replica(self._number)
