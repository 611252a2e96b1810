"""A metric of torchmetrics, measured while the stream runs: on predictions made before they are learned from."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.metrics.base import Metric
from driftline.stream.live import LiveStream
from driftline.stream.step import Step
from driftline.stream.stream import Stream


class TorchMetric(Metric):
    """Any ``torchmetrics.Metric`` or ``MetricCollection`` of predictions and targets.

    It is given scores (B, classes) and classes (B,), or, for regression, numbers of the targets' shape. Samples
    without a known truth do not count.

    Parameters
    ----------
    metric : torchmetrics.Metric or MetricCollection
        A new one; it is moved to the device of the predictions.
    name : str, optional
        Name of its value, or prefix of its values. Default: its class's name, such as "MulticlassAccuracy"; for a
        collection, the names of its members.

    Raises
    ------
    ConfigError
        For anything that is not updated with ``update(predictions, targets)`` and read with ``compute()``.
    InputError
        When it does not take the predictions and targets it is given, with its own reason.

    Notes
    -----
    Values of several numbers are given one name each, ``name/0`` and so on. One that keeps all it has seen (such as
    ``MulticlassAUROC(thresholds=None)``) grows with the stream, and so does its checkpoint.

    Examples
    --------
    >>> import driftline
    >>> from torchmetrics.classification import MulticlassF1Score
    >>> from driftline.interop.torch_metrics import TorchMetric
    >>> from driftline.learners import StreamingLDA
    >>> stream = driftline.scenarios.iid(driftline.load("digits"))
    >>> for step in driftline.play(stream, StreamingLDA(), batch_size=10, metrics=[TorchMetric(MulticlassF1Score(10))]):
    ...     pass
    >>> {name: round(value, 1) for name, value in step.metrics().items()}
    {'MulticlassF1Score': 0.9}
    """

    definitions: ClassVar[Mapping[str, str]] = {
        "*": "a metric of torchmetrics by this name, of predictions made before they are learned from, since the start"
    }

    def __init__(self, metric: Any, name: str | None = None) -> None:
        if not all(callable(getattr(metric, word, None)) for word in ("update", "compute", "reset", "state_dict")):
            raise ConfigError(f"TorchMetric needs a metric of torchmetrics, got {type(metric).__name__}")
        self.metric = metric
        self.members = list(metric.values(copy_state=False)) if hasattr(metric, "add_metrics") else [metric]
        self.name = name
        self._classes = 0
        self._device: torch.device | None = None

    def begin(self, stream: Stream | LiveStream, batch_size: int) -> None:
        """Note how many classes there are."""
        self._classes = len(stream.classes)

    def update(self, step: Step) -> None:
        """Take in the step's predictions."""
        y, scores = step.batch.y, step.prediction
        if y is None or scores is None:
            return
        if self._classes and step.batch.labelled < len(y):
            known = y >= 0
            scores, y = scores[known], y[known]
        if scores.device != self._device:
            self.metric.to(scores.device)
            self._device = scores.device
        if self._classes:
            # Learners that grow give no score yet for classes they have not met.
            scores = F.pad(scores, (0, max(0, self._classes - scores.shape[-1])), value=float("-inf"))
        elif scores.shape == (*y.shape, 1):
            scores = scores.squeeze(-1)
        try:
            self.metric.update(scores, y)
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{type(self.metric).__name__} does not take predictions {tuple(scores.shape)} {scores.dtype} and "
                f"targets {tuple(y.shape)} {y.dtype}: {error}"
            ) from error

    def value(self) -> dict[str, float]:
        """Return its current values; NaN before the first step."""
        if not any(member.update_called for member in self.members):
            return {} if len(self.members) > 1 else {self._name: float("nan")}
        found = self.metric.compute()
        if not isinstance(found, Mapping):
            return dict(_numbers(self._name, found))
        prefix = "" if self.name is None else f"{self.name}/"
        return dict(pair for key, part in found.items() for pair in _numbers(f"{prefix}{key}", part))

    @property
    def _name(self) -> str:
        return type(self.metric).__name__ if self.name is None else self.name

    def describe(self) -> dict[str, object]:
        """Return which metric it is."""
        members = [type(member).__name__ for member in self.members]
        return {"name": type(self).__name__, "metric": members, "as": self._name}

    def state_dict(self) -> dict[str, object]:
        """Return what each member has taken in."""
        return {
            "members": [
                {
                    "kind": type(member).__name__,
                    "updates": member._update_count,
                    "state": copy.deepcopy({name: getattr(member, name) for name in member._defaults}),
                }
                for member in self.members
            ]
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When it is another metric's; nothing has been changed then.
        """
        members = cast("Sequence[Mapping[str, Any]]", state["members"])
        own = [(type(member).__name__, set(member._defaults)) for member in self.members]
        if [(saved["kind"], set(saved["state"])) for saved in members] != own:
            raise CheckpointError(f"the state is that of {[m['kind'] for m in members]}, not of {[o[0] for o in own]}")
        for member, saved in zip(self.members, members):
            member.reset()
            for name, value in saved["state"].items():
                setattr(member, name, copy.deepcopy(value))
            member._update_count = saved["updates"]
        self._device = None


def _numbers(name: str, value: Any) -> list[tuple[str, float]]:
    """Return a value's numbers, each with a name."""
    if isinstance(value, Mapping):
        return [pair for key, part in value.items() for pair in _numbers(f"{name}/{key}", part)]
    if isinstance(value, (tuple, list)):
        return [pair for i, part in enumerate(value) for pair in _numbers(f"{name}/{i}", part)]
    if isinstance(value, Tensor) and value.dim():
        return [pair for i, part in enumerate(value) for pair in _numbers(f"{name}/{i}", part)]
    return [(name, float(value))]
