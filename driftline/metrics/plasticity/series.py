"""What a metric keeps on the device between two looks: rows of measurements, and the most recent inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from driftline.metrics.base import Point

BLOCK = 256
"""Measurements that are joined to one tensor, so that a long run without a look does not keep one for each."""


class Series:
    """Measurements of several quantities over a run, read back only when asked for.

    Parameters
    ----------
    names : sequence of str
        The quantities.

    Examples
    --------
    >>> series = Series(["norm", "rank"])
    >>> series.add(10, [torch.tensor(0.5), torch.tensor(float("nan"))])
    >>> series.add(20, [torch.tensor(1.5), torch.tensor(3.0)])
    >>> series.latest(), series.means()
    ({'norm': 1.5, 'rank': 3.0}, {'norm': 1.0, 'rank': 3.0})
    >>> series.take()
    [(10, 'norm', 0.5), (10, 'rank', nan), (20, 'norm', 1.5), (20, 'rank', 3.0)]
    >>> series.take()
    []
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._blocks: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._latest: Tensor | None = None
        self._sums: Tensor | None = None

    def add(self, position: int, values: Sequence[Tensor]) -> None:
        """Take in one value () of each quantity; NaN: undefined."""
        where = torch.full((), position, dtype=torch.float64, device=values[0].device)
        row = torch.stack([where, *(value.double() for value in values)])
        self._rows.append(row)
        if len(self._rows) == BLOCK:
            self._blocks.append(torch.stack(self._rows))
            self._rows.clear()
        latest = self._latest = row[1:]
        defined = ~latest.isnan()
        now = torch.stack([torch.where(defined, latest, 0.0), defined.double()])
        self._sums = now if self._sums is None else self._sums.to(now.device) + now

    def latest(self) -> dict[str, float]:
        """Return the last value of each quantity; NaN before the first."""
        values = [float("nan")] * len(self.names) if self._latest is None else self._latest.tolist()
        return dict(zip(self.names, values))

    def means(self) -> dict[str, float]:
        """Return the mean of the defined values of each quantity; NaN where there are none."""
        sums, counts = ([0.0] * len(self.names),) * 2 if self._sums is None else self._sums.tolist()
        return {name: s / n if n else float("nan") for name, s, n in zip(self.names, sums, counts)}

    def take(self) -> list[Point]:
        """Return all measurements since the last call."""
        table = self._table()
        self._blocks, self._rows = [], []
        if table is None:
            return []
        return [(int(p), name, value) for p, *row in table.tolist() for name, value in zip(self.names, row)]

    def _table(self) -> Tensor | None:
        """Return the measurements not yet taken (n, 1 + quantities), positions first."""
        parts = [*self._blocks, *(row[None] for row in self._rows)]
        return torch.cat([part.to(parts[-1].device) for part in parts]) if parts else None

    def state_dict(self) -> dict[str, object]:
        """Return the measurements not yet taken, the latest, and what the means are made of."""
        return {"names": list(self.names), "rows": self._table(), "latest": self._latest, "sums": self._sums}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict` of the same quantities."""
        rows = cast("Tensor | None", state["rows"])
        self._blocks, self._rows = [] if rows is None else [rows], []
        # Tensors are replaced, never written to, so they need not be copied.
        self._latest = cast("Tensor | None", state["latest"])
        self._sums = cast("Tensor | None", state["sums"])


class Recent:
    """The most recent inputs, kept as the batches they came in and joined when there are too many or asked for.

    Parameters
    ----------
    samples : int
        How many.

    Examples
    --------
    >>> recent = Recent(3)
    >>> for batch in (torch.tensor([1.0, 2.0]), torch.tensor([3.0]), torch.tensor([4.0])):
    ...     recent.add(batch)
    >>> recent.all()
    tensor([2., 3., 4.])
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self._batches: list[Tensor] = []
        self._held = 0

    def add(self, x: Tensor) -> None:
        """Take in a batch (B, *input)."""
        self._batches.append(x)
        self._held += x.shape[0]
        if self._held >= 2 * self.samples:
            self.all()

    def all(self) -> Tensor | None:
        """Return the inputs, oldest first, on the device of the last; None before the first."""
        if len(self._batches) > 1 or self._held > self.samples:
            device = self._batches[-1].device
            joined = torch.cat([x.to(device) for x in self._batches])
            # A copy, because a cut alone would hold on to all that was joined.
            self._batches = [joined[-self.samples :].clone()]
            self._held = self._batches[0].shape[0]
        return self._batches[0] if self._batches else None

    def clear(self) -> None:
        """Forget them."""
        self._batches, self._held = [], 0

    def state_dict(self) -> dict[str, object]:
        """Return the inputs."""
        return {"inputs": self.all()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        self.clear()
        if (inputs := cast("Tensor | None", state["inputs"])) is not None:
            self.add(inputs)
