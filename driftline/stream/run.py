"""Run a stream from beginning to end: record, checkpoints, progress bar, and exact resumption."""

from __future__ import annotations

import math
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from driftline.errors import CheckpointError, ConfigError, RecordError
from driftline.stream import checkpoint
from driftline.stream.live import LiveStream
from driftline.stream.play import Playback, play
from driftline.stream.record import FORMAT, RunDirectory, versions, without_nan
from driftline.stream.seeds import derive_seed
from driftline.stream.step import Step
from driftline.stream.stream import Stream

if TYPE_CHECKING:
    from driftline.adapters.base import Adapter
    from driftline.learners.base import Learner
    from driftline.metrics.base import Metric, Point


@dataclass(frozen=True)
class Report:
    """What a run gave.

    Attributes
    ----------
    record : dict
        Everything needed to repeat the run, and its results; as in ``record.json``.
    series : list of (position, metric, value)
        Every recorded number.
    timing : dict
        Wall time in seconds, samples per second, peak memory in bytes.
    path : Path, optional
        Where it is on disk.
    """

    record: dict[str, object]
    series: list[Point]
    timing: dict[str, object]
    path: Path | None = None

    @property
    def results(self) -> dict[str, float | None]:
        """The final value of each metric (None where it is undefined)."""
        return cast(dict[str, "float | None"], self.record["results"])

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Return positions and values of one metric."""
        points = [(p, v) for p, name, v in self.series if name == metric]
        return [p for p, _ in points], [v for _, v in points]


def run(
    stream: Stream | LiveStream,
    learner: Learner | Adapter,
    *,
    batch_size: int = 1,
    metrics: Sequence[Metric] | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    name: str | None = None,
    out: str | Path | None = None,
    record_every: int | None = None,
    checkpoint_every: int | None = None,
    until: Callable[[Step], bool] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    about: Mapping[str, object] | None = None,
) -> Report:
    """Play a stream to its end and return what was measured.

    Parameters
    ----------
    stream, learner, batch_size, device
        See :func:`driftline.play`.
    metrics : sequence of Metric, optional
        Default: online accuracy.
    seed : int
        For what the model itself draws (dropout): the global generators are set from it while the run lasts, and put
        back afterwards.
    name : str, optional
        Label of the run in reports; default: the learner's.
    out : path, optional
        Folder for record, series and checkpoint; None: nothing is written.
    record_every : int, optional
        Samples between recorded values; default: 200 times over the stream (every 1000 samples of a live one).
    checkpoint_every : int, optional
        Samples between checkpoints; default: ten times over the stream (every 10 000 samples of a live one).
    until : callable, optional
        ``until(step) -> bool``: stop early when it returns True.
    resume : bool
        Continue the run in ``out`` from its last checkpoint; pass the same stream, learner and settings, freshly built.
    overwrite : bool
        Replace a run that is in ``out`` already.
    progress : bool, optional
        Show a progress bar; default: when standard error is a terminal.
    about : mapping, optional
        Further entries for the record (JSON values).

    Returns
    -------
    Report

    Raises
    ------
    ConfigError
        For a bad setting, or when ``out`` holds a run and neither ``resume`` nor ``overwrite`` is given.
    CheckpointError
        When the checkpoint is damaged or belongs to a run with another stream, learner or setting.
    RecordError
        When the record cannot be written; what was recorded so far stays on disk, as for every other error.

    Examples
    --------
    >>> import driftline
    >>> from driftline.learners import StreamingLDA
    >>> stream = driftline.scenarios.si_blurry(driftline.load("digits"), seed=1)
    >>> report = driftline.run(stream, StreamingLDA(), batch_size=10)
    >>> report.results["online_accuracy"] > 0.8
    True
    """
    from driftline.metrics.online import OnlineAccuracy

    chosen = tuple(metrics) if metrics is not None else (OnlineAccuracy(),)
    # Hashed before play() moves anything: the model as it was given.
    session = _Session(play(stream, learner, batch_size=batch_size, metrics=chosen, device=device), out, until)
    session.set_intervals(record_every, checkpoint_every)
    session.describe(name, seed, about or {})
    with _seeded(seed, session.playback.device):
        session.open(resume, overwrite)
        try:
            with _bar(session, progress) as show, _deferred_interrupt() as interrupt:
                finished = session.drain(show, interrupt)
        except RecordError:
            session.abandon()
            raise
        except Exception as error:
            session.close("failed", f"{type(error).__name__}: {error}", save=False)
            raise
        except KeyboardInterrupt:
            session.close("stopped", "interrupted", save=False)
            raise
        session.close("finished" if finished else "stopped", "interrupted" if interrupt else None, save=True)
        if interrupt:
            raise KeyboardInterrupt
    return session.report()


class _Session:
    """One call of :func:`run`."""

    def __init__(self, playback: Playback, out: str | Path | None, until: Callable[[Step], bool] | None) -> None:
        self.playback = playback
        self.folder = RunDirectory(out) if out is not None else None
        self.until = until
        self.record: dict[str, object] = {}
        self.series: list[Point] = []
        self.timing: dict[str, object] = {}
        self._recorded = -1
        self._warned = False
        self._resumed = 0
        self._wall = 0.0

    @property
    def samples(self) -> int | None:
        """Length of the stream; None when it is live."""
        stream = self.playback.stream
        return len(stream) if isinstance(stream, Stream) else None

    def set_intervals(self, record_every: int | None, checkpoint_every: int | None) -> None:
        for label, value in (("record_every", record_every), ("checkpoint_every", checkpoint_every)):
            if value is not None and value < 1:
                raise ConfigError(f"{label}={value}: must be at least 1 sample")
        samples = self.samples
        self.record_every = record_every or (max(1, samples // 200) if samples else 1000)
        self.checkpoint_every = checkpoint_every or (max(1, samples // 10) if samples else 10_000)

    def describe(self, name: str | None, seed: int, about: Mapping[str, object]) -> None:
        playback = self.playback
        learner = playback.learner.describe()
        device = playback.device or (playback.stream.device if isinstance(playback.stream, Stream) else "cpu")
        self.record = {
            "format": FORMAT,
            "name": name or str(learner["name"]),
            "status": "running",
            "error": None,
            "scenario": playback.stream.describe(),
            "learner": learner,
            "protocol": {
                "batch_size": playback.batch_size,
                "seed": seed,
                "record_every": self.record_every,
                "checkpoint_every": self.checkpoint_every,
                "device": _device_name(torch.device(device)),
                "metrics": [m.describe() for m in playback.metrics],
            },
            "weights": {"start": self._weights(), "end": None},
            "versions": versions(),
            "position": 0,
            "results": {},
            "definitions": {},
            "warnings": [],
            **about,
        }

    def _weights(self) -> str | None:
        from driftline.weights import weights_hash

        network = self.playback.learner.network()
        return weights_hash(network) if network is not None else None

    def open(self, resume: bool, overwrite: bool) -> None:
        if self.folder is None:
            if resume:
                raise ConfigError("resume=True needs out=, the folder of the run to continue")
            return
        if resume:
            self._resume(self.folder)
            return
        self.folder.create(self.record, overwrite)
        self._checkpoint()

    def _resume(self, folder: RunDirectory) -> None:
        saved = folder.read_record()
        for part in ("scenario", "learner", "protocol"):
            _check_same(part, saved.get(part), self.record[part])
        state = checkpoint.load(folder.checkpoint)
        self.playback.load_state_dict(cast(Mapping[str, object], state["playback"]))
        self.series = folder.reopen(cast(int, state["series_bytes"]))
        self._recorded = cast(int, state["recorded"])
        self.record["weights"] = {**cast(dict[str, object], saved["weights"]), "end": None}
        self.record["warnings"] = list(cast(list[str], state["warnings"]))
        self._warned = bool(self.record["warnings"])
        timing = folder.read_timing()
        self._wall = float(cast(float, timing.get("wall_seconds", 0.0)))
        self._resumed = int(cast(int, timing.get("resumed", 0))) + 1
        torch.set_rng_state(cast(Tensor, state["rng"]))
        if state["cuda_rng"] is not None and self._cuda is not None:
            torch.cuda.set_rng_state(cast(Tensor, state["cuda_rng"]), self._cuda)

    @property
    def _cuda(self) -> torch.device | None:
        device = torch.device(self.playback.device or "cpu")
        return device if device.type == "cuda" else None

    def _checkpoint(self) -> None:
        assert self.folder is not None
        state: dict[str, object] = {
            "playback": self.playback.state_dict(),
            "series_bytes": self.folder.sync(),
            "recorded": self._recorded,
            "warnings": list(cast(list[str], self.record["warnings"])),
            "rng": torch.get_rng_state(),
            "cuda_rng": None if self._cuda is None else torch.cuda.get_rng_state(self._cuda),
        }
        checkpoint.save(self.folder.checkpoint, state)
        self._time()

    def drain(self, show: Callable[[int], None], interrupt: list[int]) -> bool:
        """Play until the end, or until told to stop; return whether the end was reached."""
        before = self.playback.position
        self._clock = time.perf_counter()
        record_every, checkpoint_every, until = self.record_every, self.checkpoint_every, self.until
        saves = self.folder is not None
        for step in self.playback:
            position = step.position
            if position // record_every > before // record_every:
                self._note(step)
                show(position)
            if saves and position // checkpoint_every > before // checkpoint_every:
                self._checkpoint()
            before = position
            if interrupt or (until is not None and until(step)):
                return self.samples == position
        return True

    def _note(self, step: Step | None) -> None:
        """Record the metrics' values as they are now."""
        position = self.playback.position
        if position == self._recorded:
            return
        self._recorded = position
        points = [p for metric in self.playback.metrics for p in metric.points(position) if not math.isnan(p[2])]
        self.series.extend(points)
        if self.folder is not None:
            self.folder.append(points)
        if step is not None and step.prediction is not None and not self._warned:
            self._warned = not bool(torch.isfinite(step.prediction.max(-1).values).all())
            if self._warned:
                text = f"scores are NaN or Inf at position {position}: the learner has diverged; lower its step size"
                cast(list[str], self.record["warnings"]).append(text)
                warnings.warn(text, RuntimeWarning, stacklevel=4)

    def close(self, status: str, error: str | None, save: bool) -> None:
        """Record the end of the run, however it ended."""
        if save and self.folder is not None:
            # Before the last values are recorded: a resumed run goes on as if it had never stopped.
            self._checkpoint()
        if self.playback.position:
            self._note(None)
        metrics = self.playback.metrics
        values = {name: value for m in metrics for name, value in m.value().items()}
        weights = cast(dict[str, object], self.record["weights"])
        self.record |= {
            "status": status,
            "error": error,
            "weights": {**weights, "end": self._weights()},
            "position": self.playback.position,
            "results": without_nan(values),
            "definitions": {name: text for m in metrics for name, text in m.definitions.items()},
        }
        self._time()
        if self.folder is not None:
            self.folder.write_record(self.record)
            self.folder.close()

    def abandon(self) -> None:
        """Leave the record as it is: it cannot be written."""
        if self.folder is not None:
            self.folder.close()

    def _time(self) -> None:
        wall = self._wall + (time.perf_counter() - self._clock if hasattr(self, "_clock") else 0.0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        self.timing = {
            "wall_seconds": wall,
            "samples_per_second": self.playback.position / wall if wall else None,
            "peak_memory_bytes": peak,
            "peak_device_memory_bytes": torch.cuda.max_memory_allocated(self._cuda) if self._cuda else None,
            "resumed": self._resumed,
        }
        if self.folder is not None:
            self.folder.write_timing(self.timing)

    def report(self) -> Report:
        return Report(self.record, self.series, self.timing, self.folder.path if self.folder is not None else None)


@contextmanager
def _seeded(seed: int, device: torch.device | str | None) -> Iterator[None]:
    """Give what draws from torch's global generators (dropout) its own seed; put them back afterwards."""
    cuda = torch.device(device or "cpu").type == "cuda"
    with torch.random.fork_rng(devices=[torch.device(str(device))] if cuda else []):
        torch.default_generator.manual_seed(derive_seed(seed, "run"))
        if cuda:
            torch.cuda.manual_seed(derive_seed(seed, "run"))
        yield


@contextmanager
def _deferred_interrupt() -> Iterator[list[int]]:
    """Let the first Ctrl-C or SIGTERM wait for the end of the step, so that no half-learned batch is saved.

    Yields a list that is empty until then; a second one interrupts at once.
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bar(session: _Session, progress: bool | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar; yields the function that moves it."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda position: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(str(session.record["name"]), total=session.samples)
        yield lambda position: bar.update(task, completed=position)


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _check_same(part: str, saved: object, here: object) -> None:
    """Raise if the run on disk was made with other settings, naming the first difference."""
    if saved == here:
        return
    if isinstance(saved, dict) and isinstance(here, dict):
        for key in [*saved, *here]:
            _check_same(f"{part}.{key}", saved.get(key), here.get(key))
    raise CheckpointError(f"the run on disk has {part} = {saved!r}, this one {here!r}; resume with the same settings")
