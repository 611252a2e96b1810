"""A stage for metrics: a run in which each step is measured by whichever metric the law at hand chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from driftline.learners.base import Learner, State
from driftline.learners.gradient import GradientLearner
from driftline.metrics.base import Metric
from driftline.stream.live import LiveStream
from driftline.stream.play import play
from driftline.stream.step import Step
from driftline.stream.stream import Stream
from driftline.testing.laws import PLAY_SEED, no_global_draws, seed_torch

Record = list[tuple[int, Tensor | None, Tensor]]
"""For each batch: position of its first sample, truth (B,) or None, and scores (B, classes), on the CPU."""

Offline = Callable[[Record], Mapping[str, float]]


@dataclass(frozen=True)
class MetricCase:
    """A metric, and what it is to measure.

    Parameters
    ----------
    make : callable
        Makes a new metric.
    make_learner : callable
        Makes who plays.
    stream : Stream or LiveStream
        What is played.
    offline : callable, optional
        The same values from the full record.
    batch_size : int
        Samples in a step.
    any_batch_size : bool
        Whether values of a learner that does not learn are the same for every batch size.
    resident : bool
        Whether updates after the first never wait for the device.
    device : torch.device
        Where it takes place.
    """

    make: Callable[[], Metric]
    make_learner: Callable[[], Learner]
    stream: Stream | LiveStream
    offline: Offline | None
    batch_size: int
    any_batch_size: bool
    resident: bool
    device: torch.device

    def begun(self, batch_size: int | None = None) -> Metric:
        """Return a new metric that is ready for the stream."""
        metric = self.make()
        metric.begin(self.stream, batch_size or self.batch_size)
        return metric

    def play(
        self, choose: Callable[[int], Metric] | None, batch_size: int | None = None, learns: bool = True
    ) -> tuple[Record, State]:
        """Play the stream to a new learner; step i is measured by ``choose(i)``. Return record and learner's state."""
        seed_torch(PLAY_SEED - 1, self.device)
        learner = self.make_learner() if learns else Frozen(self.make_learner())
        seed_torch(PLAY_SEED, self.device)
        watched = [] if choose is None else [Relay(choose, self.resident)]
        record: Record = []
        for step in play(
            self.stream, learner, batch_size=batch_size or self.batch_size, metrics=watched, device=self.device
        ):
            assert step.prediction is not None
            y = step.batch.y
            record.append((step.batch.position, None if y is None else y.cpu(), step.prediction.cpu()))
        return record, learner.state_dict()

    def length(self) -> int:
        """Return the number of steps."""
        return len(self.play(None)[0])

    def measured(self, batch_size: int | None = None, learns: bool = True) -> Metric:
        """Return a metric that has measured the whole stream, and was never read."""
        metric = self.begun(batch_size)
        self.play(lambda i: metric, batch_size, learns)
        return metric


class Relay(Metric):
    """Passes each step on to the metric whose turn it is, and sees to it that global randomness is left alone."""

    looks_first = True
    surrounds = True
    definitions: ClassVar[Mapping[str, str]] = {}

    def __init__(self, choose: Callable[[int], Metric], resident: bool) -> None:
        self._choose, self._resident = choose, resident
        self._count = 0
        self._chosen: Metric | None = None

    def before(self, step: Step) -> None:
        """Let the metric whose turn it is look."""
        self._chosen = self._choose(self._count)
        self._count += 1
        if self._chosen.looks_first:
            with no_global_draws("before()"), waiting_forbidden(self._resident and self._count > 1):
                self._chosen.before(step)

    def around(self, step: Step) -> AbstractContextManager[object]:
        """Let it watch."""
        assert self._chosen is not None
        return self._chosen.around(step)

    def update(self, step: Step) -> None:
        """Let it measure."""
        assert self._chosen is not None
        with no_global_draws("update()"), waiting_forbidden(self._resident and self._count > 1):
            self._chosen.update(step)

    def value(self) -> dict[str, float]:
        """Return nothing."""
        return {}

    def state_dict(self) -> dict[str, object]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Do nothing."""


@contextmanager
def waiting_forbidden(forbidden: bool) -> Iterator[None]:
    """Raise RuntimeError when something inside waits for the CUDA device."""
    if not forbidden:
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Frozen(Learner):
    """A learner that has stopped learning."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def predict(self, x: Tensor) -> Tensor:
        """Return the learner's scores."""
        return self._learner.predict(x)

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Do nothing."""

    def state_dict(self) -> State:
        """Return the learner's state."""
        return self._learner.state_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a state of the learner."""
        self._learner.load_state_dict(state)

    def to(self, device: torch.device | str) -> Self:
        """Move the learner."""
        self._learner.to(device)
        return self


def small_learner() -> Learner:
    """Return a learner for :func:`driftline.testing.blobs` that draws from torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.05))
