"""The activations of the latest samples, for methods that judge units by more than the current batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from driftline.errors import CheckpointError
from driftline.learners.renewers.unit_groups import UnitGroup, weight_of


class Recent:
    """Batches of activations of unit groups, as many as it takes to hold the latest samples.

    Parameters
    ----------
    groups : sequence of UnitGroup
        Which layers.
    samples : int
        How many samples of the stream are looked at; a batch that is larger counts with its last ones.

    Examples
    --------
    >>> from torch import nn
    >>> recent = Recent([UnitGroup(nn.Linear(2, 3), (nn.Linear(3, 1),))], samples=2)
    >>> for activation in ([9.0, 9.0, 9.0], [1.0, 0.0, -1.0], [3.0, 0.0, 0.0]):
    ...     recent.add([torch.tensor([activation])])
    >>> recent.magnitudes(0)
    tensor([2.0000, 0.0000, 0.5000])
    """

    def __init__(self, groups: Sequence[UnitGroup], samples: int) -> None:
        self.groups, self.samples = groups, samples
        self.batches: deque[list[Tensor]] = deque()
        self._held = 0

    def add(self, heard: list[Tensor]) -> None:
        """Take what the first hearer of each group received for a batch; nothing is copied."""
        self.batches.append(heard)
        self._held += self._size(heard)
        while self._held - self._size(self.batches[0]) >= self.samples:
            self._held -= self._size(self.batches.popleft())

    def magnitudes(self, number: int) -> Tensor:
        """Return the mean magnitude (R?, units) of a group's activations over the latest samples."""
        group, weight = self.groups[number], weight_of(self.groups[number].in_module)
        total, count = torch.zeros((), dtype=weight.dtype, device=weight.device), 0
        surplus = max(self._held - self.samples, 0)
        for heard in self.batches:
            batch = heard[number].to(weight.device, weight.dtype)
            batch = group.samples(batch.narrow(group.lead, surplus, batch.shape[group.lead] - surplus))
            total, count = total + batch.abs().sum(-2), count + batch.shape[-2]
            surplus = 0  # all of it is in the first batch
        return group.fold(total / count)

    def state(self) -> list[list[Tensor]]:
        """Return copies of the batches, oldest first, each a list of all groups' activations."""
        return [[tensor.clone() for tensor in heard] for heard in self.batches]

    def check_state(self, state: object) -> None:
        """Raise unless these are batches of the same units.

        Raises
        ------
        CheckpointError
        """
        for heard in cast("list[list[Tensor]]", state):
            found = [tuple(tensor.shape) for tensor in heard]
            fits = [_fits(group, tensor) for group, tensor in zip(self.groups, heard)]
            if len(heard) != len(self.groups) or not all(fits):
                units = [group.units for group in self.groups]
                raise CheckpointError(
                    f"the state's recent activations are of shapes {found}, here there are layers of {units} units"
                )

    def load(self, state: object) -> None:
        """Continue from a :meth:`state`."""
        devices = [weight_of(group.in_module).device for group in self.groups]
        self.batches = deque(
            [tensor.to(device, copy=True) for tensor, device in zip(heard, devices)]
            for heard in cast("list[list[Tensor]]", state)
        )
        self._held = sum(self._size(heard) for heard in self.batches)

    def _size(self, heard: Sequence[Tensor]) -> int:
        return heard[0].shape[self.groups[0].lead]


def _fits(group: UnitGroup, batch: Tensor) -> bool:
    lead, columns = group.lead, group.units * group.out_repeat
    if batch.dim() < lead + 2 or (lead and len(batch) != len(weight_of(group.in_module))):
        return False
    return batch.shape[lead + 1 if group.heard_by_conv else -1] == columns
