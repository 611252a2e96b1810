"""An Avalanche benchmark as a stream: experiences become segments, its test stream their held-out samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from driftline.errors import ConfigError, DataError, unknown
from driftline.interop.rows import MEMORY, ReadRows, Rows, draws, fits, item, read
from driftline.stream.dataset import Dataset
from driftline.stream.seeds import derive_seed, generator
from driftline.stream.segment import Segment
from driftline.stream.stream import Stream


class Experience(Protocol):
    """What is used of Avalanche's ``CLExperience``."""

    def logging(self) -> Experience:
        """Return a copy that shows everything."""


@dataclass
class Part:
    """The data of one experience: of all its pieces, where a stream was cut into small ones."""

    where: str
    pieces: list[Rows]

    @property
    def rows(self) -> Rows:
        """The items, one after the other."""
        return self.pieces[0] if len(self.pieces) == 1 else cast(Rows, ConcatDataset(self.pieces))  # type: ignore[arg-type]


@dataclass
class Labelled:
    """What a part holds: its samples (or their row numbers), labels and task labels."""

    x: Tensor
    y: Tensor
    tasks: Tensor | None


def from_avalanche(
    benchmark: object,
    *,
    train: str | None = None,
    test: str | None = None,
    shuffle: bool = False,
    resident: bool | None = None,
    memory: int = MEMORY,
    seed: int = 0,
    name: str = "avalanche",
) -> Stream:
    """Make a stream of an Avalanche benchmark of classification.

    Each experience becomes a segment, "experience 0" and so on. Pieces of one experience, as ``split_online_stream``
    makes them, are put together again: the batch size says how large a step is.

    Parameters
    ----------
    benchmark : CLScenario, CLStream or iterable of experiences
        Items are ``(x, y)`` or ``(x, y, task label)``. Where task labels differ, they name domains, as in
        "experience 3, task 1"; no learner is told them.
    train : str, optional
        The stream to play. Default: "train", or the only one whose name begins so.
    test : str, optional
        The stream to hold out. Default: "test", or the only one whose name ends so; none where there is none. With as
        many experiences as are played, each belongs to the one of its number; else all are held out for each segment.
    shuffle : bool
        Whether to shuffle the samples within each experience, as Avalanche's strategies do at each epoch, or play
        them in the order of the dataset: which ``nc_benchmark`` and the classic benchmarks sort by class.
    resident : bool, optional
        Whether to read everything into memory, or each item when it is played. Default: into memory when it fits and
        reading draws no random numbers. Read when played, random augmentations are keyed by seed and position; in
        memory, each sample keeps what was drawn once.
    memory : int
        Bytes that count as fitting.
    seed : int
        Keys every draw.
    name : str
        For records and messages.

    Returns
    -------
    Stream
        Training experiences are read with their "train" transforms, held-out ones with "eval".

    Raises
    ------
    DataError
        For anything but classification (detection, regression, reinforcement learning), items of another form, an
        experience without samples.
    ConfigError
        When there is no such stream, or none to choose.

    Warns
    -----
    UserWarning
        Names the benchmark's streams that are neither played nor held out.

    Notes
    -----
    Lomonaco et al., "Avalanche: an End-to-End Library for Continual Learning" (CLVision 2021). A benchmark is read to
    its end; of an endless one, give a part (``itertools.islice(benchmark.train_stream, 100)``).

    Examples
    --------
    >>> import torch
    >>> from avalanche.benchmarks import nc_benchmark
    >>> from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset as data
    >>> x, y = torch.rand(40, 3), torch.arange(40) % 4
    >>> benchmark = nc_benchmark(data(x, y), data(x[:8], y[:8]), n_experiences=2, task_labels=False, seed=0)
    >>> stream = from_avalanche(benchmark)
    >>> [(segment.name, len(segment), len(segment.held_out())) for segment in stream.segments]
    [('experience 0', 20, 4), ('experience 1', 20, 4)]
    """
    played, held = _streams(benchmark, train, test, name)
    trains = _parts(played, name, "experience", "train")
    tests = [] if held is None else _parts(held, name, "held-out experience", "eval")
    every = trains + tests
    random = any(draws(part.rows, part.where) for part in every)
    if resident is None:
        resident = not random and fits([(part.rows, part.where) for part in every], memory)
    found = [_read(part) for part in every] if resident else _number(every)
    classes = [str(c) for c in range(max(int(one.y.max()) for one in found) + 1)]
    shown = None if resident else ReadRows([p.rows for p in every], torch.cat([one.y for one in found]), name)
    tasks = sorted(
        {t for one in found[: len(trains)] if one.tasks is not None for t in torch.unique(one.tasks).tolist()}
    )
    splits = _splits(found[len(trains) :], len(trains), classes, name)
    segments, rng = [], generator(derive_seed(seed, "shuffle"))
    for number, one in enumerate(found[: len(trains)]):
        data = Dataset(one.x, one.y, classes, f"{name}, experience {number}", splits[number])
        segment = Segment.of(data).named(f"experience {number}")
        if len(splits) == len(tests):
            segment = segment.judged_on(*torch.unique(cast(Tensor, splits[number]["test"].y)).tolist())
        if shown is not None:
            segment = segment.transform(shown, random=random)
        if one.tasks is not None and len(tasks) > 1:
            segment = _of_tasks(segment, one.tasks)
        segments.append(segment.shuffle(rng) if shuffle else segment)
    about = {"experiences": len(trains), "shuffle": shuffle, "resident": resident, "tasks": len(tasks)}
    return Stream(segments, seed, name, about)


def _streams(
    benchmark: object, train: str | None, test: str | None, name: str
) -> tuple[Iterable[Experience], Iterable[Experience] | None]:
    """Choose what is played and what is held out."""
    streams = getattr(benchmark, "streams", None)
    if not isinstance(streams, Mapping):
        if not isinstance(benchmark, Iterable):
            raise ConfigError(f"{name}: {type(benchmark).__name__} is no benchmark, nor a stream of experiences")
        if train is not None or test is not None:
            raise ConfigError(f"{name}: train= and test= name streams of a benchmark; this is a single stream")
        return benchmark, None
    chosen = [
        _choose(streams, asked, usual, fallback)
        for asked, usual, fallback in (
            (train, "train", [s for s in streams if s.startswith("train")]),
            (test, "test", [s for s in streams if s.endswith("test")]),
        )
    ]
    if chosen[0] is None:
        raise ConfigError(f"{name}: which stream is to be played? Name one with train=: {', '.join(streams)}")
    if left := [s for s in streams if s not in chosen]:
        warnings.warn(
            f"{name}: neither played nor held out: {', '.join(left)}; name another with train= or test=", stacklevel=3
        )
    return streams[chosen[0]], None if chosen[1] is None else streams[chosen[1]]


def _choose(streams: Mapping[str, object], asked: str | None, usual: str, fallback: Sequence[str]) -> str | None:
    if asked is not None:
        if asked not in streams:
            raise unknown("stream", asked, streams)
        return asked
    if usual in streams:
        return usual
    return fallback[0] if len(fallback) == 1 else None


def _parts(stream: Iterable[Experience], name: str, what: str, view: str) -> list[Part]:
    """Return the data of each experience, with consecutive pieces of one put together."""
    parts: list[Part] = []
    before: object = None
    for number, masked in enumerate(stream):
        if not hasattr(masked, "logging"):
            raise ConfigError(f"{name}: item {number} of the stream is a {type(masked).__name__}, not an experience")
        experience = masked.logging()
        data = getattr(experience, "dataset", None)
        if data is None or not hasattr(data, view):
            raise DataError(f"{name}: {type(experience).__name__} {number} has no dataset of samples and labels")
        if len(data) == 0:
            raise DataError(f"{name}: {what} {number} has no samples; leave it out of the benchmark")
        # Of pieces the origin is known, or none for any of them where experiences fade into each other.
        online = hasattr(experience, "is_first_subexp")
        origin = getattr(experience, "origin_experience", None) if online else experience
        if not (parts and online and origin is before and not experience.is_first_subexp):  # type: ignore[attr-defined]
            parts.append(Part(f"{name}, {what} {len(parts)}", []))
        parts[-1].pieces.append(getattr(data, view)())
        before = origin
    if not parts:
        raise DataError(f"{name}: the stream has no experiences")
    return parts


def _read(part: Part) -> Labelled:
    """Read a part into memory."""
    got = read(part.rows, part.where)
    return Labelled(got.x, _classes(got.y, part.where), got.tasks)


def _number(parts: Sequence[Part]) -> list[Labelled]:
    """Number the rows of all parts through; labels are what Avalanche says they are."""
    found, offset = [], 0
    for part in parts:
        rows = part.rows
        first = item(rows, 0, part.where)
        _classes(first.y, part.where)
        labels = [_attribute(piece, "targets") for piece in part.pieces]
        if any(piece is None for piece in labels):
            labels = [read(rows, part.where).y]
        y = _classes(torch.cat([piece for piece in labels if piece is not None]), part.where)
        given = [_attribute(piece, "targets_task_labels") for piece in part.pieces]
        tasks = None if any(t is None for t in given) else torch.cat([t for t in given if t is not None])
        found.append(Labelled(torch.arange(offset, offset + len(rows)).unsqueeze(1), y, tasks))
        offset += len(rows)
    return found


def _attribute(rows: Rows, name: str) -> Tensor | None:
    values = getattr(rows, name, None)
    return None if values is None else torch.tensor([int(value) for value in values])


def _classes(y: Tensor | None, where: str) -> Tensor:
    """Return labels that are classes, or raise."""
    if y is None:
        raise DataError(f"{where}: items are x alone; a benchmark of classification has (x, y) or (x, y, task label)")
    if y.is_floating_point():
        raise DataError(
            f"{where}: y is {y.dtype}, as for regression; only benchmarks of classification can be played "
            "(driftline.interop.pytorch.from_torch plays datasets of numbers)"
        )
    if int(y.min()) < 0:
        raise DataError(f"{where}: label {int(y.min())}; classes are numbered from 0")
    return y


def _splits(tests: Sequence[Labelled], segments: int, classes: list[str], name: str) -> list[dict[str, Dataset]]:
    """Return the held-out data of each segment."""
    if len(tests) != segments and tests:
        x, y = torch.cat([one.x for one in tests]), torch.cat([one.y for one in tests])
        return [{"test": Dataset(x, y, classes, f"{name}/test")}] * segments
    if not tests:
        return [{} for _ in range(segments)]
    return [{"test": Dataset(one.x, one.y, classes, f"{name}/test {i}")} for i, one in enumerate(tests)]


def _of_tasks(segment: Segment, tasks: Tensor) -> Segment:
    """Return the segment with the samples of each task in a domain of that name."""
    present = torch.unique(tasks).tolist()
    if len(present) == 1:
        return segment.in_domain(f"task {present[0]}").named(f"{segment.name}, task {present[0]}")
    recipes = tuple(replace(segment.recipes[0], look=f"task {task}") for task in present)
    which = torch.searchsorted(torch.tensor(present), tasks).to(torch.int32)
    name = f"{segment.name}, tasks {', '.join(map(str, present))}"
    return replace(segment, recipes=recipes, which=which).named(name)
