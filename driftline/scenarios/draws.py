"""Which samples each of a row of tasks plays."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from driftline.scenarios.checks import choice, whole
from driftline.stream.segment import Segment

DRAWS = ("per_task", "passes", "replacement")


def task_samples(data: Segment, rng: torch.Generator, samples: int | None, draw: str = "per_task") -> Iterator[Segment]:
    """Yield the samples of one task after the other, without end.

    Parameters
    ----------
    data : Segment
        What is drawn from.
    rng : torch.Generator
        Draws, when a task is asked for.
    samples : int, optional
        Samples in each task; default: as many as there are. More than there are: in several passes.
    draw : "per_task", "passes" or "replacement"
        "per_task": each task draws from all samples, without replacement. "passes": a task goes on where the one before
        it stopped, so a sample returns only when all others have been played; each pass has a new order. "replacement":
        each sample is drawn from all.

    Raises
    ------
    ScenarioError
        For a number or name that is not possible; at once, not when the first task is asked for.

    Examples
    --------
    >>> from driftline import Dataset
    >>> data = Segment.of(Dataset(torch.rand(6, 1)))
    >>> tasks = task_samples(data, torch.Generator().manual_seed(0), samples=3, draw="passes")
    >>> sorted([*next(tasks).rows.tolist(), *next(tasks).rows.tolist()])
    [0, 1, 2, 3, 4, 5]
    """
    samples = len(data) if samples is None else samples
    whole("samples", samples, 1)
    choice("draw", draw, DRAWS)
    return _drawn(data, rng, samples, draw)


def _drawn(data: Segment, rng: torch.Generator, samples: int, draw: str) -> Iterator[Segment]:
    ahead = torch.empty(0, dtype=torch.long)
    while True:
        if draw == "replacement":
            yield data.at(torch.randint(len(data), (samples,), generator=rng))
            continue
        if draw == "per_task":
            ahead = ahead[:0]
        while len(ahead) < samples:
            ahead = torch.cat([ahead, torch.randperm(len(data), generator=rng)])
        yield data.at(ahead[:samples])
        ahead = ahead[samples:]
