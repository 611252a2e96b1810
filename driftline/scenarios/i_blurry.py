"""Tasks with soft edges and fixed sizes (Koh et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from driftline.scenarios.checks import classes_in
from driftline.scenarios.class_incremental import evenly
from driftline.scenarios.places import places_of, shuffled
from driftline.scenarios.si_blurry import Homes, checked
from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment


@scenario
def i_blurry(
    data: Segment, rng: torch.Generator, tasks: int = 5, disjoint: float = 50, blurry: float = 10
) -> Iterator[Segment]:
    """Tasks of disjoint and blurry classes, where a share of the blurry samples is dealt out evenly to all tasks.

    Parameters
    ----------
    data : Dataset
        With at least two classes that occur.
    rng : seed
        Of everything.
    tasks : int
        1 to the number of classes.
    disjoint : float
        Percent of the classes that are disjoint (N), 0 to 100: all their samples stay in one task.
    blurry : float
        Percent of each task's blurry samples (M), 0 to 100, drawn at random, that are pooled over all tasks, shuffled
        and dealt out evenly, the home task included: it keeps about 1 - M (T - 1) / T of them.

    Raises
    ------
    ScenarioError
        For data without classes, more tasks than classes, or percentages out of range.

    Notes
    -----
    Source: Koh, Kim, Ha & Choi, *Online Continual Learning on Class Incremental Blurry Task Configuration with Anytime
    Inference*, ICLR 2022. Their generator is not published; this one has the statistics of their published splits.
    Where classes or pooled samples do not divide evenly, some tasks get one more: nothing is left out.
    Segments are judged on their home classes.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.i_blurry(driftline.load("digits"), seed=1)
    >>> [(len(segment), segment.judged) for segment in stream.segments]
    [(282, (5, 8)), (288, (6, 9)), (292, (1, 3)), (279, (2, 7)), (297, (0, 4))]
    """
    checked(data, tasks, disjoint, blurry)
    present = classes_in(data)
    order = present[torch.randperm(len(present), generator=rng)]
    settled = int(len(present) * disjoint // 100)
    sizes = evenly(settled, tasks) + evenly(len(present) - settled, tasks)
    parts = [part.tolist() for part in torch.split(order, sizes)]
    homes = Homes(parts[:tasks], parts[tasks:])

    leaking = [shuffled(places, rng) for places in places_of(data, homes.blurry)]
    leave = [int(len(places) * blurry // 100) for places in leaking]
    pool = shuffled(torch.cat([places[:n] for places, n in zip(leaking, leave)]), rng)
    received = torch.split(pool, evenly(len(pool), tasks))
    for i, own in enumerate(places_of(data, homes.disjoint)):
        task = data.at(torch.cat([own, leaking[i][leave[i] :], received[i]])).shuffle(rng)
        yield task.judged_on(*homes.of_task(i)).named(f"task {i}")
