"""Domains: the named looks of samples, such as "fog 5", told apart by metrics and listed in records."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from driftline.stream.segment import Segment


class Domains:
    """The domains of a row of segments, numbered in the order in which they first appear.

    Attributes
    ----------
    shown : list of tuple of int
        For each segment, the numbers of the domains that its samples show, in order.

    Examples
    --------
    >>> from driftline import Dataset
    >>> data = Segment.of(Dataset(torch.rand(3, 1)))
    >>> domains = Domains([data.named("first"), data.in_domain("night").named("second")])
    >>> domains.names, domains.at(1, torch.tensor([0, 2])).tolist()
    (('first', 'night'), [1, 1])
    >>> domains.shown
    [(0,), (1,)]
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        self._numbers: dict[str, int] = {}
        self.shown: list[tuple[int, ...]] = []
        for segment in segments:
            played = [0] if segment.which is None else dict.fromkeys(segment.which.tolist())
            numbers = {self._numbers.setdefault(_name(segment, recipe), len(self._numbers)) for recipe in played}
            self.shown.append(tuple(sorted(numbers)))

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each domain."""
        return tuple(self._numbers)

    def at(self, number: int, place: Tensor) -> Tensor:
        """Return the domain of the samples at these places of a segment, by number."""
        segment = self._segments[number]
        if segment.which is None:
            return torch.full_like(place, self._numbers[_name(segment, 0)])
        # A recipe that no sample has need not be in a domain.
        known = [self._numbers.get(_name(segment, recipe), -1) for recipe in range(len(segment.recipes))]
        return torch.tensor(known)[segment.which[place].long()]


def _name(segment: Segment, recipe: int) -> str:
    return segment.recipes[recipe].look or segment.name
