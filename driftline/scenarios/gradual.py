"""Segments that fade into one another instead of following each other at a cut (van de Ven et al., 2022)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from driftline.errors import ScenarioError
from driftline.scenarios.checks import between, choice
from driftline.scenarios.class_incremental import class_tasks
from driftline.scenarios.domain_incremental import Domain, domain_tasks
from driftline.stream.join import concatenate, in_order
from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment

SHAPES = ("linear", "sigmoid")

STEEPNESS = 10.0
"""Of the sigmoid over the width of a transition: it begins at 0.7 % of the new segment and ends at 99.3 %."""


@scenario
def gradual(
    data: Segment,
    rng: torch.Generator,
    tasks: int | None = None,
    by: str = "classes",
    width: float = 0.5,
    shape: str = "linear",
    order: Sequence[int] | str | None = None,
    domains: str | Sequence[Domain] = "rotation",
) -> Iterator[Segment]:
    """Tasks that fade into one another: over each transition, the share of the next task's samples grows to all.

    Parameters
    ----------
    data : Dataset
        With classes, for ``by="classes"``.
    rng : seed
        Of everything.
    tasks : int, optional
        As in :func:`class_incremental` or :func:`domain_incremental`.
    by : "classes" or "domains"
        Each task has its own classes, or shows all data under its own domain.
    width : float
        Length of a transition, 0 to 1 of the shorter of its two tasks. 0: a cut; 1: always in transition.
    shape : "linear" or "sigmoid"
        How the share of the next task grows.
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
    The mixing is that of the "fuzzy" label stream in the code of van de Ven, Tuytelaars & Tolias, *Three types of
    incremental learning*, Nature Machine Intelligence 4 (2022): with n samples per task, and their fuzziness f in
    samples on either side of a boundary, ``width=2 * f / n``. Theirs draws with replacement and returns to the first
    task at the end; here each sample is played once.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.gradual(driftline.load("digits"), tasks=3, width=0.4)
    >>> [(segment.name, len(segment)) for segment in stream.segments]  # doctest: +NORMALIZE_WHITESPACE
    [('task 0', 514), ('task 0 > task 1', 168), ('task 1', 252), ('task 1 > task 2', 168),
     ('task 2', 336)]
    """
    choice("by", by, ("classes", "domains"))
    parts = class_tasks(data, rng, tasks, order) if by == "classes" else domain_tasks(data, rng, domains, tasks)
    yield from fade(*(part.shuffle(rng) for part in parts), width=width, rng=rng, shape=shape)


def fade(*segments: Segment, width: float, rng: torch.Generator, shape: str = "linear") -> list[Segment]:
    """Let each segment fade into the next: a word of the scenario language.

    Parameters
    ----------
    *segments : Segment
        In order; each keeps its own, and each sample is played once.
    width : float
        Length of a transition, 0 to 1 of the shorter of its two segments, half of it taken from either.
    rng : torch.Generator
        Draws where in the transition each sample lies.
    shape : "linear" or "sigmoid"
        How the share of the next segment grows.

    Returns
    -------
    list of Segment
        What is left of each segment, and between them the transitions, which are named after both.

    Raises
    ------
    ScenarioError
        For a width or shape that is not possible, or segments that cannot be in one stream.

    Examples
    --------
    >>> import driftline
    >>> @driftline.scenario
    ... def dusk(data, rng):
    ...     day = data.shuffle(rng).named("day")
    ...     night = data.transform(torch.neg).shuffle(rng).named("night")
    ...     yield from fade(day, night, width=0.5, rng=rng)
    >>> [(segment.name, len(segment)) for segment in dusk(driftline.load("digits")).segments]
    [('day', 1079), ('day > night', 718), ('night', 1079)]
    """
    between("width", width, 0, 1)
    choice("shape", shape, SHAPES)
    if not segments:
        raise ScenarioError("fade: give at least one segment")
    played: list[Segment] = []
    begun = 0
    for first, second in itertools.pairwise(segments):
        half = int(width * min(len(first), len(second))) // 2
        rest = len(first) - half
        played.append(first.take(rest - begun, begun))
        if half:
            played.append(_cross(first.take(half, rest), second.take(half), rng, shape))
        begun = half
    return [*played, segments[-1].take(len(segments[-1]) - begun, begun)]


def _cross(ending: Segment, beginning: Segment, rng: torch.Generator, shape: str) -> Segment:
    """Merge two segments of one length so that the share of the second grows from none to all."""
    half = len(ending)
    place = torch.cat([1 - _place(half, rng, shape), _place(half, rng, shape)])
    owner = (torch.argsort(place, stable=True) >= half).long()
    name = " > ".join(s.name for s in (ending, beginning) if s.name)
    return concatenate(ending, beginning).at(in_order(owner, [half, half])).named(name)


def _place(count: int, rng: torch.Generator, shape: str) -> Tensor:
    """Draw places in [0, 1] with a density that grows like the share: the inverse of its integral, at random."""
    u = torch.rand(count, generator=rng, dtype=torch.float64)
    if shape == "linear":
        return u.sqrt()
    low = math.log1p(math.exp(-STEEPNESS / 2))
    return 0.5 + torch.log(torch.expm1(u * STEEPNESS / 2 + low)) / STEEPNESS
