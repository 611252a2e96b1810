"""Streams over finite datasets: sized, sliceable, seekable, and the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from driftline.errors import ConfigError, ScenarioError
from driftline.stream.batch import Batch, SegmentInfo
from driftline.stream.dataset import Dataset
from driftline.stream.domains import Domains
from driftline.stream.join import check_compatible
from driftline.stream.reader import BLOCK, Reader
from driftline.stream.recipe import NEVER
from driftline.stream.seeds import derive_seed, generator
from driftline.stream.segment import Segment


@dataclass(frozen=True, eq=False)
class Stream:
    """Segments played one after the other.

    The sample at position p is the same tensor whatever the batch size and wherever reading begins.

    Parameters
    ----------
    segments : sequence of Segment
        In order; empty ones are left out.
    seed : int
        Keys the draws of random transforms and of partial labels.
    name : str
        Name of the scenario, for records.
    parameters : mapping
        What the scenario was called with, for records.
    window : tuple of int, optional
        First and last-plus-one position of the underlying segments that this stream shows.

    Examples
    --------
    >>> import torch
    >>> from driftline import Dataset
    >>> from driftline.stream import Segment, Stream
    >>> data = Segment.of(Dataset(torch.arange(5.0).unsqueeze(1), torch.tensor([0, 0, 0, 1, 1])))
    >>> stream = Stream([data.classes(0), data.classes(1)])
    >>> [(b.position, b.segment.index, b.x.flatten().tolist()) for b in stream.batches(2)]
    [(0, 0, [0.0, 1.0]), (2, 0, [2.0]), (3, 1, [3.0, 4.0])]
    >>> stream[1:4].read(0, 3)[0].flatten().tolist()
    [1.0, 2.0, 3.0]
    """

    segments: Sequence[Segment]
    seed: int = 0
    name: str = "stream"
    parameters: Mapping[str, object] = field(default_factory=dict)
    window: tuple[int, int] = (0, -1)

    def __post_init__(self) -> None:
        segments = tuple(s for s in self.segments if len(s))
        if not segments:
            raise ScenarioError(f"{self.name}: the stream has no samples; check the scenario's parameters")
        check_compatible(segments)
        named = (s if s.name else s.named(f"segment {i}") for i, s in enumerate(segments))
        object.__setattr__(self, "segments", tuple(named))
        start, stop = self.window
        object.__setattr__(self, "window", (start, self.starts[-1] if stop < 0 else stop))

    def __len__(self) -> int:
        return self.window[1] - self.window[0]

    def __getitem__(self, part: slice) -> Stream:
        if not isinstance(part, slice):
            raise ConfigError(f"stream[{part!r}]: use a slice for a shorter stream, or read(start, stop) for tensors")
        start, stop, step = part.indices(len(self))
        if step != 1 or stop <= start:
            raise ConfigError(
                f"stream[{part.start}:{part.stop}:{part.step}] of {len(self)} samples is empty or has steps"
            )
        return replace(self, window=(self.window[0] + start, self.window[0] + stop))

    @cached_property
    def starts(self) -> list[int]:
        """First position of each segment, and the length of all of them at the end (window left aside)."""
        starts = [0]
        for segment in self.segments:
            starts.append(starts[-1] + len(segment))
        return starts

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; empty for regression."""
        return tuple(self.segments[0].dataset.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample as a learner sees it."""
        return tuple(self.read(0, 1)[0].shape[1:])

    @property
    def datasets(self) -> list[Dataset]:
        """The distinct datasets the stream reads from."""
        found: dict[int, Dataset] = {}
        for segment in self.segments:
            for recipe in segment.recipes:
                found.setdefault(id(recipe.data), recipe.data)
        return list(found.values())

    @property
    def device(self) -> torch.device:
        """Where the samples live."""
        return self.segments[0].dataset.x.device

    def to(self, device: torch.device | str) -> Stream:
        """Return the stream with its datasets on ``device``; label tables follow."""
        moved = {id(d): d.to(device) for d in self.datasets}
        segments = []
        for segment in self.segments:
            recipes = []
            for r in segment.recipes:
                labels = None if r.labels is None else r.labels.to(device)
                recipes.append(replace(r, data=moved[id(r.data)], labels=labels))
            segments.append(replace(segment, recipes=tuple(recipes)))
        return replace(self, segments=tuple(segments))

    def nbytes(self) -> int:
        """Bytes that the stream's datasets take."""
        return sum(d.x.numel() * d.x.element_size() for d in self.datasets)

    def infos(self) -> list[SegmentInfo]:
        """The segments that the window shows, with their positions."""
        low, high = self.window
        tasks: dict[str, int] = {}
        infos = []
        for i, (segment, start, stop) in enumerate(zip(self.segments, self.starts, self.starts[1:])):
            task = tasks.setdefault(segment.name, len(tasks))
            if start < high and stop > low:
                infos.append(SegmentInfo(i, segment.name, max(start, low) - low, min(stop, high) - low, task))
        return infos

    def task_classes(self, number: int) -> Tensor | None:
        """Return which classes occur in a segment, (C,) bool on the CPU; None for regression or unknown truth.

        Oracle information, for metrics, records and learners that are told about tasks.
        """
        segment = self.segments[number]
        if not self.classes or any(r.truth is None for r in segment.recipes):
            return None
        found = torch.zeros(len(self.classes), dtype=torch.bool)
        found[segment.class_labels()] = True
        return found

    def reader(self, grid: int = 1, device: torch.device | str | None = None) -> Reader:
        """Return a reader of any range of positions, see :class:`driftline.stream.reader.Reader`."""
        return Reader(self, grid, device)

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Return samples and truth at positions ``start`` to ``stop``."""
        if not 0 <= start < stop <= len(self):
            raise ConfigError(f"positions {start}..{stop} are not in a stream of {len(self)} samples")
        return self.reader().read(start, stop)

    def batches(
        self,
        batch_size: int = 1,
        start: int = 0,
        device: torch.device | str | None = None,
        until: Callable[[int], int] | None = None,
    ) -> Iterator[Batch]:
        """Yield the stream from ``start`` on in batches of ``batch_size``; a batch never crosses segments.

        With ``until(position)``, the batches that follow each other up to the position it returns come as one.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: must be at least 1")
        reader = self.reader(batch_size, device)
        for info in self.infos():
            assert info.stop is not None
            position = max(info.start, start)
            while position < info.stop:
                whole = batch_size - (position - info.start) % batch_size
                if until is not None:
                    whole += max(0, until(position) - position - whole) // batch_size * batch_size
                stop = min(position + whole, info.stop)
                x, y = reader.read(position, stop)
                yield Batch(x, y, position, info, 0 if y is None else stop - position)
                position = stop

    def labels(self) -> Tensor | None:
        """Return the truth of every sample in order, on the CPU; None when some are unknown."""
        if any(r.truth is None for s in self.segments for r in s.recipes):
            return None
        return torch.cat([s.labels() for s in self.segments])[slice(*self.window)]

    # --- when labels arrive

    def delay_labels(self, samples: int) -> Stream:
        """Return the stream with every label ``samples`` samples late."""
        return replace(self, segments=tuple(s.delay_labels(samples) for s in self.segments))

    def label_fraction(self, fraction: float) -> Stream:
        """Return the stream with only this share of the labels arriving."""
        return replace(self, segments=tuple(s.label_fraction(fraction) for s in self.segments))

    def without_labels(self) -> Stream:
        """Return the stream with no label ever reaching the learner."""
        return self.label_fraction(0.0)

    def due(self, batch: Batch) -> Tensor | None:
        """Return the position at which each label of a batch arrives; None when all arrive at once.

        A label due at position p may be learned from as soon as the sample at p has been predicted.
        :data:`NEVER` marks those that do not arrive.
        """
        segment = self.segments[batch.segment.index]
        if all(r.delay == 0 and r.fraction == 1.0 for r in segment.recipes) and batch.y is not None:
            return None
        position = torch.arange(batch.position, batch.stop)
        place = position + self.window[0] - self.starts[batch.segment.index]
        which = torch.zeros(len(batch), dtype=torch.long) if segment.which is None else segment.which[place].long()
        due = position + torch.tensor([r.delay for r in segment.recipes])[which]
        if batch.y is None:
            return torch.full_like(due, NEVER)
        fraction = torch.tensor([r.fraction for r in segment.recipes], dtype=torch.float64)[which]
        if bool((fraction < 1).any()):
            due[self._draws(batch.segment.index, place) >= fraction] = NEVER
        return due

    def _draws(self, number: int, place: Tensor) -> Tensor:
        """One uniform draw for each place of a segment, whichever places are asked for together."""
        first, last = int(place[0]) // BLOCK, int(place[-1]) // BLOCK
        blocks = [
            torch.rand(BLOCK, dtype=torch.float64, generator=generator(derive_seed(self.seed, "label", number, b)))
            for b in range(first, last + 1)
        ]
        return torch.cat(blocks)[place - first * BLOCK]

    # --- domains

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Names of the domains in the order in which they first appear, of a sliced stream those of the whole.

        A domain is the named look of a sample, such as "fog 5": the name given with :meth:`Segment.in_domain`, else
        that of its segment. Domains of one name are one domain.
        """
        return self._domains.names

    def domains(self, batch: Batch) -> Tensor:
        """Return the domain of each sample of a batch, as its number in :attr:`domain_names`: (B,) int64, on the CPU.

        Oracle information, for metrics and records only.
        """
        place = torch.arange(batch.position, batch.stop) + self.window[0] - self.starts[batch.segment.index]
        return self._domains.at(batch.segment.index, place)

    @property
    def domains_shown(self) -> list[tuple[int, ...]]:
        """For each segment, the domains of its samples, as their numbers in :attr:`domain_names`."""
        return self._domains.shown

    @cached_property
    def _domains(self) -> Domains:
        return Domains(self.segments)

    def _domain_sizes(self) -> dict[str, int]:
        """Samples of each domain that the window shows."""
        sizes = torch.zeros(len(self.domain_names), dtype=torch.long)
        for info in self.infos():
            assert info.stop is not None
            place = torch.arange(info.start, info.stop) + self.window[0] - self.starts[info.index]
            sizes += torch.bincount(self._domains.at(info.index, place), minlength=len(sizes))
        return {name: n for name, n in zip(self.domain_names, sizes.tolist()) if n}

    # --- held-out data

    def held_out(self, split: str = "test") -> list[Segment | None]:
        """For each segment, the samples of another split that it stands for (None where undefined)."""
        return [s.held_out(split) for s in self.segments]

    def describe(self) -> dict[str, object]:
        """Return what a record needs to repeat this stream (JSON values), and its named domains with their sizes."""
        low, high = self.window
        whole = {} if (low, high) == (0, self.starts[-1]) else {"window": [low, high]}
        named = any(r.look for s in self.segments for r in s.recipes)
        transforms = (t.function for s in self.segments for r in s.recipes for t in r.transforms)
        notes = sorted({str(getattr(function, "note", "")) for function in transforms} - {""})
        return {
            "scenario": self.name,
            "parameters": dict(self.parameters),
            "seed": self.seed,
            "samples": len(self),
            **whole,
            "data": [dict(d.source) or {"name": d.name} for d in self.datasets],
            "segments": [{"name": i.name, "start": i.start, "stop": i.stop} for i in self.infos()],
            **({"domains": self._domain_sizes()} if named else {}),
            **({"notes": notes} if notes else {}),
        }


def concatenate_streams(*streams: Stream) -> Stream:
    """Join streams into one that plays them in turn, with the seed of the first.

    Raises
    ------
    ScenarioError
        When they are sliced streams, or disagree on classes or input shape.
    """
    if not streams:
        raise ScenarioError("concatenate_streams needs at least one stream")
    if any(s.window != (0, s.starts[-1]) for s in streams):
        raise ScenarioError("a sliced stream cannot be concatenated; concatenate first, then slice")
    segments = [segment for stream in streams for segment in stream.segments]
    return Stream(segments, streams[0].seed, "+".join(s.name for s in streams))
