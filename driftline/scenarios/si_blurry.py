"""Tasks with soft edges: some classes stay in one task, some leak into all (Moon et al., ICCV 2023)."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from driftline.scenarios.checks import between, choice, classes_in, tasks_of_classes
from driftline.scenarios.places import places_of, shuffled
from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment


@scenario
def si_blurry(
    data: Segment,
    rng: torch.Generator,
    tasks: int = 5,
    disjoint: float = 50,
    blurry: float = 10,
    stochastic: bool = True,
    blur_selection: str = "random",
) -> Iterator[Segment]:
    """Stochastic incremental blurry tasks: numbers of classes and of leaking samples vary from task to task.

    "Si-Blurry 50-10" is ``disjoint=50, blurry=10``. A share of the samples of blurry classes is taken out of their
    home task, pooled, shuffled and dealt out to all tasks.

    Parameters
    ----------
    data : Dataset
        With at least two classes that occur.
    rng : seed
        Of everything; the published sampler's seed gives its stream with ``blur_selection="first"``.
    tasks : int
        1 to the number of classes.
    disjoint : float
        Percent of the classes that are disjoint (N), 0 to 100: all their samples stay in one task.
    blurry : float
        Percent of the samples of blurry classes that leave their home task (M), 0 to 100.
    stochastic : bool
        Draw at random how many classes and leaking samples each task has (a task can then have none at all, and is
        left out of the stream). False: the same number for each.
    blur_selection : "random" or "first"
        Which of a task's blurry samples leave. "first": the first in the dataset's order, as the published code
        does, which on data sorted by class takes them all from one or two classes. "random": any.

    Raises
    ------
    ScenarioError
        For data without classes, more tasks than classes, or percentages out of range.

    Warns
    -----
    RuntimeWarning
        When classes are in no task: the numbers of disjoint and of blurry classes are multiples of ``tasks``.

    Notes
    -----
    Source: Moon, Park, Kim & Park, *Online Class Incremental Learning on Stochastic Blurry Task Boundary via Mask and
    Visual Prompt Tuning*, ICCV 2023. With ``blur_selection="first"`` the order of samples equals that of the published
    sampler, draw for draw. As there, with ``stochastic=False`` the remainder of the pool that does not divide by
    ``tasks`` is left out. Segments are judged on their home classes.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.si_blurry(driftline.load("digits"), seed=1)
    >>> [(len(segment), segment.judged) for segment in stream.segments]
    [(157, (5,)), (415, (6, 8, 9)), (292, (1, 3)), (148, (2,)), (426, (0, 7, 4))]
    """
    checked(data, tasks, disjoint, blurry)
    choice("blur_selection", blur_selection, ("random", "first"))
    present = classes_in(data)
    homes = published_homes(present, rng, tasks, disjoint, stochastic)
    _warn_of_left_out(data, present, homes)

    settled = places_of(data, homes.disjoint)
    leaking = places_of(data, homes.blurry)
    samples = sum(len(places) for places in leaking)
    if stochastic:
        quotas = _between_cuts(_percent(samples, blurry), tasks, rng)
    else:
        quotas = [_percent(len(places), blurry) for places in leaking]
    if blur_selection == "random":
        leaking = [shuffled(places, rng) for places in leaking]
    kept = [places[quota:] for places, quota in zip(leaking, quotas)]
    pool = shuffled(torch.cat([places[:quota] for places, quota in zip(leaking, quotas)]), rng)
    shares = quotas if stochastic else [len(pool) // tasks] * tasks
    stops = list(itertools.accumulate(shares))
    for i in range(tasks):
        received = pool[stops[i] - shares[i] : stops[i]]
        task = data.at(torch.cat([settled[i], kept[i], received])).shuffle(rng)
        yield task.judged_on(*homes.of_task(i)).named(f"task {i}")


@dataclass(frozen=True)
class Homes:
    """The classes of each task.

    Parameters
    ----------
    disjoint, blurry : list of list of int
        For each task, its classes of that kind.
    """

    disjoint: list[list[int]]
    blurry: list[list[int]]

    def of_task(self, task: int) -> list[int]:
        """Home classes of a task."""
        return self.disjoint[task] + self.blurry[task]


def checked(data: Segment, tasks: int, disjoint: float, blurry: float) -> None:
    """Raise unless the parameters that blurry scenarios share can be met."""
    tasks_of_classes(tasks, len(classes_in(data)), data)
    between("disjoint", disjoint, 0, 100)
    between("blurry", blurry, 0, 100)


def published_homes(present: Tensor, rng: torch.Generator, tasks: int, disjoint: float, stochastic: bool) -> Homes:
    """Draw the classes of each task as the published sampler does."""
    count = len(present)
    settled = _percent(count, disjoint) // tasks * tasks
    leaking = (count - settled) // tasks * tasks
    order = present[torch.randperm(count, generator=rng)]
    if stochastic:
        settled_sizes, leaking_sizes = (_between_cuts(n, tasks, rng) for n in (settled, leaking))
    else:
        settled_sizes, leaking_sizes = ([n // tasks] * tasks for n in (settled, leaking))
    parts = [p.tolist() for p in torch.split(order[: settled + leaking], settled_sizes + leaking_sizes)]
    return Homes(parts[:tasks], parts[tasks:])


def _percent(count: int, percent: float) -> int:
    return int(count * percent // 100)


def _between_cuts(total: int, parts: int, rng: torch.Generator) -> list[int]:
    """Sizes of ``parts`` runs of ``total`` things between random cuts; the last run is never empty."""
    if total == 0:
        return [0] * parts
    cuts = torch.randint(0, total, (parts - 1,), generator=rng).sort().values
    return [b - a for a, b in itertools.pairwise([0, *cuts.tolist(), total])]


def _warn_of_left_out(data: Segment, present: Tensor, homes: Homes) -> None:
    placed = sum(len(classes) for classes in homes.disjoint + homes.blurry)
    if placed < len(present):
        warnings.warn(
            f"si_blurry: {len(present) - placed} of the {len(present)} classes of {data.dataset.name} are in no task, "
            f"because numbers of disjoint and of blurry classes are rounded down to multiples of {len(homes.blurry)} "
            "tasks; choose another number of tasks or percentage to play them all",
            RuntimeWarning,
            stacklevel=4,
        )
