"""Tasks that come back (Cossu et al., 2022; Hemati et al., CoLLAs 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from driftline.scenarios.checks import choice, whole
from driftline.scenarios.class_incremental import class_tasks, evenly
from driftline.scenarios.domain_incremental import Domain, domain_tasks
from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment


@scenario
def recurring(
    data: Segment,
    rng: torch.Generator,
    tasks: int | None = None,
    cycles: int = 3,
    by: str = "classes",
    fresh: bool = False,
    order: Sequence[int] | str | None = None,
    domains: str | Sequence[Domain] = "rotation",
) -> Iterator[Segment]:
    """The same tasks over and over, in the same order: what was forgotten is needed again.

    Parameters
    ----------
    data : Dataset
        With classes, for ``by="classes"``.
    rng : seed
        Of everything.
    tasks : int, optional
        As in :func:`class_incremental` or :func:`domain_incremental`.
    cycles : int
        Visits to each task, at least 1.
    by : "classes" or "domains"
        Each task has its own classes, or shows all data under its own domain.
    fresh : bool
        Deal a task's samples out over its visits, so that none is seen twice under one domain. False: every visit
        plays all of them, in a new order.
    order : sequence of int, "random" or "sorted"
        Of the classes, as in :func:`class_incremental`.
    domains : str or sequence of functions
        As in :func:`domain_incremental`.

    Raises
    ------
    ScenarioError
        For numbers out of range, or data that does not have what ``by`` needs.

    Notes
    -----
    Source: Cossu et al., *Is class-incremental enough for continual learning?*, 2022, and Hemati et al.,
    *Class-incremental learning with repetition*, CoLLAs 2023, who draw which classes return; here all do, in turn, as
    in the recurring test-time streams of Hoang et al., *Persistent test-time adaptation*, NeurIPS 2024.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.recurring(driftline.load("digits"), tasks=2, cycles=2)
    >>> [segment.name for segment in stream.segments]
    ['task 0, visit 0', 'task 1, visit 0', 'task 0, visit 1', 'task 1, visit 1']
    """
    whole("cycles", cycles, 1)
    choice("by", by, ("classes", "domains"))
    parts = class_tasks(data, rng, tasks, order) if by == "classes" else domain_tasks(data, rng, domains, tasks)
    parts = [part.shuffle(rng) for part in parts]
    for visit in range(cycles):
        for part in parts:
            sizes = evenly(len(part), cycles)
            seen = part.take(sizes[visit], sum(sizes[:visit])) if fresh else part.shuffle(rng)
            yield seen.named(f"{part.name}, visit {visit}")
