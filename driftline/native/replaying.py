"""Experience replay laid out ahead: which samples are replayed and kept does not depend on what is learned meanwhile.

The memory's own draws are made in their order, and stored samples are followed by number; so a block of updates becomes
a row of batches of one size, new samples and replayed ones, that can be trained on in one call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from driftline.learners.replay import Replay
from driftline.native.network import UnsupportedError

ROWS = 4096
"""About how many rows are laid out at once."""


class Run(NamedTuple):
    """Consecutive updates on as many rows each."""

    x: Tensor
    y: Tensor
    size: int
    """Rows of an update."""
    new: int
    """Of these, the new samples, which come first."""
    updates: int
    """Updates on the same new samples."""

    def first(self, scores: Tensor) -> Tensor:
        """Return the scores (N, K) of the new samples at the first update on them."""
        return scores.view(-1, self.size, scores.shape[-1])[:: self.updates, : self.new].flatten(0, 1)


class Replaying:
    """What a learner with a memory trains on; the memory is left as it is after the last batch.

    Parameters
    ----------
    replay : Replay, optional
        The memory. None: only the new samples are trained on.
    ratio : int
        Updates per batch, at least 1.
    count : int, optional
        Replayed samples per update; default: as many as there are new ones.

    Raises
    ------
    UnsupportedError
        For a memory that draws in its own way, or updates that are not a whole number for each batch.

    Examples
    --------
    >>> from driftline.learners import SlidingReplay
    >>> runs = Replaying(SlidingReplay(capacity=1), ratio=1).runs(torch.eye(3), torch.arange(3), batch_size=1)
    >>> [(run.size, run.y.tolist()) for run in runs]
    [(1, [0]), (2, [1, 0, 2, 1])]
    """

    def __init__(self, replay: object | None, ratio: object, count: int | None = None) -> None:
        if not isinstance(ratio, int) or ratio < 1:
            named = ratio if isinstance(ratio, int) else type(ratio).__name__
            raise UnsupportedError(f"replay_ratio={named} has no compiled form; whole numbers from 1 have")
        if replay is not None and not _follows(replay):
            raise UnsupportedError(f"the memory {type(replay).__name__} has no compiled form")
        self.replay = replay if isinstance(replay, Replay) else None
        self.ratio, self.count = ratio, count

    @property
    def plain(self) -> bool:
        """Whether there is one update on each batch and nothing else."""
        return self.replay is None and self.ratio == 1

    def runs(self, x: Tensor, y: Tensor, batch_size: int) -> Iterator[Run]:
        """Yield what to train on for consecutive batches of samples (N, *input) and labels (N,) or (N, K)."""
        rows = self.ratio * (batch_size + (self.count or batch_size))
        span = batch_size * max(1, ROWS // rows)
        for start in range(0, len(x), span):
            yield from self._block(x[start : start + span], y[start : start + span], batch_size)

    def _block(self, x: Tensor, y: Tensor, batch_size: int) -> Iterator[Run]:
        """Number new samples from 0 and stored ones, by slot, from there; lay out the rows, then gather them."""
        total = len(x)
        rows: list[int] = []
        kept: dict[int, int] = {}
        # Of batches of one size that follow each other: rows of an update, new ones among them, rows altogether.
        laid: list[tuple[int, int, int]] = []
        for start in range(0, total, batch_size):
            labels = y[start : start + batch_size]
            new, before = len(labels), len(rows)
            for _ in range(self.ratio):
                rows += range(start, start + new)
                if self.replay is not None:
                    rows += [kept.get(slot, total + slot) for slot in self.replay.draw(self.count or new)]
            if self.replay is not None:
                kept.update((slot, start + i) for slot, i in self.replay.place(labels).items())
            length = len(rows) - before
            size = length // self.ratio
            if laid and laid[-1][:2] == (size, new):
                length += laid.pop()[2]
            laid.append((size, new, length))
        all_x, all_y = self._gather(x, y, torch.tensor(rows))
        if self.replay is not None:
            self.replay.put(kept, x, y)
        sizes = [length for *_, length in laid]
        for (size, new, _), own_x, own_y in zip(laid, torch.split(all_x, sizes), torch.split(all_y, sizes)):
            yield Run(own_x, own_y, size, new, self.ratio)

    def _gather(self, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        stored = (rows >= len(x)).nonzero().flatten()
        if self.replay is None or not len(stored):
            return x.index_select(0, rows), y.index_select(0, rows)
        old_x, old_y = self.replay.get(rows[stored] - len(x))
        rows = rows.clamp(max=len(x) - 1)
        return x.index_select(0, rows).index_copy_(0, stored, old_x), y.index_select(0, rows).index_copy_(
            0, stored, old_y
        )


def _follows(replay: object) -> bool:
    """Whether a memory's samples are those that it draws and places."""
    return isinstance(replay, Replay) and all(
        getattr(type(replay), name) is getattr(Replay, name)
        for name in ("add", "place", "put", "sample", "draw", "get")
    )
