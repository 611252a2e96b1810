"""The whole loop: play a stream to a learner or an adapter, test-then-train, and measure while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor

from driftline.adapters.base import Adapter
from driftline.errors import CheckpointError, ConfigError, InputError, unknown
from driftline.learners.base import Learner, joined
from driftline.metrics.base import Metric
from driftline.metrics.replicas import ReplicaMetric
from driftline.stream.batch import Batch, SegmentInfo
from driftline.stream.events import Labels
from driftline.stream.labels import LabelQueue
from driftline.stream.live import LiveStream
from driftline.stream.replicas import ReplicaStream
from driftline.stream.step import AnsweredStep, Step
from driftline.stream.stream import Stream

Reset = Literal["never", "segment"]


def play(
    stream: Stream | LiveStream | ReplicaStream,
    learner: Learner | Adapter,
    *,
    batch_size: int = 1,
    metrics: Sequence[Metric] = (),
    device: torch.device | str | None = None,
    chunk: int = 1,
    reset: Reset = "never",
) -> Playback:
    """Play a stream to a learner or an adapter; iterate over the result to make it happen.

    At each step the learner predicts the batch first and learns from it afterwards, as far as its labels have
    arrived. Nothing is read back from the device unless a metric's value is asked for. A learner that is task-aware
    (such as one with the optimizer :class:`driftline.learners.optimizers.TAG`) is told when a segment's task begins.

    Parameters
    ----------
    stream : Stream, LiveStream or ReplicaStream
        What to play.
    learner : Learner or Adapter
        Who plays; an adapter never sees a label. A learner with replicas (see
        :func:`driftline.learners.in_lockstep`) plays a :class:`ReplicaStream`, or one stream that all of its
        replicas see; metrics then measure every replica.
    batch_size : int
        Samples per step; a batch never crosses segments, so a segment's last one may be smaller.
    metrics : sequence of Metric
        Updated at every step.
    device : torch.device or str, optional
        Where the run takes place: learner and stream are moved there (data that does not fit stays on the host
        and is copied over chunk by chunk). Default: where the stream's data is.
    chunk : int
        Batches between two looks: up to so many are predicted and learned from, one after the other, in one step of
        this loop, which saves its overhead. They end where a metric wants to look, and where segments do. Labels that
        do not arrive at once, and live streams, are played with 1.
    reset : "never" or "segment"
        When an adapter returns to its source model: never, or before the first batch of each segment (the literature's
        reset at each shift, which tells the adapter what it cannot know).

    Returns
    -------
    Playback
        An iterable of :class:`Step`, whose ``state_dict`` is everything needed to go on later.

    Raises
    ------
    ConfigError
        For a bad setting, such as a reset for a learner, which has no source model.
    InputError
        When model and stream do not fit together.
    DataError
        From live data, when a sample cannot be used.

    Examples
    --------
    >>> import torch, driftline
    >>> from driftline.learners import NearestClassMean
    >>> from driftline.metrics import OnlineAccuracy
    >>> stream = driftline.scenarios.class_incremental(driftline.load("digits"), seed=0, tasks=5)
    >>> accuracy = OnlineAccuracy()
    >>> for step in driftline.play(stream, NearestClassMean(), batch_size=10, metrics=[accuracy]):
    ...     if step.position >= 500:
    ...         break
    >>> round(step.metrics()["online_accuracy"], 1)
    0.9
    """
    return Playback(stream, learner, batch_size, metrics, device, chunk, reset)


class Playback:
    """A stream being played; made by :func:`play`."""

    def __init__(
        self,
        stream: Stream | LiveStream | ReplicaStream,
        learner: Learner | Adapter,
        batch_size: int,
        metrics: Sequence[Metric],
        device: torch.device | str | None,
        chunk: int = 1,
        reset: Reset = "never",
    ) -> None:
        for name, value in (("batch_size", batch_size), ("chunk", chunk)):
            if value < 1:
                raise ConfigError(f"{name}={value}: must be at least 1")
        if reset not in ("never", "segment"):
            raise ConfigError(f"reset={reset!r}: must be 'never' or 'segment'")
        if reset != "never" and not isinstance(learner, Adapter):
            raise ConfigError(f"reset={reset!r} returns an adapter to its source model, which a learner does not have")
        replicas = None if isinstance(learner, Adapter) else learner.replicas
        if replicas is not None:
            stream = _for_replicas(stream, replicas)
            metrics = [ReplicaMetric(metric, replicas) for metric in metrics]
        elif isinstance(stream, ReplicaStream):
            raise ConfigError("a ReplicaStream needs a learner with replicas; see driftline.learners.in_lockstep")
        if device is not None:
            device = usable(device)
            learner = learner.to(device)
            stream = place(stream, device)
        self.stream, self.learner, self.batch_size, self.device = stream, learner, batch_size, device
        self.chunk = chunk if isinstance(learner, Learner) and not isinstance(stream, LiveStream) else 1
        self.metrics = tuple(metrics)
        self.reset = reset
        self._tells = isinstance(learner, Learner) and learner.task_aware and not isinstance(stream, LiveStream)
        if self._tells and isinstance(stream, ReplicaStream):
            _check_tasks(stream)
        self.position = 0
        self.stops: tuple[int, ...] = ()
        """A chunk also ends at multiples of these positions."""
        self._labels = LabelQueue()
        self._introduced = False
        self._early = tuple(m for m in self.metrics if m.looks_first)
        self._watching = tuple(m for m in self.metrics if m.surrounds)
        for metric in self.metrics:
            metric.begin(cast(Stream, stream), batch_size)

    def __iter__(self) -> Iterator[Step]:
        for batch in self._batches():
            if isinstance(batch, Labels):
                answered = self._answer(batch)
                if answered is not None:
                    yield answered
                continue
            if self.reset == "segment" and batch.position == batch.segment.start:
                cast(Adapter, self.learner).reset()
            if self._tells and batch.position == batch.segment.start:
                classes = cast(Stream, self.stream).task_classes(batch.segment.index)
                cast(Learner, self.learner).begin_task(batch.segment.task, classes)
            step = Step(batch, self.stream, self.learner, self.metrics)
            if not self._introduced:
                self._introduce(batch)
            for metric in self._early:
                metric.before(step)
            # The data was checked where it entered, so the learner need not look (and wait for the device).
            self.learner.trusted = True
            try:
                step.prediction = self._watched(step) if self._watching else self._meet(batch)
            finally:
                self.learner.trusted = False
            if batch.ids is not None and isinstance(self.stream, LiveStream):
                asked = self.stream.pending.ask(batch.ids, batch.x, step.prediction, batch.position)
                self.stream.reading.labels += asked
            for metric in self.metrics:
                metric.update(step)
            self.position = batch.stop
            yield step

    def _answer(self, labels: Labels) -> AnsweredStep | None:
        """Learn from labels that came by id; None when no sample was waiting for them."""
        answered = cast(LiveStream, self.stream).pending.answer(labels)
        if answered is None:
            return None
        batch = Batch(
            answered.x, answered.y, answered.position, SegmentInfo(0, self.stream.name, 0, None), len(answered.y)
        )
        step = AnsweredStep(batch, self.stream, self.learner, self.metrics, answered.scores, self.position)
        if isinstance(self.learner, Learner):
            self.learner.trusted = True
            try:
                self.learner.learn(batch.x, answered.y)
            finally:
                self.learner.trusted = False
        for metric in self.metrics:
            metric.update(step)
        return step

    def _batches(self) -> Iterator[Batch | Labels]:
        if self.chunk == 1 or isinstance(self.stream, LiveStream):
            return self.stream.batches(self.batch_size, self.position, self.device)
        return self.stream.batches(self.batch_size, self.position, self.device, self._end)

    def _end(self, position: int) -> int:
        """Return where the chunk that begins at a position ends: found from the position alone, so resuming agrees."""
        span = self.chunk * self.batch_size
        ends = [(position // n + 1) * n for n in (span, *self.stops)]
        wishes = (metric.cuts(position, self.batch_size) for metric in self.metrics)
        return min([*ends, *(wish for wish in wishes if wish is not None)])

    def _watched(self, step: Step) -> Tensor:
        """Let the learner meet a batch while metrics watch."""
        with ExitStack() as watching:
            for metric in self._watching:
                watching.enter_context(metric.around(step))
            return self._meet(step.batch)

    def _meet(self, batch: Batch) -> Tensor:
        """Let the learner predict, then learn from the labels that have arrived."""
        learner = self.learner
        if isinstance(learner, Adapter):
            return learner.adapt(batch.x)
        due = self.stream.due(batch)
        if due is None and not self._labels and batch.y is not None:
            if len(batch) <= self.batch_size:
                return learner.observe(batch.x, batch.y)
            return learner.observe_each(batch.x, batch.y, self.batch_size)
        parts = [self._wait(learner, batch, due, start) for start in range(0, len(batch), self.batch_size)]
        return parts[0] if len(parts) == 1 else joined(parts, 0 if learner.replicas is None else 1)

    def _wait(self, learner: Learner, batch: Batch, due: Tensor | None, start: int) -> Tensor:
        """Predict one batch of a chunk, and learn from what has arrived by then."""
        count = min(self.batch_size, len(batch) - start)
        axis, first = (0 if learner.replicas is None else 1), batch.position + start
        x = batch.x.narrow(axis, start, count)
        y = None if batch.y is None else batch.y.narrow(axis, start, count)
        prediction = learner.predict(x)
        when = torch.arange(first, first + count) if due is None else due[start : start + count]
        # The queue knows samples along the first dimension.
        self._labels.add(x.transpose(0, axis), None if y is None else y.transpose(0, axis), when)
        arrived = self._labels.pop(first + count)
        if arrived is not None:
            learner.learn(*(part.transpose(0, axis) for part in arrived))
        return prediction

    def _introduce(self, batch: Batch) -> None:
        """Check once that learner and stream fit together."""
        self.learner.check(batch.x)
        self._introduced = True
        given, needed = self.learner.num_classes, len(self.stream.classes)
        if given is not None and given < needed:
            raise InputError(
                f"the model gives {given} scores, but the stream has {needed} classes; build it with {needed} outputs"
            )

    def state_dict(self) -> dict[str, object]:
        """Return everything needed to go on from here: learner, metrics, waiting labels, position."""
        live = {"stream": self.stream.state_dict()} if isinstance(self.stream, LiveStream) else {}
        return {
            **live,
            "position": self.position,
            "learner": self.learner.state_dict(),
            "labels": self._labels.state_dict(),
            "metrics": [m.state_dict() for m in self.metrics],
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a :meth:`state_dict`; iterate again afterwards.

        Raises
        ------
        CheckpointError
            When the state belongs to a playback with other metrics or another learner.
        """
        saved_metrics = cast(Sequence[Mapping[str, object]], state["metrics"])
        if len(saved_metrics) != len(self.metrics):
            raise CheckpointError(f"the state has {len(saved_metrics)} metrics, this playback {len(self.metrics)}")
        if isinstance(self.stream, LiveStream):
            self.stream.load_state_dict(cast(Mapping[str, object], state["stream"]))
        self.learner.load_state_dict(cast(Mapping[str, object], state["learner"]))
        self._labels.load_state_dict(cast(Mapping[str, object], state["labels"]))
        for metric, saved in zip(self.metrics, saved_metrics):
            metric.load_state_dict(saved)
        self.position = cast(int, state["position"])


def usable(device: torch.device | str) -> torch.device:
    """Return a device that this machine has, or raise.

    Raises
    ------
    ConfigError
        For a name that is no device, or a device that is not there.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        reason = unknown("device", str(device), kinds)
        raise ConfigError(f"{reason} (torch says: {str(error).splitlines()[0]})") from None


def _check_tasks(stream: ReplicaStream) -> None:
    """Raise unless the replicas meet the same tasks at the same time."""
    first, *others = ([info.task for info in one.infos()] for one in stream.streams)
    for i, tasks in enumerate(others, 1):
        if tasks != first:
            raise ConfigError(
                f"the learner is told about tasks, which come in the order {first} in stream 0 and {tasks} in stream "
                f"{i}; replicas in lockstep have to meet the same tasks at the same time"
            )


def _for_replicas(stream: Stream | LiveStream | ReplicaStream, replicas: int) -> ReplicaStream:
    """Return the stream as a learner with replicas plays it."""
    if isinstance(stream, LiveStream):
        raise ConfigError(f"{stream.name!r} is live, and replicas play finite streams only")
    if isinstance(stream, Stream):
        return ReplicaStream([stream], replicas)
    if stream.replicas != replicas:
        raise ConfigError(f"the stream is for {stream.replicas} replicas, the learner has {replicas}")
    return stream


S = TypeVar("S", bound=Stream | LiveStream | ReplicaStream)


def place(stream: S, device: torch.device | str) -> S:
    """Move a stream's data to a CUDA device if it takes at most half of the free memory there."""
    if isinstance(stream, LiveStream):
        return stream
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if stream.nbytes() > free // 2:
            return stream
    return cast(S, stream.to(device))
