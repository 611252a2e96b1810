"""One network's weights shared out among tasks: each task has a mask, and what earlier ones use stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

Named = Mapping[str, Tensor]


class TaskWeights:
    """The weights of all tasks together, and of each task its mask and its copy of everything that has no mask.

    Parameters
    ----------
    weights : mapping of str to Tensor
        The parameters that masks are for.

    Attributes
    ----------
    values : dict of str to Tensor
        What each weight is in the tasks that use it.
    masks : dict of int to dict of str to Tensor
        Of each task that was left, the weights it uses.
    others : dict of int to dict of str to Tensor
        Of each such task, biases, normalisations and their statistics.
    """

    def __init__(self, weights: Named) -> None:
        self.values = {name: torch.zeros_like(w.detach()) for name, w in weights.items()}
        self.masks: dict[int, dict[str, Tensor]] = {}
        self.others: dict[int, dict[str, Tensor]] = {}

    @torch.no_grad()
    def keep(self, task: int, masks: Named, model: nn.Module) -> None:
        """Remember what a task uses."""
        own = model.state_dict()
        for name, mask in masks.items():
            self.values[name] = torch.where(mask, own[name], self.values[name])
        self.masks[task] = {name: mask.clone() for name, mask in masks.items()}
        self.others[task] = {name: t.clone() for name, t in own.items() if name not in masks}

    def used(self, task: int | None) -> dict[str, Tensor]:
        """Return the weights that any other task uses, bool."""
        taken = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in self.values.items()}
        for other, masks in self.masks.items():
            if other != task:
                for name, mask in masks.items():
                    taken[name] |= mask
        return taken

    @torch.no_grad()
    def restore(self, task: int, model: nn.Module) -> None:
        """Let a model be what it was for a task."""
        own = model.state_dict()
        for name, mask in self.masks[task].items():
            own[name].copy_(self.values[name] * mask)
        for name, other in self.others[task].items():
            own[name].copy_(other)

    @contextmanager
    def as_task(self, task: int, model: nn.Module) -> Iterator[None]:
        """Let a model be what it was for a task for a while."""
        before = {name: t.clone() for name, t in model.state_dict().items()}
        try:
            self.restore(task, model)
            yield
        finally:
            with torch.no_grad():
                for name, t in model.state_dict().items():
                    t.copy_(before[name])

    def to(self, device: torch.device | str) -> None:
        """Move everything to ``device``."""
        self.load(self.state_dict(), device)

    def state_dict(self) -> dict[str, object]:
        """Return copies of everything."""
        return {
            "values": {name: value.clone() for name, value in self.values.items()},
            "masks": {task: {n: t.clone() for n, t in own.items()} for task, own in self.masks.items()},
            "others": {task: {n: t.clone() for n, t in own.items()} for task, own in self.others.items()},
        }

    def load(self, state: Mapping[str, object], device: torch.device | str) -> None:
        """Continue from a :meth:`state_dict`."""
        self.values = {n: t.to(device, copy=True) for n, t in cast(Named, state["values"]).items()}
        for kind in ("masks", "others"):
            saved = cast("Mapping[int, Named]", state[kind])
            setattr(self, kind, {k: {n: t.to(device, copy=True) for n, t in own.items()} for k, own in saved.items()})
