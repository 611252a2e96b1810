"""The memories of R replicas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self, cast

import torch
from torch import Tensor

from driftline.errors import CheckpointError
from driftline.learners.replay import Replay

State = dict[str, object]


class StackedReplay:
    """One memory for each replica; samples go in and come out with the replicas in front.

    Each memory makes its own draws, as it would alone.

    Examples
    --------
    >>> from driftline.learners import SlidingReplay
    >>> memory = StackedReplay([SlidingReplay(3), SlidingReplay(3, seed=1)])
    >>> memory.add(torch.rand(2, 5, 4), torch.zeros(2, 5))
    >>> [tuple(t.shape) for t in memory.sample(2)]
    [(2, 2, 4), (2, 2)]
    """

    def __init__(self, memories: Sequence[Replay]) -> None:
        self.memories = tuple(memories)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Offer samples (R, B, *input) and labels (R, B)."""
        for memory, own_x, own_y in zip(self.memories, x, y):
            memory.add(own_x, own_y)

    def sample(self, count: int) -> tuple[Tensor, Tensor] | None:
        """Draw ``count`` samples for each replica; None from empty memories."""
        drawn = [part for memory in self.memories if (part := memory.sample(count)) is not None]
        if not drawn:
            return None
        return torch.stack([x for x, _ in drawn]), torch.stack([y for _, y in drawn])

    def describe(self) -> dict[str, object]:
        """Return name and capacity for the record."""
        return self.memories[0].describe()

    def to(self, device: torch.device | str) -> Self:
        """Move the stored samples."""
        for memory in self.memories:
            memory.to(device)
        return self

    def state_dict(self) -> State:
        """Return the state of each memory."""
        return {"memories": [memory.state_dict() for memory in self.memories]}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict` of as many memories."""
        saved = cast(Sequence[State], state.get("memories", ()))
        if len(saved) != len(self.memories):
            raise CheckpointError(f"the state holds {len(saved)} memories, this learner {len(self.memories)}")
        for memory, own in zip(self.memories, saved):
            memory.load_state_dict(own)
