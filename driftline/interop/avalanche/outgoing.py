"""A stream as an Avalanche benchmark: segments become experiences, held-out samples the test stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from avalanche.benchmarks import (
    CLScenario,
    CLStream,
    DatasetExperience,
    EagerCLStream,
    OnlineCLExperience,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.utils import _make_taskaware_classification_dataset
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from driftline.errors import ConfigError, DataError, ScenarioError
from driftline.metrics.probe import SPLIT, stream_probe
from driftline.stream.batch import Batch
from driftline.stream.events import Labels
from driftline.stream.live import LiveStream
from driftline.stream.stream import Stream

Tasks = Literal["none", "segment", "domain"]


def to_avalanche(
    stream: Stream | LiveStream,
    *,
    experience_size: int | None = None,
    task_labels: Tasks = "none",
    test: bool = True,
) -> CLScenario:
    """Make an Avalanche benchmark of a stream, on which any of its strategies can be trained.

    Parameters
    ----------
    stream : Stream or LiveStream
        What to train on, of classes, whose labels all arrive at once. Each segment is an experience of the stream
        "train"; where segments have held-out samples, those are the experiences of "test", the same samples that
        :class:`driftline.metrics.HeldOut` would judge on. A live stream may be endless.
    experience_size : int, optional
        Cut into pieces of so many samples, one experience each, as for Avalanche's online strategies: the last piece
        of a segment is marked as such. Needed for a live stream. Pieces are made when they are asked for.
    task_labels : "none", "segment" or "domain"
        What is a task: nothing (all labels 0), each segment, or each domain (see :meth:`Stream.domains`).
    test : bool
        Whether to make a test stream of held-out samples, where there are any.

    Returns
    -------
    CLScenario
        Samples in the stream's order, as a learner here sees them. An experience reads its samples when the first of
        them is wanted, and keeps them. Strategies shuffle unless told ``train(experience, shuffle=False)``.

    Raises
    ------
    ScenarioError
        For regression, for labels that come late or not at all, which Avalanche cannot express, and where only some
        segments have held-out samples.
    ConfigError
        For a bad setting.
    DataError
        Of a live stream, when it is read: for a sample without a label.

    Notes
    -----
    Experiences know their classes (``classes_in_this_experience``, ...) except where they are made on the way.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.class_incremental(driftline.load("digits"), tasks=5, order="sorted")
    >>> benchmark = to_avalanche(stream)
    >>> [sorted(e.classes_in_this_experience) for e in benchmark.train_stream]
    [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    >>> sum(len(e.dataset) for e in benchmark.test_stream)
    359
    """
    if experience_size is not None and experience_size < 1:
        raise ConfigError(f"experience_size={experience_size}: must be at least 1 sample")
    if task_labels not in ("none", "segment", "domain"):
        raise ConfigError(f'task_labels={task_labels!r}: must be "none", "segment" or "domain"')
    if not stream.classes:
        raise ScenarioError(f"{stream.name} has no classes; Avalanche's benchmarks here are of classification")
    if isinstance(stream, LiveStream):
        if experience_size is None:
            raise ConfigError(f"{stream.name} is live: say how many samples make an experience (experience_size=...)")
        if stream.delay or stream.fraction < 1:
            raise ScenarioError(f"{stream.name}: {LATE}")
        return CLScenario([CLStream("train", LiveExperiences(stream, experience_size))])
    infos = stream.infos()
    for info in infos:
        if any(r.delay or r.fraction < 1 for r in stream.segments[info.index].recipes):
            raise ScenarioError(f"segment {info.name!r}: {LATE}")
    labels = stream.labels()
    if labels is None:
        raise ScenarioError(f"{stream.name}: not all samples have a known label, which Avalanche's benchmarks need")
    tasks = _tasks(stream, task_labels)
    wholes = [Samples(stream[i.start : i.stop], labels[i.start : i.stop], tasks[i.start : i.stop]) for i in infos]
    whole = EagerCLStream(
        "train", [DatasetExperience(dataset=w.dataset(), current_experience=i) for i, w in enumerate(wholes)]
    )
    tests = _tests(stream, task_labels) if test else []
    # Strategies look for task labels on the experience, and behave otherwise where they find them.
    if task_labels != "none":
        whole, tests = with_task_labels(whole), [with_task_labels(test) for test in tests]
    whole, tests = with_classes_timeline(whole), [with_classes_timeline(test) for test in tests]
    if experience_size is None:
        return CLScenario([whole, *tests])
    return CLScenario([CLStream("train", Pieces(wholes, list(whole), experience_size)), *tests])


LATE = "labels come late or not at all, which an Avalanche benchmark cannot express; take .delay_labels(0)"
LATE += ".label_fraction(1) of it"


class Samples(Dataset[tuple[Tensor, int]]):
    """Samples of a stream, all read when the first of them is wanted.

    Parameters
    ----------
    stream : Stream
        Where they are.
    labels, tasks : Tensor, shape (n,)
        Of each sample.
    places : Tensor, shape (n,), optional
        Positions in the stream; default: all of it.
    """

    def __init__(self, stream: Stream, labels: Tensor, tasks: Tensor, places: Tensor | None = None) -> None:
        self.stream, self.tasks, self.places = stream, tasks, places
        self.targets: list[int] = labels.tolist()
        self._x: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self._x is None:
            x = self.stream.read(0, len(self.stream))[0]
            self._x = x if self.places is None else x[self.places.to(x.device)]
        return self._x[index], self.targets[index]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be read again."""
        return {**self.__dict__, "_x": None}

    def dataset(self) -> Any:
        """Return them as Avalanche's dataset: items (x, y, task label)."""
        return _make_taskaware_classification_dataset(self, targets=self.targets, task_labels=self.tasks.tolist())


class Pieces:
    """The experiences of a stream in small pieces, made anew each time (Avalanche keeps what generators give).

    Parameters
    ----------
    wholes : sequence of Samples
        Of each segment.
    experiences : sequence of DatasetExperience
        The same as whole experiences.
    size : int
        Samples in a piece.
    """

    def __init__(self, wholes: Sequence[Samples], experiences: Sequence[DatasetExperience], size: int) -> None:
        self.wholes, self.experiences, self.size = wholes, experiences, size

    def __iter__(self) -> Iterator[OnlineCLExperience]:
        for whole, experience in zip(self.wholes, self.experiences):
            starts = range(0, len(whole), self.size)
            data = experience.dataset
            for start in starts:
                piece = data.subset(range(start, min(start + self.size, len(whole))))
                made = OnlineCLExperience(
                    dataset=piece,
                    origin_experience=experience,
                    is_first_subexp=start == 0,
                    is_last_subexp=start == starts[-1],
                    sub_stream_length=len(starts),
                )
                for name in ("task_label", "task_labels"):
                    if hasattr(experience, name):
                        setattr(made, name, getattr(experience, name))
                yield made


class LiveExperiences:
    """Batches of a live stream as experiences, read when they are asked for."""

    def __init__(self, stream: LiveStream, size: int) -> None:
        self.stream, self.size = stream, size

    def __iter__(self) -> Iterator[DatasetExperience]:
        for batch in self.stream.batches(self.size):
            if isinstance(batch, Labels):
                raise DataError(
                    f"{self.stream.name}: labels that come later, by id, which an Avalanche benchmark cannot hold"
                )
            if batch.y is None or batch.labelled < len(batch):
                raise DataError(
                    f"{self.stream.name}, positions {batch.position} to {batch.stop}: samples without a label, which "
                    "an Avalanche benchmark cannot hold"
                )
            yield experience_of(batch.x, batch.y)


def experience_of(x: Tensor, y: Tensor, number: int | None = None) -> DatasetExperience:
    """Return samples in memory as an experience, all of task 0."""
    data = _make_taskaware_classification_dataset(TensorDataset(x, y), targets=y.tolist(), task_labels=0)
    return DatasetExperience(dataset=data, current_experience=number)


def _tasks(stream: Stream, what: Tasks) -> Tensor:
    """Return the task label of each position."""
    tasks = torch.zeros(len(stream), dtype=torch.long)
    for number, info in enumerate(stream.infos()):
        if what == "segment":
            tasks[info.start : info.stop] = number
        elif what == "domain":
            count = cast(int, info.stop) - info.start
            tasks[info.start : info.stop] = stream.domains(Batch(torch.empty(count), None, info.start, info, 0))
    return tasks


def _tests(stream: Stream, what: Tasks) -> list[EagerCLStream]:
    """Return the held-out samples as a test stream, if there are any."""
    infos = stream.infos()
    if all(stream.segments[info.index].held_out(SPLIT) is None for info in infos):
        return []
    probe = stream_probe(stream)
    if empty := [info.name for info, places in zip(infos, probe.members) if not len(places)]:
        raise ScenarioError(
            f"segment {empty[0]!r} has no held-out samples while others have, but experiences of the test stream "
            "belong to those of the train stream by number; give it some, or leave all out with test=False"
        )
    experiences = []
    for number, (info, places) in enumerate(zip(infos, probe.members)):
        tasks = torch.full_like(places, number if what == "segment" else 0)
        if what == "domain":
            names = [part.recipes[0].look or info.name for part in probe.stream.segments]
            known = torch.tensor([stream.domain_names.index(n) if n in stream.domain_names else -1 for n in names])
            tasks = known[torch.searchsorted(torch.tensor(probe.stream.starts[1:]), places, right=True)]
        samples = Samples(probe.stream, probe.classes[places], tasks, places)
        experiences.append(DatasetExperience(dataset=samples.dataset(), current_experience=number))
    return [EagerCLStream("test", experiences)]
