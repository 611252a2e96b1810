"""Everything in random order: the control that every other scenario is compared with."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment


@scenario
def iid(data: Segment, rng: torch.Generator) -> Iterator[Segment]:
    """All samples once, shuffled: no drift at all.

    Parameters
    ----------
    data : Dataset
        Any; labels are not needed.
    rng : seed
        Of the order.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.iid(driftline.load("digits"), seed=0)
    >>> len(stream), [segment.name for segment in stream.segments]
    (1438, ['iid'])
    """
    yield data.shuffle(rng).named("iid")
