"""A run described by names and plain values, so that a record on disk can be run or resumed again."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from torch import nn

from driftline import build, data, models, scenarios
from driftline.adapters import Adapter, CollapseGuard, DisagreementGuard, RealTime, SlidingWindow
from driftline.errors import ConfigError, DataError, RecordError
from driftline.learners import GradientLearner, Learner
from driftline.metrics import (
    HeldOut,
    Metric,
    NearFutureAccuracy,
    OnlineAccuracy,
    OnlineError,
    Rollbacks,
)
from driftline.stream.dataset import Dataset
from driftline.stream.live import LiveStream, from_iterable
from driftline.stream.play import Reset
from driftline.stream.record import RunDirectory
from driftline.stream.run import Report, run
from driftline.stream.scenario import OwnDataScenario
from driftline.stream.stream import Stream
from driftline.stream.trackers import Tracker
from driftline.weights import load_weights

Values = Mapping[str, object]

CHUNK = 1000
"""Batches that compiled steps take at once."""
LIVE = 20_000
"""Samples that windows and intervals are made for where a stream's length is not known."""
S = TypeVar("S", Stream, LiveStream)


@dataclass(frozen=True)
class Plan:
    r"""What the command line runs.

    Parameters
    ----------
    scenario : str
        A name from :func:`driftline.scenarios.names`, or ``file.py:function``; or a live source, see
        :func:`driftline.build.source`.
    data : str, optional
        A name or path that :func:`driftline.load` takes. Default: ``digits``, unless the scenario makes its own data.
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
        accuracy (when there is a test split); the online error where there are numbers to predict.
    seed : int
        For scenario, model and learner.
    seeds : sequence of int
        Run once for each of these in place of ``seed``, in lockstep; see :func:`driftline.run`.
    grid : mapping of str to sequence
        Learner parameters to vary: every combination runs with every seed, in the same lockstep.
    batch_size : int
        Samples per step.
    shift : int, optional
        For near-future accuracy; default: found from the labels.
    evaluate_every : int, optional
        Samples between evaluations of held-out accuracy and plasticity; default: 20 times over the stream.
    delay_labels : int
        Samples that labels come late.
    label_fraction : float
        Share of the labels that arrive.
    samples : int, optional
        Stop after so many samples.
    standardize : bool
        Give the features zero mean and unit variance (of the training part).
    input_range : (low, high), optional
        Move inputs from [0, 1] to this range, such as (-1, 1).
    compile : bool
        Train through compiled steps where learner and model allow it, see :class:`driftline.learners.GradientLearner`;
        a warning says where they do not.
    device : str, optional
        Where to run.
    reset : "never" or "segment"
        When an adapter returns to its source model, see :func:`driftline.play`.
    real_time : "measured" or float, optional
        Let the adapter miss batches while it is busy: what adapting costs, see
        :class:`driftline.adapters.real_time.RealTime`.
    source : str, optional
        Data of the source domain for adapters that learn something from it before they begin (EATA's Fisher
        information, AdaNPC's memory, ...): a name or path that :func:`driftline.load` takes.
    window : int, optional
        Let the adapter see so many of the last samples at each step, see
        :class:`driftline.adapters.sliding_window.SlidingWindow`.
    disagreement : float, optional
        Take the adapter back to its source before training changes more than this share of its predictions, see
        :class:`driftline.adapters.disagreement_guard.DisagreementGuard`. It is around a ``guard``.
    guard : bool
        Take the adapter back to a good state when it collapses, see
        :class:`driftline.adapters.collapse_guard.CollapseGuard`; rollbacks are counted and put into the series. It is
        inside of the window, and real time outside of both.
    scenario_parameters, data_parameters, learner_parameters, model_parameters, source_parameters, guard_parameters
        Passed on by name: mappings.

    Examples
    --------
    >>> plan = Plan("si_blurry", "digits", "slda", seed=1, batch_size=10)
    >>> report = plan.run()
    >>> report.record["name"], report.results["online_accuracy"] > 0.8
    ('slda', True)

    From a file of records, read one by one:

    >>> import tempfile
    >>> readings = Path(tempfile.mkdtemp()) / "readings.csv"
    >>> _ = readings.write_text("a,b,state\n" + "0.1,0.2,off\n1.1,0.9,on\n" * 50)
    >>> plan = Plan(f"csv:{readings}", learner="ncm", scenario_parameters={"label": "state", "classes": "off,on"})
    >>> plan.run().results["online_accuracy"] > 0.9
    True
    """

    scenario: str
    data: str | None = None
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
    seeds: tuple[int, ...] = ()
    grid: Mapping[str, Sequence[object]] = field(default_factory=dict)
    input_range: tuple[float, float] | None = None
    compile: bool = False
    reset: Reset = "never"
    real_time: str | float | None = None
    source: str | None = None
    source_parameters: Values = field(default_factory=dict)
    window: int | None = None
    guard: bool = False
    guard_parameters: Values = field(default_factory=dict)
    disagreement: float | None = None

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
        # JSON has lists only.
        tuples = {name: tuple(value) for name, value in saved.items() if isinstance(value, list)}
        return cls(**{**saved, **tuples})

    def dataset(self, root: str | Path | None = None) -> Dataset | None:
        """Load the data, with files under ``root``; None when the scenario makes its own.

        Raises
        ------
        ConfigError
            When there is data, or settings of data, for a scenario that makes its own.
        """
        if build.is_source(self.scenario):
            if self.data is not None or self.data_parameters or self.standardize or self.input_range is not None:
                raise ConfigError(
                    f"{self.scenario} is live, and its samples are taken as they come; leave out data and its settings"
                )
            return None
        if scenarios.get(self.scenario).needs_data:
            settings = {"standardize": self.standardize, "input_range": self.input_range, **self.data_parameters}
            return data.load(self.data or "digits", root, **settings)  # type: ignore[arg-type]
        if self.data is not None or self.data_parameters or self.standardize or self.input_range is not None:
            raise ConfigError(f"scenario {self.scenario} makes its own data; leave out data and its settings")
        return None

    def stream(self, root: str | Path | None = None) -> Stream:
        """Build the stream, with data files under ``root``.

        Raises
        ------
        ConfigError
            When it is live.
        """
        dataset = self.dataset(root)
        if build.is_source(self.scenario):
            raise ConfigError(f"{self.scenario} is live, and this needs a stream that can be read again")
        return self._stream(dataset, self.seed)

    def _live(self) -> LiveStream:
        if self.seeds or self.grid or self.compile:
            raise ConfigError(f"{self.scenario} is live: seeds, grid and compile are for finite streams")
        named = build.source(self.scenario, **self.scenario_parameters)
        if self.adapter is None and not named.labelled:
            raise ConfigError(f"{self.scenario}: a learner needs labels, and none are named; set label= or classes=")
        stream = from_iterable(named.source, named.classes, self.scenario, self.seed)
        stream = replace(self._labels(stream), input_shape=named.shape)
        return stream if self.samples is None else stream.first(self.samples)

    def _stream(self, dataset: Dataset | None, seed: int) -> Stream:
        script = scenarios.get(self.scenario)
        if dataset is None:
            stream = cast("OwnDataScenario[...]", script)(seed=seed, **self.scenario_parameters)
        else:
            stream = script(dataset, seed=seed, **self.scenario_parameters)
        stream = self._labels(stream)
        return stream[: self.samples] if self.samples is not None else stream

    def _labels(self, stream: S) -> S:
        """Let labels come late, or not all of them."""
        if self.delay_labels:
            stream = stream.delay_labels(self.delay_labels)
        return stream.label_fraction(self.label_fraction) if self.label_fraction < 1 else stream

    def player(self, stream: Stream | LiveStream, root: str | Path | None = None) -> Learner | Adapter:
        """Build the learner or adapter for a stream."""
        if self.guard_parameters and not self.guard:
            raise ConfigError(f"guard_parameters={dict(self.guard_parameters)}, but there is no guard")
        if self.adapter is not None:
            parameters = {**self.learner_parameters, **self._source(root)}
            return self._wrapped(build.adapter(self.adapter, self._model(stream, self.seed, root), **parameters))
        if self.real_time is not None:
            raise ConfigError(f"real_time={self.real_time!r}: a learner takes its time; only adapters miss batches")
        around = {name: getattr(self, name) for name in ("guard", "window", "disagreement")}
        if any(value not in (None, False) for value in around.values()):
            said = ", ".join(f"{name}={value}" for name, value in around.items())
            raise ConfigError(f"{said}: these go around an adapter, not a learner")
        return self._learner(stream, root, self.seed)

    def _wrapped(self, adapter: Adapter) -> Adapter:
        """Put around the adapter what was asked for."""
        if self.guard:
            adapter = build.call(CollapseGuard, "guard", self.guard_parameters, adapter)
        if self.disagreement is not None:
            adapter = DisagreementGuard(adapter, self.disagreement)
        if self.window is not None:
            adapter = SlidingWindow(adapter, self.window)
        return adapter if self.real_time is None else RealTime(adapter, self.real_time)

    def _source(self, root: str | Path | None) -> dict[str, object]:
        """Load the source domain's data for the adapter, if any is named."""
        if self.source is None:
            if self.source_parameters:
                raise ConfigError(f"source_parameters={dict(self.source_parameters)}, but no source is named")
            return {}
        settings = {"standardize": self.standardize, "input_range": self.input_range, **self.source_parameters}
        return {"source": data.load(self.source, root, **settings)}  # type: ignore[arg-type]

    def _learner(self, stream: Stream | LiveStream, root: str | Path | None, seed: int, **settings: object) -> Learner:
        model = self._model(stream, seed, root) if build.needs_model(self.learner) else None
        if model is None and (self.model is not None or self.weights is not None):
            raise ConfigError(f"learner {self.learner} trains no model; leave out the model")
        parameters = {**self.learner_parameters, **settings}
        learner = build.learner(self.learner, model, len(stream.classes), seed, **parameters)
        if self.compile:
            if not isinstance(learner, GradientLearner):
                raise ConfigError(f"learner {self.learner} makes no gradient steps, so there are none to compile")
            learner.compile = True
        return learner

    def _model(self, stream: Stream | LiveStream, seed: int, root: str | Path | None) -> nn.Module:
        if self.weights is not None:
            return load_weights(self.weights, root)
        name = self.model or "mlp"
        if stream.input_shape is None:
            raise ConfigError(f"{stream.name}: a model needs to know the shape of a sample; set shape=, or features=")
        return models.build(name, stream.input_shape, outputs(stream), seed, **self.model_parameters)

    def measures(self, stream: Stream | LiveStream) -> list[Metric]:
        """Build the metrics for a stream."""
        watched = self.guard or self.disagreement is not None
        guarded = [Rollbacks()] if watched and "rollbacks" not in self.metrics else []
        if self.metrics:
            return [*(self._metric(name, stream) for name in self.metrics), *guarded]
        return [*self._usual(stream), *guarded]

    def _usual(self, stream: Stream | LiveStream) -> list[Metric]:
        chosen = [self._metric("online", stream)]
        if not stream.classes:
            if self.shift is not None:
                raise ConfigError(f"shift={self.shift}: near-future accuracy needs classes, and {stream.name} has none")
            return chosen
        if isinstance(stream, LiveStream):
            # Nobody knows its labels beforehand, and it has no test split.
            return chosen if self.shift is None else [*chosen, self._metric("near-future", stream)]
        try:
            near_future = self._metric("near-future", stream)
            near_future.begin(stream, self.batch_size)
            chosen.append(near_future)
        except DataError as error:
            if self.shift is not None:
                raise
            warnings.warn(f"near-future accuracy is left out: {error}", RuntimeWarning, stacklevel=3)
        if any(stream.held_out()):
            chosen.append(self._metric("held-out", stream))
        return chosen

    def _metric(self, name: str, stream: Stream | LiveStream) -> Metric:
        samples = LIVE if isinstance(stream, LiveStream) else len(stream)
        window = min(1000, max(50, samples // 20))
        if name == "online":
            return OnlineAccuracy(window) if stream.classes else OnlineError(window)
        if name == "online-error":
            return OnlineError(window)
        if name == "near-future":
            return NearFutureAccuracy("auto" if self.shift is None else self.shift, window)
        if name == "held-out":
            return HeldOut(self.evaluate_every or max(1, samples // 20))
        if name in ("plasticity", "probe-plasticity", "sharpness", "source-error"):
            return build.metric(name, every=self.evaluate_every or max(1, samples // 20))
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
        trackers: Sequence[Tracker] = (),
    ) -> Report:
        """Build everything and run it; parameters and errors as for :func:`driftline.run`."""
        dataset = self.dataset(root)
        first: Stream | LiveStream
        if build.is_source(self.scenario):
            first = self._live()
        else:
            first = self._stream(dataset, self.seeds[0] if self.seeds else self.seed)
        streams: Stream | LiveStream | Callable[[int], Stream] = first
        player: Learner | Adapter | Callable[..., Learner]
        if not self.seeds and not self.grid:
            player = self.player(first, root)
        elif self.adapter is not None:
            raise ConfigError(f"adapter {self.adapter}: seeds and grid are for learners; run it once for each seed")
        else:
            streams, player = partial(self._stream, dataset), partial(self._learner, first, root)
        return run(
            streams,
            player,
            batch_size=self.batch_size,
            metrics=self.measures(first),
            device=self.device,
            # Compiled steps come in rows.
            chunk=CHUNK if self.compile else None,
            reset=self.reset,
            seed=self.seed,
            seeds=self.seeds or None,
            grid=self.grid or None,
            name=name or self.adapter or self.learner,
            out=out,
            checkpoint_every=checkpoint_every,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            trackers=trackers,
            about={"plan": self._saved()},
        )

    def _saved(self) -> dict[str, object]:
        """Return the plan as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def outputs(stream: Stream | LiveStream) -> int:
    """Return how many numbers a model must give for a stream: one for each class, or for each number to predict.

    Raises
    ------
    ConfigError
        When the stream has neither.
    """
    if stream.classes:
        return len(stream.classes)
    if isinstance(stream, LiveStream):
        return 1
    truth = stream.segments[0].recipes[0].truth
    if truth is None:
        raise ConfigError(
            f"{stream.name}: its data has neither classes nor numbers to predict, so there is nothing to build a model "
            "for; give data with labels, or weights"
        )
    if truth.dim() > 2:
        raise ConfigError(f"{stream.name}: targets of shape {tuple(truth.shape[1:])}; flatten them to one dimension")
    return math.prod(truth.shape[1:])
