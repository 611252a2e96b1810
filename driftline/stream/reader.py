"""Reading samples by stream position: gathered in chunks, so that a step costs two slices.

Chunks lie on a grid fixed by position and batch size, never by where reading began, so a resumed run sees the same
tensors at the same memory alignment as an undisturbed one.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from driftline.errors import InputError
from driftline.stream.dataset import all_finite
from driftline.stream.seeds import derive_seed, generator
from driftline.stream.segment import Segment

if TYPE_CHECKING:
    from driftline.stream.stream import Stream

BLOCK = 64
"""Transforms are applied to, and draw once per, this many samples of a segment, whichever of them are wanted."""

CHUNK_SAMPLES = 1024
CHUNK_BYTES = 1 << 24

Rows = tuple[Tensor, Tensor | None]


class SegmentReader:
    """Turns places in one segment into tensors on the device where its data lives."""

    def __init__(self, segment: Segment, seed: int, number: int) -> None:
        self.segment = segment
        self.device = segment.dataset.x.device
        self._address = (seed, "transform", number)
        self._rows = segment.rows.to(self.device)
        self._truths = [r.truth for r in segment.recipes]
        self._transformed = any(r.transforms for r in segment.recipes)

    def read(self, start: int, stop: int) -> Rows:
        """Samples and truth at places ``start`` to ``stop`` of the segment.

        Raises
        ------
        InputError
            When a transform gives NaN or Inf.
        """
        # Blocks, because even a matrix product's last bit may depend on how many samples are multiplied together.
        x, y = self._blocks(start, stop) if self._transformed else self._gather(start, stop, 0)
        if self._transformed and x.is_floating_point() and not all_finite(x):
            row = start + int((~torch.isfinite(x).flatten(1).all(1)).nonzero()[0])
            raise InputError(
                f"segment {self.segment.name!r}, sample {row} of it: NaN or Inf in x after its transforms; "
                "mend the transform, or the data it cannot take"
            )
        return x, y

    def _blocks(self, start: int, stop: int) -> Rows:
        first = start // BLOCK
        blocks = [self._block(k) for k in range(first, (stop - 1) // BLOCK + 1)]
        cut = slice(start - first * BLOCK, stop - first * BLOCK)
        x = torch.cat([b[0] for b in blocks])[cut]
        y = None if blocks[0][1] is None else torch.cat([b[1] for b in blocks if b[1] is not None])[cut]
        return x, y

    def _block(self, number: int) -> Rows:
        stop = min((number + 1) * BLOCK, len(self.segment))
        return self._gather(number * BLOCK, stop, number)

    def _gather(self, start: int, stop: int, block: int) -> Rows:
        rows = self._rows[start:stop]
        which = self.segment.which
        if which is None:
            return self._cook(0, rows, block)
        lines = which[start:stop]
        x, y = torch.empty(0), None
        for turn, number in enumerate(torch.unique(lines).tolist()):
            mine = (lines == number).nonzero().flatten().to(self.device)
            part_x, part_y = self._cook(number, rows[mine], block)
            if turn == 0:
                x = part_x.new_empty((stop - start, *part_x.shape[1:]))
                y = None if part_y is None else part_y.new_empty((stop - start, *part_y.shape[1:]))
            if part_x.shape[1:] != x.shape[1:] or part_x.dtype != x.dtype:
                raise InputError(
                    f"segment {self.segment.name!r} mixes samples of shape {tuple(x.shape[1:])} and {x.dtype} with "
                    f"{tuple(part_x.shape[1:])} and {part_x.dtype}; bring them to one form with .transform(...)"
                )
            x[mine] = part_x
            if y is not None and part_y is not None:
                y[mine] = part_y
        return x, y

    def _cook(self, number: int, rows: Tensor, block: int) -> Rows:
        recipe, truth = self.segment.recipes[number], self._truths[number]
        x = recipe.data.rows(rows)
        for step, transform in enumerate(recipe.transforms):
            seed = derive_seed(*self._address, block, number, step) if transform.random else 0
            x = transform(x, generator(seed, self.device))
        return x, None if truth is None else truth.index_select(0, rows)


class Reader:
    """Reads any range of a stream's positions, fast when ranges follow each other.

    Parameters
    ----------
    stream : Stream
        What to read.
    grid : int
        Chunks hold a multiple of this many samples; give the batch size.
    device : torch.device
        Where samples are wanted. Data that lives elsewhere is gathered there by a thread one chunk ahead (in
        pinned memory) and copied over without waiting.
    """

    def __init__(self, stream: Stream, grid: int, device: torch.device | str | None = None) -> None:
        first = stream.segments[0].dataset
        self._starts, self._window = stream.starts, stream.window
        self._segments = [SegmentReader(s, stream.seed, i) for i, s in enumerate(stream.segments)]
        self.device = torch.empty(0, device=device).device if device is not None else first.x.device
        wanted = min(CHUNK_SAMPLES, CHUNK_BYTES // max(1, 4 * first.x[0].numel()))
        self._chunk = grid * max(1, wanted // grid)
        self._cached: tuple[int, int, Rows] = (0, 0, (torch.empty(0), None))
        self._form: tuple[torch.Size, torch.dtype] | None = None
        self._ahead: tuple[tuple[int, int], Future[Rows]] | None = None
        self._background = ThreadPoolExecutor(max_workers=1)

    def read(self, start: int, stop: int) -> Rows:
        """Samples and truth at positions ``start`` to ``stop`` of the stream."""
        low, high, (x, y) = self._cached
        if low <= start and stop <= high:
            return x[start - low : stop - low], None if y is None else y[start - low : stop - low]
        return self._read_across(start, stop)

    def _read_across(self, start: int, stop: int) -> Rows:
        parts: list[Rows] = []
        while start < stop:
            low, high, (x, y) = self._cached
            if not low <= start < high:
                low, high, (x, y) = self._cached = self._load(start)
            end = min(stop, high)
            parts.append((x[start - low : end - low], None if y is None else y[start - low : end - low]))
            start = end
        if len(parts) == 1:
            return parts[0]
        truths = [y for _, y in parts if y is not None]
        return torch.cat([x for x, _ in parts]), torch.cat(truths) if len(truths) == len(parts) else None

    def _load(self, position: int) -> tuple[int, int, Rows]:
        """Load the chunk that holds a position: (first position, one after the last, samples)."""
        offset, _ = self._window
        number, place = self._locate(position + offset)
        begin = place - place % self._chunk
        end = min(begin + self._chunk, len(self._segments[number].segment))
        low = self._starts[number] + begin - offset
        x, y = self._fetch(number, begin, end)
        form = (x.shape[1:], x.dtype)
        self._form = self._form or form
        if form != self._form:
            raise InputError(
                f"segment {self._segments[number].segment.name!r} has samples of shape {tuple(form[0])} and {form[1]}, "
                f"but the stream had {tuple(self._form[0])} and {self._form[1]}; bring them to one form"
            )
        return low, low + end - begin, (x, y)

    def _fetch(self, number: int, begin: int, end: int) -> Rows:
        if self._segments[number].device == self.device:
            return self._segments[number].read(begin, end)
        if self._ahead is None or self._ahead[0] != (number, begin):
            self._ahead = self._prepare(number, begin)
        x, y = self._ahead[1].result()
        if end < len(self._segments[number].segment):
            self._ahead = self._prepare(number, end)
        elif number + 1 < len(self._segments):
            self._ahead = self._prepare(number + 1, 0)
        return x.to(self.device, non_blocking=True), y if y is None else y.to(self.device, non_blocking=True)

    def _prepare(self, number: int, begin: int) -> tuple[tuple[int, int], Future[Rows]]:
        """Gather a chunk in the background, in pinned memory where the copy to the device gains from it."""
        reader = self._segments[number]

        def gather() -> Rows:
            x, y = reader.read(begin, min(begin + self._chunk, len(reader.segment)))
            if self.device.type != "cuda":
                return x, y
            return x.pin_memory(), y if y is None else y.pin_memory()

        return (number, begin), self._background.submit(gather)

    def _locate(self, absolute: int) -> tuple[int, int]:
        number = int(torch.searchsorted(torch.tensor(self._starts[1:]), absolute, right=True))
        return number, absolute - self._starts[number]
