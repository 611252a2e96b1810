"""Which held-out samples a stream is judged on, and from when on each of them counts."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from driftline.errors import DataError
from driftline.stream.dataset import Dataset
from driftline.stream.live import LiveStream
from driftline.stream.recipe import Recipe
from driftline.stream.seeds import derive_seed
from driftline.stream.segment import Segment
from driftline.stream.stream import Stream

SPLIT = "test"
UNMET = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Probe:
    """The held-out samples of a stream, each once, and when and where they count.

    Attributes
    ----------
    stream : Stream
        The samples, one segment for each way of showing them (domain).
    classes : Tensor, shape (n,)
        Their classes.
    met : Tensor, shape (n,)
        Stream position at which their class is first met in their domain.
    class_met : Tensor, shape (C,)
        Stream position at which each class is first met in any domain.
    members : list of Tensor
        For each segment that the played stream shows, the samples it stands for.
    """

    stream: Stream
    classes: Tensor
    met: Tensor
    class_met: Tensor
    members: list[Tensor]


@dataclass(frozen=True)
class Tasks:
    """Which task each held-out sample is of.

    Attributes
    ----------
    of : Tensor, shape (n,)
        Number of each sample's task: that of the first segment which it stands for.
    classes : Tensor, shape (T, C)
        Bool: which classes a task has.
    """

    of: Tensor
    classes: Tensor


def tasks_of(probe: Probe, stream: Stream) -> Tasks:
    """Return the tasks of a stream's held-out samples."""
    infos = stream.infos()
    of = torch.full((len(probe.classes),), -1)
    for info, mine in reversed(list(zip(infos, probe.members))):
        of[mine] = info.task
    classes = torch.zeros(max(info.task for info in infos) + 1, len(probe.class_met), dtype=torch.bool)
    for info, mine in zip(infos, probe.members):
        classes[info.task, probe.classes[mine]] = True
    return Tasks(of, classes)


def stream_probe(stream: Stream, test: Dataset | None = None) -> Probe:
    """Collect the held-out samples of a stream's segments.

    Raises
    ------
    DataError
        When no segment has any, or some samples of the stream have no known truth.
    """
    if stream.labels() is None:
        raise DataError(f"{stream.name}: held-out samples count once their class is met, but not all labels are known")
    if test is not None:
        stream = _with_test(stream, test)
    held = [_parts(stream.segments[info.index].held_out(SPLIT)) for info in stream.infos()]
    rows: dict[Hashable, list[Tensor]] = {}
    recipes: dict[Hashable, Recipe] = {}
    for recipe, mine in (part for parts in held for part in parts):
        recipes.setdefault(recipe.domain, recipe)
        rows.setdefault(recipe.domain, []).append(mine)
    if not rows:
        raise DataError(
            f'{stream.name}: no segment has held-out samples; give the dataset a "{SPLIT}" split, or HeldOut(test=...) '
            "(segments whose labels are given by row have none in any case)"
        )
    unique = {domain: torch.unique(torch.cat(mine)) for domain, mine in rows.items()}
    seed = derive_seed(stream.seed, SPLIT)
    shown = Stream([Segment(mine, (recipes[domain],)) for domain, mine in unique.items()], seed, "held-out")
    offset = dict(zip(unique, shown.starts))
    members = [
        torch.cat([offset[r.domain] + torch.searchsorted(unique[r.domain], mine) for r, mine in parts])
        if parts
        else torch.empty(0, dtype=torch.long)
        for parts in held
    ]
    classes = shown.labels()
    assert classes is not None
    met = _first_met(stream, list(unique))
    domain = torch.repeat_interleave(torch.arange(len(unique)), torch.tensor([len(m) for m in unique.values()]))
    return Probe(shown, classes, met[domain, classes], met.min(0).values, members)


def live_probe(stream: LiveStream, test: Dataset | None) -> Probe:
    """Take ``test`` as it is: everything counts from the start.

    Raises
    ------
    DataError
        When there is no test data, or it has other classes than the stream.
    """
    if test is None or test.y is None:
        raise DataError(f"{stream.name} is live and has no held-out samples of its own; give HeldOut(test=dataset)")
    if len(test.classes) != len(stream.classes):
        raise DataError(f"{test.name} has {len(test.classes)} classes, the stream {len(stream.classes)}")
    start = torch.zeros(len(test), dtype=torch.long)
    shown = Stream([Segment.of(test)], name="held-out")
    return Probe(shown, test.y.cpu(), start, torch.zeros(len(test.classes), dtype=torch.long), [])


def _parts(segment: Segment | None) -> list[tuple[Recipe, Tensor]]:
    """The rows of a segment by recipe, where there are any."""
    if segment is None:
        return []
    if segment.which is None:
        parts = [(segment.recipes[0], segment.rows)]
    else:
        parts = [(r, segment.rows[segment.which == i]) for i, r in enumerate(segment.recipes)]
    return [(recipe, rows) for recipe, rows in parts if len(rows)]


def _with_test(stream: Stream, test: Dataset) -> Stream:
    changed = {id(d): replace(d, splits={SPLIT: test}) for d in stream.datasets}
    segments = [
        replace(s, recipes=tuple(replace(r, data=changed[id(r.data)]) for r in s.recipes)) for s in stream.segments
    ]
    return replace(stream, segments=segments)


def _first_met(stream: Stream, domains: list[Hashable]) -> Tensor:
    """Position at which each class is first met in each domain; one more line for samples of no domain."""
    classes = len(stream.classes)
    number = {domain: i for i, domain in enumerate(domains)}
    lines = []
    for segment in stream.segments:
        held = [r.held_out(SPLIT) for r in segment.recipes]
        of_recipe = torch.tensor([number.get(h.domain, len(domains)) if h else len(domains) for h in held])
        which = torch.zeros(len(segment), dtype=torch.long) if segment.which is None else segment.which.long()
        lines.append(of_recipe[which] * classes + segment.class_labels())
    keys, first = np.unique(torch.cat(lines)[slice(*stream.window)].numpy(), return_index=True)
    met = torch.full(((len(domains) + 1) * classes,), UNMET)
    met[torch.from_numpy(keys)] = torch.from_numpy(first)
    return met.view(len(domains) + 1, classes)
