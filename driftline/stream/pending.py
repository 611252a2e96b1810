"""Predictions whose labels are still to come, by id: bounded, whatever never comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from driftline.errors import ConfigError
from driftline.stream.events import Id, Labels


@dataclass(frozen=True, slots=True)
class Answered:
    """Samples whose labels have come, with what was predicted for them."""

    x: Tensor
    y: Tensor
    scores: Tensor
    position: int


class PendingLabels:
    """Samples that were predicted and whose label may come later, in any order, or never.

    Parameters
    ----------
    capacity : int
        Most samples that are kept; beyond it the oldest is given up. As many labels whose sample has not come yet.
    expire_after : int, optional
        Samples after which one is given up that has no label; None: only when there is no more room.

    Attributes
    ----------
    counts : dict of str to int
        ``answered``: labels that found their sample; ``expired`` and ``evicted``: samples given up for their age, and
        for want of room; ``unknown``: labels given up because no such sample was waiting (it never came, had its label
        already, or had been given up).

    Examples
    --------
    >>> pending = PendingLabels(capacity=2)
    >>> pending.ask((7, 8, 9), torch.eye(3), torch.zeros(3, 2), position=0)
    []
    >>> pending.answer(Labels((9, 7), (torch.tensor(1), torch.tensor(0)))).y.tolist(), len(pending)
    ([1], 1)
    >>> pending.counts
    {'answered': 1, 'expired': 0, 'evicted': 1, 'unknown': 0}
    >>> pending.unknown
    1
    """

    def __init__(self, capacity: int = 10_000, expire_after: int | None = None) -> None:
        if capacity < 1:
            raise ConfigError(f"capacity={capacity}: must be at least 1 waiting sample")
        if expire_after is not None and expire_after < 1:
            raise ConfigError(f"expire_after={expire_after}: must be at least 1 sample")
        self.capacity, self.expire_after = capacity, expire_after
        self.counts = dict.fromkeys(("answered", "expired", "evicted", "unknown"), 0)
        self.delays = 0
        """Sum of the answered samples' delays."""
        self._waiting: dict[Id, tuple[Tensor, Tensor, int]] = {}
        self._early: dict[Id, tuple[Tensor, int]] = {}
        self._now = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def unknown(self) -> int:
        """Labels that have found no sample so far, those included whose sample may still come."""
        return self.counts["unknown"] + len(self._early)

    def ask(self, ids: Sequence[Id | None], x: Tensor, scores: Tensor, position: int) -> list[tuple[Id, Tensor]]:
        """Keep samples (B, *input) and what was predicted for them; return the labels that were here before them."""
        here = []
        for i, name in enumerate(ids):
            if name is None:
                continue
            if name in self._waiting:
                del self._waiting[name]
                self.counts["evicted"] += 1
            self._waiting[name] = x[i].clone(), scores[i].clone(), position + i
            if name in self._early:
                here.append((name, self._early.pop(name)[0]))
        self._now = position + len(ids)
        self._give_up()
        return here

    def answer(self, labels: Labels) -> Answered | None:
        """Take out the samples that the labels belong to; None when there are none."""
        found: list[tuple[Tensor, Tensor, Tensor, int]] = []
        for name, y in zip(labels.ids, labels.y):
            if name in self._waiting:
                x, scores, position = self._waiting.pop(name)
                found.append((x, y.to(x.device), scores, position))
                self.delays += self._now - position
            else:
                self._early[name] = y, self._now
        self.counts["answered"] += len(found)
        self._give_up()
        if not found:
            return None
        most = max(len(scores) for _, _, scores, _ in found)
        # Classes that came up while samples were waiting score -Inf in what was predicted before.
        filled = [F.pad(scores, (0, most - len(scores)), value=-torch.inf) for _, _, scores, _ in found]
        x, y = torch.stack([x for x, _, _, _ in found]), torch.stack([y for _, y, _, _ in found])
        return Answered(x, y, torch.stack(filled), min(position for _, _, _, position in found))

    def _give_up(self) -> None:
        oldest = 0 if self.expire_after is None else self._now - self.expire_after
        while self._waiting and (len(self._waiting) > self.capacity or next(iter(self._waiting.values()))[2] < oldest):
            _, _, position = self._waiting.pop(next(iter(self._waiting)))
            self.counts["expired" if position < oldest else "evicted"] += 1
        while self._early and (len(self._early) > self.capacity or next(iter(self._early.values()))[1] < oldest):
            del self._early[next(iter(self._early))]
            self.counts["unknown"] += 1

    def state_dict(self) -> dict[str, object]:
        """Return everything that is waiting, and the counts."""
        return {
            "counts": dict(self.counts),
            "delays": self.delays,
            "now": self._now,
            "waiting": [[name, *entry] for name, entry in self._waiting.items()],
            "early": [[name, *entry] for name, entry in self._early.items()],
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        self.counts = dict(cast("Mapping[str, int]", state["counts"]))
        self.delays, self._now = cast(int, state["delays"]), cast(int, state["now"])
        self._waiting = {
            e[0]: (e[1], e[2], e[3]) for e in cast("list[tuple[Id, Tensor, Tensor, int]]", state["waiting"])
        }
        self._early = {e[0]: (e[1], e[2]) for e in cast("list[tuple[Id, Tensor, int]]", state["early"])}
