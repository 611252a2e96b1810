"""Any metric, for each of R runs in lockstep: the mean over replicas, and each one's own value as ``name@replica``."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import cast

from driftline.errors import ConfigError
from driftline.metrics.base import Metric, Point
from driftline.stream.live import LiveStream
from driftline.stream.replicas import ReplicaStream
from driftline.stream.step import Step
from driftline.stream.stream import Stream

SEPARATOR = "@"


class ReplicaMetric(Metric):
    """R copies of a metric, each of which measures its replica as if that ran alone.

    Parameters
    ----------
    metric : Metric
        A new one, which is copied.
    replicas : int
        R.

    Raises
    ------
    ConfigError
        For a metric that watches what a step costs.

    Notes
    -----
    Values of replicas are undefined (NaN) where any replica's is.
    """

    def __init__(self, metric: Metric, replicas: int) -> None:
        if metric.surrounds:
            raise ConfigError(f"{type(metric).__name__} cannot tell replicas apart, which run together; run one alone")
        self.metric, self.replicas = metric, replicas
        self.copies = [copy.deepcopy(metric) for _ in range(replicas)]
        self.looks_first = metric.looks_first  # type: ignore[misc]
        self.definitions = metric.definitions  # type: ignore[misc]

    def begin(self, stream: Stream | LiveStream, batch_size: int) -> None:
        """Get each copy ready for its replica's stream."""
        for i, metric in enumerate(self.copies):
            metric.begin(cast(ReplicaStream, stream).replica(i), batch_size)

    def cuts(self, position: int, batch_size: int) -> int | None:
        """Return where the metric wants to look."""
        return self.copies[0].cuts(position, batch_size)

    def before(self, step: Step) -> None:
        """Let each copy look at its replica."""
        for i, metric in enumerate(self.copies):
            metric.before(step.replica(i))

    def update(self, step: Step) -> None:
        """Let each copy measure its replica."""
        for i, metric in enumerate(self.copies):
            metric.update(step.replica(i))

    def value(self) -> dict[str, float]:
        """Return the means over replicas."""
        return {name: math.fsum(values) / len(values) for name, values in self.values().items()}

    def values(self) -> dict[str, list[float]]:
        """Return the values of all replicas by name."""
        each = [metric.value() for metric in self.copies]
        # Replicas may meet domains of other names.
        names = dict.fromkeys(name for own in each for name in own)
        return {name: [own.get(name, math.nan) for own in each] for name in names}

    def points(self, position: int) -> list[Point]:
        """Return the mean and each replica's own points."""
        each = [metric.points(position) for metric in self.copies]
        found: dict[tuple[int, str], list[float]] = {}
        for points in each:
            for place, name, value in points:
                found.setdefault((place, name), []).append(value)
        means = [(place, name, math.fsum(values) / len(values)) for (place, name), values in found.items()]
        own = [(p, f"{name}{SEPARATOR}{i}", v) for i, points in enumerate(each) for p, name, v in points]
        return [*means, *own]

    def describe(self) -> dict[str, object]:
        """Return name and parameters of the metric."""
        return self.metric.describe()

    def state_dict(self) -> dict[str, object]:
        """Return the state of each copy."""
        return {"replicas": [metric.state_dict() for metric in self.copies]}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        for metric, own in zip(self.copies, cast(Sequence[Mapping[str, object]], state["replicas"])):
            metric.load_state_dict(own)
