"""What a tracker does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Tracker(Protocol):
    """Takes a run's numbers as they are recorded; any object with these three methods.

    Examples
    --------
    >>> import driftline
    >>> from driftline.learners import StreamingLDA
    >>> class Printer:
    ...     def start(self, record):
    ...         print(record["name"])
    ...     def log(self, values, position):
    ...         print(position, *values)
    ...     def finish(self, record):
    ...         print(record["status"])
    >>> stream = driftline.scenarios.iid(driftline.load("digits"))[:100]
    >>> metrics = [driftline.metrics.OnlineAccuracy(window=None)]
    >>> _ = driftline.run(stream, StreamingLDA(), metrics=metrics, record_every=50, trackers=[Printer()])
    StreamingLDA
    50 online_accuracy
    100 online_accuracy
    finished
    """

    def start(self, record: Mapping[str, object]) -> None:
        """Begin, or go on with, the run that this record describes."""

    def log(self, values: Mapping[str, float], position: int) -> None:
        """Take the values recorded at a position of the stream."""

    def finish(self, record: Mapping[str, object]) -> None:
        """End the run; the record has its status and results."""


def settings(record: Mapping[str, object]) -> dict[str, object]:
    """Return what a run was made with, flat, by dotted names.

    Examples
    --------
    >>> settings({"learner": {"name": "SGD", "parameters": {"lr": 0.1}}, "protocol": {"seed": 0}, "results": {}})
    {'learner.name': 'SGD', 'learner.parameters.lr': 0.1, 'protocol.seed': 0}
    """
    flat: dict[str, object] = {}

    def walk(value: object, name: str) -> None:
        if isinstance(value, Mapping) and value:
            for key, part in value.items():
                walk(part, f"{name}.{key}")
        else:
            flat[name] = value

    for part in ("scenario", "learner", "protocol", "versions"):
        if part in record:
            walk(record[part], part)
    return flat
