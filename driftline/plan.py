"""A run described by names and plain values, so that a record on disk can be run or resumed again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import cast

from torch import nn

from driftline import build, data, models, scenarios
from driftline.adapters import Adapter
from driftline.errors import ConfigError, DataError, RecordError
from driftline.learners import Learner
from driftline.metrics import HeldOut, Metric, NearFutureAccuracy, OnlineAccuracy
from driftline.stream.record import RunDirectory
from driftline.stream.run import Report, run
from driftline.stream.stream import Stream
from driftline.weights import load_weights

Values = Mapping[str, object]


@dataclass(frozen=True)
class Plan:
    """What the command line runs.

    Parameters
    ----------
    scenario : str
        A name from :func:`driftline.scenarios.names`, or ``file.py:function``.
    data : str
        A name or path that :func:`driftline.load` takes.
    learner : str
        A name in :data:`driftline.build.LEARNERS`; not looked at when there is an adapter.
    adapter : str, optional
        A name in :data:`driftline.build.ADAPTERS`.
    model : str, optional
        A name from :func:`driftline.models.names`; default: ``mlp``.
    weights : str, optional
        Start from released weights, see :func:`driftline.weights.load_weights`.
    metrics : list of str
        Names in :data:`driftline.build.METRICS`. Default: online, near-future (when a shift can be found) and held-out
        accuracy (when there is a test split).
    seed : int
        For scenario, model and learner.
    batch_size : int
        Samples per step.
    shift : int, optional
        For near-future accuracy; default: found from the labels.
    evaluate_every : int, optional
        Samples between held-out evaluations; default: 20 times over the stream.
    delay_labels : int
        Samples that labels come late.
    label_fraction : float
        Share of the labels that arrive.
    samples : int, optional
        Stop after so many samples.
    standardize : bool
        Give the features zero mean and unit variance (of the training part).
    device : str, optional
        Where to run.
    scenario_parameters, data_parameters, learner_parameters, model_parameters : mapping
        Passed on by name.

    Examples
    --------
    >>> plan = Plan("si_blurry", "digits", "slda", seed=1, batch_size=10)
    >>> report = plan.run()
    >>> report.record["name"], report.results["online_accuracy"] > 0.8
    ('slda', True)
    """

    scenario: str
    data: str
    learner: str = "sgd"
    adapter: str | None = None
    model: str | None = None
    weights: str | None = None
    metrics: tuple[str, ...] = ()
    seed: int = 0
    batch_size: int = 10
    shift: int | None = None
    evaluate_every: int | None = None
    delay_labels: int = 0
    label_fraction: float = 1.0
    samples: int | None = None
    standardize: bool = False
    device: str | None = None
    scenario_parameters: Values = field(default_factory=dict)
    data_parameters: Values = field(default_factory=dict)
    learner_parameters: Values = field(default_factory=dict)
    model_parameters: Values = field(default_factory=dict)

    @classmethod
    def of_run(cls, path: str | Path) -> Plan:
        """Return the plan of a run on disk.

        Raises
        ------
        RecordError
            When there is no run, or it was not made from a plan.
        """
        record = RunDirectory(path).read_record()
        saved = record.get("plan")
        if not isinstance(saved, dict):
            raise RecordError(f"{path} was run from Python; resume it there with run(..., out=..., resume=True)")
        unknown = set(saved) - {f.name for f in fields(cls)}
        if unknown:
            raise RecordError(f"{path}: its plan has entries this version does not know: {', '.join(sorted(unknown))}")
        return cls(**{**saved, "metrics": tuple(cast(list[str], saved["metrics"]))})

    def stream(self, root: str | Path | None = None) -> Stream:
        """Build the stream, with data files under ``root``."""
        dataset = data.load(self.data, root, standardize=self.standardize, **self.data_parameters)  # type: ignore[arg-type]
        stream = scenarios.get(self.scenario)(dataset, seed=self.seed, **self.scenario_parameters)
        if self.delay_labels:
            stream = stream.delay_labels(self.delay_labels)
        if self.label_fraction < 1:
            stream = stream.label_fraction(self.label_fraction)
        return stream[: self.samples] if self.samples is not None else stream

    def player(self, stream: Stream, root: str | Path | None = None) -> Learner | Adapter:
        """Build the learner or adapter for a stream."""
        if self.adapter is not None:
            return build.adapter(self.adapter, self._model(stream, root), **self.learner_parameters)
        model = self._model(stream, root) if build.needs_model(self.learner) else None
        if model is None and (self.model is not None or self.weights is not None):
            raise ConfigError(f"learner {self.learner} trains no model; leave out the model")
        return build.learner(self.learner, model, len(stream.classes), self.seed, **self.learner_parameters)

    def _model(self, stream: Stream, root: str | Path | None) -> nn.Module:
        if self.weights is not None:
            return load_weights(self.weights, root)
        name = self.model or "mlp"
        return models.build(name, stream.input_shape, len(stream.classes), self.seed, **self.model_parameters)

    def measures(self, stream: Stream) -> list[Metric]:
        """Build the metrics for a stream."""
        if self.metrics:
            return [self._metric(name, stream) for name in self.metrics]
        chosen = [self._metric("online", stream)]
        try:
            near_future = self._metric("near-future", stream)
            near_future.begin(stream, self.batch_size)
            chosen.append(near_future)
        except DataError as error:
            if self.shift is not None:
                raise
            warnings.warn(f"near-future accuracy is left out: {error}", RuntimeWarning, stacklevel=2)
        if any(stream.held_out()):
            chosen.append(self._metric("held-out", stream))
        return chosen

    def _metric(self, name: str, stream: Stream) -> Metric:
        window = min(1000, max(50, len(stream) // 20))
        if name == "online":
            return OnlineAccuracy(window)
        if name == "near-future":
            return NearFutureAccuracy("auto" if self.shift is None else self.shift, window)
        if name == "held-out":
            return HeldOut(self.evaluate_every or max(1, len(stream) // 20))
        return build.metric(name)

    def run(
        self,
        out: str | Path | None = None,
        *,
        root: str | Path | None = None,
        name: str | None = None,
        resume: bool = False,
        overwrite: bool = False,
        progress: bool | None = None,
        checkpoint_every: int | None = None,
    ) -> Report:
        """Build everything and run it; parameters and errors as for :func:`driftline.run`."""
        stream = self.stream(root)
        return run(
            stream,
            self.player(stream, root),
            batch_size=self.batch_size,
            metrics=self.measures(stream),
            device=self.device,
            seed=self.seed,
            name=name or self.adapter or self.learner,
            out=out,
            checkpoint_every=checkpoint_every,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            about={"plan": {**asdict(self), "metrics": list(self.metrics)}},
        )
