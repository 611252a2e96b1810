"""Classes come a few at a time (van de Ven, Tuytelaars & Tolias, *Three types of incremental learning*, 2022)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from driftline.errors import ScenarioError
from driftline.scenarios.checks import choice, classes_in, tasks_of_classes, whole
from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment


@scenario
def class_incremental(
    data: Segment,
    rng: torch.Generator,
    tasks: int | None = None,
    order: Sequence[int] | str | None = None,
    shuffle: bool = True,
    first: int | None = None,
    increment: int | None = None,
) -> Iterator[Segment]:
    """Tasks of new classes, one after the other: each class is seen in one task only.

    Parameters
    ----------
    data : Dataset
        With at least two classes that occur.
    rng : seed
        Of the class order and of the sample order in each task.
    tasks : int, optional
        1 to the number of classes. Classes are divided as evenly as possible, the earlier tasks taking one
        more each. Default: 5, or as many as ``increment`` makes.
    order : sequence of int, "random" or "sorted"
        In which order classes come. A sequence plays these classes only. Default: "random", by the seed;
        "sorted" is the dataset's own order.
    shuffle : bool
        Shuffle the samples within each task; False keeps the dataset's order.
    first : int, optional
        Classes in the first task; the others are divided among the remaining tasks.
    increment : int, optional
        Classes in each task (after the first, when ``first`` is given); the last task takes what is left.
        Excludes ``tasks``.

    Raises
    ------
    ScenarioError
        For data without classes, more tasks than classes, or an order that names a class twice or none there.

    Notes
    -----
    Source: van de Ven, Tuytelaars & Tolias, *Three types of incremental learning*, Nature Machine Intelligence
    4 (2022). Their code leaves out the classes that do not divide evenly; here every class is played.

    Examples
    --------
    >>> import driftline
    >>> digits = driftline.load("digits")
    >>> stream = driftline.scenarios.class_incremental(digits, tasks=4, order="sorted")
    >>> [segment.labels().unique().tolist() for segment in stream.segments]
    [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]
    >>> stream = driftline.scenarios.class_incremental(digits, first=6, increment=2)
    >>> [len(segment.labels().unique()) for segment in stream.segments]
    [6, 2, 2]
    """
    for task in class_tasks(data, rng, tasks, order, first, increment):
        yield task.shuffle(rng) if shuffle else task


def class_tasks(
    data: Segment,
    rng: torch.Generator,
    tasks: int | None = None,
    order: Sequence[int] | str | None = None,
    first: int | None = None,
    increment: int | None = None,
) -> list[Segment]:
    """Divide data into tasks by class, each in the dataset's order; parameters as in :func:`class_incremental`.

    For use in scenarios of one's own:

    >>> import driftline
    >>> @driftline.scenario
    ... def there_and_back(data, rng):
    ...     tasks = class_tasks(data, rng, tasks=3)
    ...     yield from tasks
    ...     yield from reversed(tasks)
    >>> [segment.name for segment in there_and_back(driftline.load("digits")).segments]
    ['task 0', 'task 1', 'task 2', 'task 2', 'task 1', 'task 0']
    """
    classes = class_order(data, rng, order)
    sizes = _sizes(data, len(classes), tasks, first, increment)
    parts = torch.split(classes, sizes)
    return [data.classes(*part.tolist()).named(f"task {i}") for i, part in enumerate(parts)]


def class_order(data: Segment, rng: torch.Generator, order: Sequence[int] | str | None) -> Tensor:
    """Return the classes that occur, in the order asked for: a sequence, "random" (also None) or "sorted"."""
    present = classes_in(data)
    order = "random" if order is None else order
    if isinstance(order, str):
        choice("order", order, ("random", "sorted"))
        return present if order == "sorted" else present[torch.randperm(len(present), generator=rng)]
    named = list(order)
    known = set(present.tolist())
    absent = [c for c in named if c not in known]
    if absent:
        raise ScenarioError(
            f"order={named}: no class {absent[0]!r} in {data.dataset.name}; its classes are {sorted(known)}"
        )
    if not named or len(set(named)) < len(named):
        raise ScenarioError(f"order={named}: must name each class that is to be played once")
    return torch.tensor(named)


def _sizes(data: Segment, classes: int, tasks: int | None, first: int | None, increment: int | None) -> list[int]:
    """Number of classes in each task."""
    if first is not None:
        whole("first", first, 1, classes, f"{data.dataset.name} has {classes} classes to divide")
    if increment is not None:
        if tasks is not None:
            raise ScenarioError(f"tasks={tasks!r} and increment={increment!r}: give one of them; it decides the other")
        whole("increment", increment, 1, classes, f"{data.dataset.name} has {classes} classes to divide")
        cuts = [0, *range(increment if first is None else first, classes, increment), classes]
        return [stop - start for start, stop in itertools.pairwise(cuts)]
    tasks = 5 if tasks is None else tasks
    tasks_of_classes(tasks, classes, data)
    if first is None:
        return evenly(classes, tasks)
    if (tasks == 1) != (first == classes) or tasks - 1 > classes - first:
        raise ScenarioError(
            f"first={first} of {classes} classes leaves {classes - first} for the other {tasks - 1} of tasks={tasks}"
        )
    return [first, *evenly(classes - first, tasks - 1)]


def evenly(count: int, parts: int) -> list[int]:
    """Sizes of ``parts`` parts of ``count`` things, as even as possible, the larger ones first.

    >>> evenly(10, 4)
    [3, 3, 2, 2]
    """
    return [count // parts + (i < count % parts) for i in range(parts)]
