"""How many steps ago each entry of a parameter began: one clock for each row and each column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from driftline.learners.optimizers.base import Ready

Ages = tuple[Tensor, Tensor | None]
"""Steps since rows and columns began, shaped to broadcast against the parameter; an entry has the smaller."""


class Clocks:
    """Keeps ``step``, ``row_start`` and ``column_start`` in the state of parameters.

    Others restart units by writing the number of the current step to ``row_start`` and ``column_start``. That is
    noticed by the tensors' version, without reading them: ``last_restart`` is the latest step at which it happened.

    Parameters
    ----------
    replicas : int, optional
        Number of replicas in front.
    """

    def __init__(self, replicas: int | None) -> None:
        self._lead = 0 if replicas is None else 1
        self._seen: dict[Tensor, list[tuple[Tensor, int]]] = {}

    def tick(self, part: Ready) -> list[int]:
        """Count this step for each parameter and return its number, 1 for the first."""
        counts = []
        for p, state in zip(part.params, part.states):
            if "step" not in state:
                self._begin(p, state)
            self.notice(p, state)
            state["step"] += 1
            counts.append(int(state["step"]))  # kept on the CPU, so this waits for nothing
        return counts

    def _begin(self, p: Tensor, state: dict[str, Any]) -> None:
        state["step"] = torch.zeros((), dtype=torch.int64)
        state["last_restart"] = 0
        lead, own = p.shape[: self._lead], p.shape[self._lead :]
        if len(own) >= 1:
            state["row_start"] = torch.zeros((*lead, own[0]), dtype=torch.int64, device=p.device)
        if len(own) >= 2:
            state["column_start"] = torch.zeros((*lead, own[1]), dtype=torch.int64, device=p.device)

    def notice(self, p: Tensor, state: dict[str, Any]) -> None:
        """See whether units were restarted since the last look."""
        now = [(state[name], state[name]._version) for name in ("row_start", "column_start") if name in state]
        seen = self._seen.get(p)
        if seen is not None and any(a is not b or m != n for (a, m), (b, n) in zip(seen, now)):
            state["last_restart"] = int(state["step"])
        self._seen[p] = now

    def forget(self) -> None:
        """Take the state as it will be seen next: it was loaded."""
        self._seen.clear()

    def ages(self, p: Tensor, state: dict[str, Any], count: int, slowest: float) -> Ages | None:
        """Return the ages of a parameter's rows and columns, or None when all are as old as the parameter.

        Also None when decay ``slowest`` to the power of the youngest age is nothing to the parameter's dtype.
        """
        since = count - state["last_restart"]
        if state["last_restart"] == 0 or slowest**since < torch.finfo(p.dtype).eps / 4:
            return None
        rows = (count - state["row_start"]).clamp_min(1).double()
        behind = p.dim() - self._lead
        rows = rows.view(*rows.shape, *(1 for _ in range(behind - 1)))
        if "column_start" not in state:
            return rows, None
        columns = (count - state["column_start"]).clamp_min(1).double()
        return rows, columns.view(*columns.shape[:-1], 1, columns.shape[-1], *(1 for _ in range(behind - 2)))

    def __reduce__(self) -> tuple[type[Clocks], tuple[int | None]]:
        """Let copies begin without having seen anything."""
        return Clocks, (1 if self._lead else None,)


def whole(p: Tensor, count: int) -> Ages:
    """Return the age of a parameter none of whose units was renewed."""
    return torch.full((1,) * p.dim(), float(count), dtype=torch.float64, device=p.device), None


def younger(ages: Sequence[Tensor | None], rising: bool) -> Tensor | None:
    """Return for each entry what belongs to the younger of its row and column.

    Parameters
    ----------
    ages : sequence of Tensor
        A function of the rows' ages and one of the columns', or None.
    rising : bool
        Whether the function rises with age.
    """
    rows, columns = ages
    if rows is None or columns is None:
        return rows
    return torch.minimum(rows, columns) if rising else torch.maximum(rows, columns)
