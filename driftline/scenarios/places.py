"""Where the samples of some classes lie, for many groups of classes in one pass over the labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from driftline.stream.segment import Segment


def places_of(data: Segment, groups: Sequence[Sequence[int]]) -> list[Tensor]:
    """For each group of classes, the places of its samples, in the data's order; a class is in one group at most.

    Examples
    --------
    >>> from driftline import Dataset
    >>> data = Segment.of(Dataset(torch.rand(5, 1), torch.tensor([2, 0, 1, 0, 2])))
    >>> [places.tolist() for places in places_of(data, [[1, 2], [0]])]
    [[0, 2, 4], [1, 3]]
    """
    nowhere = len(groups)
    group = torch.full((data.num_classes,), nowhere)
    for number, members in enumerate(groups):
        group[list(members)] = number
    of_sample = group[data.class_labels()]
    sizes = torch.bincount(of_sample, minlength=nowhere + 1).tolist()
    return list(torch.split(torch.argsort(of_sample, stable=True), sizes))[:nowhere]


def shuffled(places: Tensor, rng: torch.Generator) -> Tensor:
    """Return places in a random order."""
    return places[torch.randperm(len(places), generator=rng)]
