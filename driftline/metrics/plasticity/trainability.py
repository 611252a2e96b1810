"""Trainability: how well each new task is fitted while it lasts, and whether that falls from task to task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from driftline.errors import ConfigError, InputError
from driftline.metrics.base import Metric, Point
from driftline.metrics.plasticity.series import Series
from driftline.stream.live import LiveStream
from driftline.stream.step import Step
from driftline.stream.stream import Stream


class Slope(NamedTuple):
    """A slope for each task, and the ends of its 95 % confidence interval."""

    slope: float
    low: float
    high: float


class Trainability(Metric):
    """Online accuracy (or squared error) within each segment, and its slope over segments with a 95 % interval.

    Parameters
    ----------
    window : int, optional
        Count only the last so many samples of each segment: how well the task is fitted in the end. Default: all of
        them, which also counts how fast.
    skip : int
        First tasks that are left out of the slope: what is learned then is of use later.

    Raises
    ------
    InputError
        For a live stream, which has no segments.

    Notes
    -----
    Predictions are made before the sample is learned from. Average task performance is how Dohare et al., "Loss of
    plasticity in deep continual learning" (Nature 2024), show the loss of plasticity. The interval is that of ordinary
    least squares with independent errors: tasks of different difficulty widen it. A segment that has no known truth, or
    that is not played to its end, is no task.

    Examples
    --------
    >>> import driftline
    >>> from driftline.learners import NearestClassMean
    >>> from driftline.metrics.plasticity import Trainability
    >>> stream = driftline.scenarios.permuted_inputs(driftline.load("digits"), tasks=5)
    >>> for step in driftline.play(stream, NearestClassMean(), batch_size=10, metrics=[Trainability()]):
    ...     pass
    >>> values = step.metrics()
    >>> values["task_accuracy_slope_low"] < values["task_accuracy_slope"] < 0
    True
    """

    definitions: ClassVar[Mapping[str, str]] = {
        "task_accuracy": "share of samples predicted right before being learned from, in the last whole segment (or at "
        "its end, with a window)",
        "task_squared_error": "mean of (prediction - truth)^2 in the same way",
        "task_accuracy_mean": "mean over all whole segments",
        "task_accuracy_slope": "change from segment to segment, by least squares",
        "task_accuracy_slope_*": "lower and upper end of the slope's 95 % confidence interval (Student's t)",
        "task_squared_error_mean": "mean over all whole segments",
        "task_squared_error_slope": "change from segment to segment, by least squares",
        "task_squared_error_slope_*": "lower and upper end of the slope's 95 % confidence interval (Student's t)",
    }

    def __init__(self, window: int | None = None, skip: int = 0) -> None:
        if window is not None and window < 1:
            raise ConfigError(f"window={window}: must be at least 1 sample")
        if skip < 0:
            raise ConfigError(f"skip={skip}: must be 0 or more tasks")
        self.window, self.skip = window, skip
        self._numbers = False
        self._series = Series(["task_accuracy"])
        self._sums: Tensor | None = None
        self._start = -1
        self._tasks: list[Tensor] = []

    def begin(self, stream: Stream | LiveStream, batch_size: int) -> None:
        """Note whether there are classes."""
        if isinstance(stream, LiveStream):
            raise InputError(f"Trainability compares segments, and {stream.name!r} is live and has none")
        self._numbers = not stream.classes
        self._series = Series([self._name])

    @property
    def _name(self) -> str:
        return "task_squared_error" if self._numbers else "task_accuracy"

    def update(self, step: Step) -> None:
        """Add the step's predictions to the segment's, and close it at its end."""
        batch, segment = step.batch, step.batch.segment
        if batch.position == segment.start or self._sums is None:
            self._sums, self._start = torch.zeros(2, dtype=torch.float64, device=batch.x.device), batch.position
        if batch.y is not None and step.prediction is not None and batch.labelled:
            first = 0
            if self.window is not None and segment.stop is not None:
                first = min(len(batch), max(0, segment.stop - self.window - batch.position))
            self._sums = self._sums + self._found(step.prediction[first:], batch.y[first:])
        if batch.ends_segment and self._start == segment.start:
            # Without a known truth 0 / 0, which is undefined.
            self._series.add(batch.stop, [self._sums[0] / self._sums[1]])
            self._tasks.append(self._sums[0] / self._sums[1])

    def _found(self, scores: Tensor, y: Tensor) -> Tensor:
        """Return the sum of what is measured, and of samples."""
        if self._numbers:
            errors = (scores.reshape(y.shape).double() - y.double()).square().reshape(len(y), -1).mean(1)
            return torch.stack([errors.sum(), torch.full_like(errors.sum(), len(y))])
        hits = scores.argmax(-1) == y
        return torch.stack([hits.sum(), (y >= 0).sum()]).double()

    def tasks(self) -> list[float]:
        """Return the value of each whole segment so far, those without a known truth left out."""
        values = torch.stack([t.cpu() for t in self._tasks]).tolist() if self._tasks else []
        return [value for value in values if value == value]

    def value(self) -> dict[str, float]:
        """Return the last task's value, their mean, and the slope with its interval (NaN below three tasks)."""
        tasks, name = self.tasks(), self._name
        found = slope(tasks[self.skip :])
        return {
            name: tasks[-1] if tasks else math.nan,
            f"{name}_mean": sum(tasks) / len(tasks) if tasks else math.nan,
            f"{name}_slope": found.slope,
            f"{name}_slope_low": found.low,
            f"{name}_slope_high": found.high,
        }

    def points(self, position: int) -> list[Point]:
        """Return the tasks finished since the last call."""
        return self._series.take()

    def state_dict(self) -> dict[str, object]:
        """Return the tasks so far and the sums of the current one."""
        tasks = torch.stack([t.cpu() for t in self._tasks]) if self._tasks else None
        return {"series": self._series.state_dict(), "tasks": tasks, "sums": self._sums, "start": self._start}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        self._series.load_state_dict(cast(Mapping[str, object], state["series"]))
        tasks = cast("Tensor | None", state["tasks"])
        self._tasks = [] if tasks is None else list(tasks.clone())
        # Replaced, never written to.
        self._sums, self._start = cast("Tensor | None", state["sums"]), cast(int, state["start"])


def slope(values: Sequence[float]) -> Slope:
    """Return the least-squares slope of values over their numbers, with its 95 % confidence interval.

    Parameters
    ----------
    values : sequence of float
        One for each task; fewer than three have no interval, and all three numbers are NaN.

    Examples
    --------
    >>> [round(number, 3) for number in slope([1.0, 1.9, 3.1, 4.0])]
    [1.02, 0.837, 1.203]
    """
    if len(values) < 3:
        return Slope(math.nan, math.nan, math.nan)
    from scipy.stats import linregress, t  # type: ignore[import-untyped]

    fit = linregress(range(len(values)), values)
    half = float(t.ppf(0.975, len(values) - 2)) * float(fit.stderr)
    return Slope(float(fit.slope), float(fit.slope) - half, float(fit.slope) + half)
