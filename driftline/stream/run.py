"""Run a stream from beginning to end: record, checkpoints, progress bar, and exact resumption."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, cast

import torch

from driftline.errors import RecordError
from driftline.stream.live import LiveStream
from driftline.stream.play import Reset, play
from driftline.stream.recording import Recording
from driftline.stream.replicas import ReplicaStream
from driftline.stream.seeds import derive_seed
from driftline.stream.step import Step
from driftline.stream.stream import Stream
from driftline.stream.study import Streams, Study

if TYPE_CHECKING:
    from driftline.adapters.base import Adapter
    from driftline.learners.base import Learner
    from driftline.metrics.base import Metric, Point
    from driftline.stream.trackers import Tracker


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

    def curves(self, metric: str) -> tuple[list[int], list[list[float]]]:
        """Return positions, and the values of one metric for each replica of a study."""
        count = len(cast("Mapping[str, list[object]]", self.record["replicas"])["seeds"])
        each = [self.curve(f"{metric}@{i}") for i in range(count)]
        return each[0][0], [values for _, values in each]


def run(
    stream: Stream | LiveStream | ReplicaStream | Streams,
    learner: Learner | Adapter | Callable[..., Learner],
    *,
    batch_size: int = 1,
    metrics: Sequence[Metric] | None = None,
    device: torch.device | str | None = None,
    chunk: int | None = None,
    reset: Reset = "never",
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    grid: Mapping[str, Sequence[object]] | None = None,
    name: str | None = None,
    out: str | Path | None = None,
    record_every: int | None = None,
    checkpoint_every: int | None = None,
    until: Callable[[Step], bool] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    about: Mapping[str, object] | None = None,
    trackers: Sequence[Tracker] = (),
) -> Report:
    """Play a stream to its end and return what was measured.

    Parameters
    ----------
    stream, learner, batch_size, device, chunk, reset
        See :func:`driftline.play`. With ``seeds``, the learner is a function that makes one, ``make(seed)``; the stream
        one that all see, a list with one for each seed, or a function that makes it from a seed; and ``chunk`` is by
        default 1000.
    metrics : sequence of Metric, optional
        Default: online accuracy; for regression, the online error.
    seed : int
        For what the model itself draws (dropout): the global generators are set from it while the run lasts, and put
        back afterwards.
    seeds : sequence of int, optional
        Run once for each of these, in lockstep: replica i equals the single run with the i-th seed, up to rounding.
        Results are means over replicas; each replica's are in ``record["replicas"]``, its series under ``metric@i``.
    grid : mapping of str to sequence, optional
        Settings to vary: every combination runs with every seed, in the same lockstep; ``make(seed, **settings)``.
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
    trackers : sequence of Tracker
        Where recorded values go too, such as :class:`driftline.stream.trackers.TensorBoardTracker`. After a kill, those
        behind the last checkpoint are sent again.

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

    A study of three seeds and two step sizes, six runs in lockstep:

    >>> import torch
    >>> from driftline.learners import GradientLearner
    >>> def make(seed, lr):
    ...     model = driftline.models.mlp(stream.input_shape, 10, hidden=(32,), seed=seed)
    ...     return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=lr))
    >>> report = driftline.run(stream, make, seeds=[0, 1, 2], grid={"lr": [0.01, 0.1]}, batch_size=10)
    >>> slow_and_fast = report.record["replicas"]["results"]["online_accuracy"]
    >>> max(slow_and_fast[:3]) < min(slow_and_fast[3:])
    True
    """
    about = dict(about or {})
    if seeds is not None or grid is not None:
        study = Study([seed] if seeds is None else seeds, grid or {})
        stream, learner = study.stream(cast(Streams, stream)), study.learner(cast("Callable[..., Learner]", learner))
        about["replicas"] = study.describe()
        chunk = 1000 if chunk is None else chunk
    player = cast("Learner | Adapter", learner)
    played = cast("Stream | LiveStream | ReplicaStream", stream)
    chosen = tuple(metrics) if metrics is not None else _usual(played)
    playback = play(played, player, batch_size=batch_size, metrics=chosen, device=device, chunk=chunk or 1, reset=reset)
    recording = Recording(playback, out, until, trackers)
    recording.set_intervals(record_every, checkpoint_every)
    recording.describe(name, seed, about)
    with _seeded(seed, recording.playback.device):
        recording.open(resume, overwrite)
        try:
            with _bar(recording, progress) as show, _deferred_interrupt() as interrupt:
                finished = recording.drain(show, interrupt)
        except RecordError:
            recording.abandon()
            raise
        except Exception as error:
            recording.close("failed", f"{type(error).__name__}: {error}", save=False)
            raise
        except KeyboardInterrupt:
            recording.close("stopped", "interrupted", save=False)
            raise
        recording.close("finished" if finished else "stopped", "interrupted" if interrupt else None, save=True)
        if interrupt:
            raise KeyboardInterrupt
    return Report(recording.record, recording.series, recording.timing, None if out is None else Path(out))


def _usual(stream: Stream | LiveStream | ReplicaStream) -> tuple[Metric, ...]:
    if stream.classes:
        from driftline.metrics.online import OnlineAccuracy

        return (OnlineAccuracy(),)
    from driftline.metrics.online_error import OnlineError

    return (OnlineError(),)


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
def _bar(recording: Recording, progress: bool | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar; yields the function that moves it."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda position: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(str(recording.record["name"]), total=recording.samples)
        yield lambda position: bar.update(task, completed=position)
