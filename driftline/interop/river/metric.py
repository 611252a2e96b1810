"""A metric of River beside driftline's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from river import base, metrics
from torch import Tensor

from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.interop.river import pickles
from driftline.metrics.base import Metric
from driftline.stream.live import LiveStream
from driftline.stream.step import Step
from driftline.stream.stream import Stream


class RiverMetric(Metric):
    """Gives each prediction and its truth to a metric of River, one sample after the other, on the CPU.

    Classes are given as indices, or as their labels; a metric that wants probabilities gets the softmax of the scores.
    As in River's own evaluation, a sample for which the learner has no answer (all scores -Inf) does not count.

    Parameters
    ----------
    metric : river.metrics.base.Metric
        For classes or for numbers, such as ``river.metrics.MacroF1()`` or ``river.utils.Rolling(...)`` of one.
    labels : sequence, optional
        What to call the classes, such as ``[False, True]``. Default: 0, 1, 2, ...
    name : str, optional
        Name of the value. Default: ``river_`` and the metric's own, such as ``river_macro_f1``.

    Raises
    ------
    ConfigError
        When it is no metric of River's for classes or numbers, or one of several numbers (a report).
    InputError
        When the stream has classes and the metric is for numbers, or the other way round; when the labels are not as
        many as its classes, or targets are more than one number for each sample.

    Examples
    --------
    >>> import driftline
    >>> from river import metrics
    >>> from driftline.interop.river import RiverMetric
    >>> from driftline.learners import StreamingLDA
    >>> stream = driftline.scenarios.iid(driftline.load("digits"))
    >>> report = driftline.run(stream, StreamingLDA(), batch_size=10, metrics=[RiverMetric(metrics.CohenKappa())])
    >>> report.results["river_cohen_kappa"] > 0.8
    True
    """

    def __init__(
        self, metric: metrics.base.Metric, labels: Sequence[base.typing.ClfTarget] = (), name: str | None = None
    ) -> None:
        kind = _innermost(metric)
        self._classes = isinstance(kind, metrics.base.ClassificationMetric)
        if not self._classes and not isinstance(kind, metrics.base.RegressionMetric):
            raise ConfigError(f"{type(kind).__name__} is not one of River's metrics of classes or numbers")
        try:
            float(metric.get())
        except (NotImplementedError, TypeError):
            raise ConfigError(f"{type(kind).__name__} is not one number; give a metric that is") from None
        if len(set(labels)) < len(labels):
            raise ConfigError(f"labels={labels!r}: two of them are the same")
        self.metric, self.labels = metric, tuple(labels)
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(kind).__name__).lower()
        self.name = name or f"river_{words}"
        text = f"River's {type(kind).__name__}, of samples before they are learned from"
        self.definitions = {self.name: text}  # type: ignore[misc]
        self._probabilities = self._classes and not kind.requires_labels

    def begin(self, stream: Stream | LiveStream, batch_size: int) -> None:
        """Check that the stream has what the metric is for."""
        if bool(stream.classes) != self._classes:
            what = "has none" if self._classes else "has classes"
            wanted = "classes" if self._classes else "numbers to predict"
            raise InputError(f"{self.name} is of {wanted}, and {stream.name!r} {what}")
        if self.labels and len(self.labels) != len(stream.classes):
            raise InputError(f"{self.name}: {len(self.labels)} labels for {len(stream.classes)} classes")

    def update(self, step: Step) -> None:
        """Take in the step's predictions."""
        if step.batch.y is None or step.prediction is None:
            return
        update: Any = self.metric.update
        truths, answers = step.batch.y, step.prediction.double().cpu()
        if not self._classes:
            if truths.shape[1:].numel() != 1 or answers.shape[1:].numel() != 1:
                shapes = f"targets {tuple(truths.shape)} and predictions {tuple(answers.shape)}"
                raise InputError(f"{self.name} is of one number for each sample, not of {shapes}")
            truths = truths.flatten()
        for truth, scores in zip(truths.tolist(), answers):
            if not self._classes:
                update(truth, float(scores))
            elif truth >= 0 and not bool((scores == -torch.inf).all()):
                update(self._label(truth), self._answer(scores))

    def _answer(self, scores: Tensor) -> object:
        if not self._probabilities:
            return self._label(int(scores.argmax()))
        return {self._label(k): p for k, p in enumerate(scores.softmax(0).tolist())}

    def _label(self, index: int) -> base.typing.ClfTarget:
        return self.labels[index] if self.labels else index

    def value(self) -> dict[str, float]:
        """Return the metric's value."""
        return {self.name: float(self.metric.get())}

    def describe(self) -> dict[str, object]:
        """Return name and parameters for the record (JSON values)."""
        labels = [str(label) for label in self.labels]
        return {**super().describe(), "metric": type(_innermost(self.metric)).__name__, "labels": labels}

    def state_dict(self) -> dict[str, object]:
        """Return the metric as bytes (a tensor), with River's version; see :mod:`driftline.interop.river.pickles`."""
        content = bytearray(pickles.save(self.metric))
        return {"metric": torch.frombuffer(content, dtype=torch.uint8), "river": pickles.VERSION}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        content = cast(Tensor, state["metric"]).cpu().numpy().tobytes()
        metric = pickles.load(content, str(state["river"]))
        found, wanted = type(_innermost(metric)), type(_innermost(self.metric))
        if type(metric) is not type(self.metric) or found is not wanted:
            raise CheckpointError(f"the state is of another metric: {found.__name__}, not {wanted.__name__}")
        self.metric = metric


def _innermost(metric: object) -> Any:
    """Return the metric inside of a rolling or time-rolling one."""
    while hasattr(metric, "obj"):
        metric = metric.obj
    return metric
