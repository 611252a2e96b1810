"""The same classes under changing conditions (van de Ven, Tuytelaars & Tolias, 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from driftline.errors import ScenarioError
from driftline.scenarios.checks import choice, images, samples_per_task, unit_range, whole
from driftline.scenarios.transforms import Invert, Permute, Rotate
from driftline.stream.recipe import Transform
from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment

T = TypeVar("T")

Domain = Callable[..., Tensor] | None
"""How a domain shows samples: ``function(x) -> x``, a :class:`~driftline.stream.Transform`, None: as is."""

KINDS = ("rotation", "permutation", "inversion")


@scenario
def domain_incremental(
    data: Segment,
    rng: torch.Generator,
    domains: str | Sequence[Domain] = "rotation",
    tasks: int | None = None,
    angles: Sequence[float] | None = None,
    samples: int | None = None,
    shuffle: bool = True,
) -> Iterator[Segment]:
    """Domains one after the other, all classes in each: what is seen changes, what it means does not.

    Parameters
    ----------
    data : Dataset
        Images for rotation and inversion, anything for permutation. Labels are not needed.
    rng : seed
        Of permutations, of which samples are played, and of their order.
    domains : "rotation", "permutation", "inversion", or sequence of functions
        "rotation": by ``angles``. "permutation": of all input values, the first domain as it is. "inversion":
        as it is, then 1 - x. A sequence gives one function ``x -> x`` (or None: as is) for each domain;
        ``driftline.stream.Transform(f, random=True)`` for ``f(x, generator)``.
    tasks : int, optional
        Number of domains. Default: 5; 2 for inversion; one for each given function or angle.
    angles : sequence of float, optional
        Degrees, counter-clockwise, for each rotation. Default: ``tasks`` of them spread evenly over [0, 180).
    samples : int, optional
        How many samples each domain plays, drawn anew without replacement for each. Default: all.
    shuffle : bool
        Shuffle each domain; False keeps the dataset's order (and its first ``samples``).

    Raises
    ------
    ScenarioError
        When the data is not images where it must be, or the numbers do not fit.

    Notes
    -----
    Source: van de Ven, Tuytelaars & Tolias, *Three types of incremental learning*, Nature Machine Intelligence
    4 (2022). Rotations spread over [0, 180) as in Lopez-Paz & Ranzato (2017), who draw the angles at random.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.domain_incremental(driftline.load("digits"), tasks=3, samples=200)
    >>> [(segment.name, len(segment)) for segment in stream.segments]
    [('rotated 0', 200), ('rotated 60', 200), ('rotated 120', 200)]
    """
    size = samples_per_task(data, samples)
    for domain in domain_tasks(data, rng, domains, tasks, angles):
        yield (domain.shuffle(rng) if shuffle else domain).take(size)


def domain_tasks(
    data: Segment,
    rng: torch.Generator,
    domains: str | Sequence[Domain] = "rotation",
    tasks: int | None = None,
    angles: Sequence[float] | None = None,
) -> list[Segment]:
    """All of the data under each domain, in the dataset's order; parameters as in :func:`domain_incremental`.

    For use in scenarios of one's own:

    >>> import driftline
    >>> @driftline.scenario
    ... def upside_down_at_last(data, rng):
    ...     upright, turned = domain_tasks(data, rng, angles=[0, 180])
    ...     yield upright.shuffle(rng)
    ...     yield turned.shuffle(rng).without_labels()
    >>> len(upside_down_at_last(driftline.load("digits")))
    2876
    """
    if angles is not None and domains != "rotation":
        raise ScenarioError(f"angles={list(angles)}: only for domains='rotation', not {domains!r}")
    if not isinstance(domains, str):
        return [
            _shown(data, domain).named(_name(domain, i))
            for i, domain in enumerate(_as_many(list(domains), tasks, "domains"))
        ]
    choice("domains", domains, KINDS)
    if domains == "rotation":
        images(data, "domains='rotation'")
        turns = _spread(tasks) if angles is None else _as_many(list(angles), tasks, "angles")
        for angle in turns:
            if isinstance(angle, bool) or not isinstance(angle, (int, float)) or not math.isfinite(angle):
                raise ScenarioError(f"angles={turns}: {angle!r} is not a finite number of degrees")
        return [_shown(data, Rotate(angle)).named(f"rotated {angle:g}") for angle in turns]
    if domains == "inversion":
        images(data, "domains='inversion'")
        unit_range(data, "domains='inversion'")
        if tasks is not None:
            whole("tasks", tasks, 1, 2, "an image and its negative")
        return [data.named("as is"), _shown(data, Invert()).named("inverted")][:tasks]
    tasks = 5 if tasks is None else tasks
    whole("tasks", tasks, 1)
    permutations = [random_permutation(data, rng) for _ in range(tasks - 1)]
    shown = [_shown(data, p).named(f"permutation {i}") for i, p in enumerate(permutations, start=1)]
    return [data.named("as is"), *shown]


def random_permutation(data: Segment, rng: torch.Generator) -> Permute:
    """Return a random permutation of the input values of the data's samples."""
    return Permute(torch.randperm(math.prod(data.dataset.input_shape), generator=rng))


def _shown(data: Segment, domain: Domain) -> Segment:
    if domain is None:
        return data
    if isinstance(domain, Transform):
        return data.transform(domain.function, domain.random)
    if not callable(domain):
        raise ScenarioError(f"domains: {domain!r} is not a function of a batch (nor None, for samples as they are)")
    return data.transform(domain)


def _name(domain: Domain, number: int) -> str:
    function = domain.function if isinstance(domain, Transform) else domain
    what = "as is" if function is None else getattr(function, "__name__", type(function).__name__)
    return f"domain {number} ({what})"


def _as_many(given: list[T], tasks: int | None, name: str) -> list[T]:
    if not given:
        raise ScenarioError(f"{name}=[]: give at least one")
    if tasks is not None and tasks != len(given):
        raise ScenarioError(f"tasks={tasks!r}, but {len(given)} {name} are given; leave tasks out")
    return given


def _spread(tasks: int | None) -> list[float]:
    tasks = 5 if tasks is None else tasks
    whole("tasks", tasks, 1)
    return [180 * i / tasks for i in range(tasks)]
