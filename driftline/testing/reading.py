"""What the laws of scenarios read from a stream: samples, tables of rows, and when labels arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from driftline.stream.seeds import generator
from driftline.stream.stream import Stream

Played = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class ScenarioCase:
    """A scenario, and what is declared of it."""

    make: Callable[[int], Stream]
    seeded: bool
    times: int

    def play(self, stream: Stream, batch_size: int = 64, start: int = 0) -> Played:
        """Return all samples and truths from ``start`` on."""
        batches = list(stream.batches(batch_size, start))
        truths = [b.y for b in batches if b.y is not None]
        return torch.cat([b.x for b in batches]), torch.cat(truths) if len(truths) == len(batches) else None


def ranges(stream: Stream) -> Iterator[tuple[int, int]]:
    """Ranges of positions: around the borders of segments, at the ends, and some at random."""
    n, rng = len(stream), generator(0)
    borders = [info.start for info in stream.infos()]
    some = [borders[i] for i in torch.randperm(len(borders), generator=rng)[:4].tolist()]
    starts = [0, n - 1, *some, *(b - 3 for b in some if b >= 3), *torch.randint(n, (4,), generator=rng).tolist()]
    lengths = torch.randint(1, 150, (len(starts),), generator=rng).tolist()
    yield from ((start, min(start + length, n)) for start, length in zip(starts, lengths))


def tables(stream: Stream) -> Iterator[tuple[Tensor, Tensor]]:
    """For each segment that the stream shows, the row and the recipe number of each of its samples."""
    for info in stream.infos():
        assert info.stop is not None
        segment = stream.segments[info.index]
        begin = stream.window[0] + info.start - stream.starts[info.index]
        part = slice(begin, begin + info.stop - info.start)
        yield segment.rows[part], torch.zeros_like(segment.rows[part]) if segment.which is None else segment.which[part]


def arrivals(stream: Stream, batch_size: int, start: int = 0) -> Tensor:
    """Return the position at which each label arrives."""
    parts = []
    for batch in stream.batches(batch_size, start):
        due = stream.due(batch)
        parts.append(torch.arange(batch.position, batch.stop) if due is None else due)
    return torch.cat(parts)
