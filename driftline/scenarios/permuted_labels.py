"""The classes change names in every task (Elsayed & Mahmood, ICLR 2024)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from driftline.scenarios.checks import classes_in, samples_per_task, whole
from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment


@scenario
def permuted_labels(
    data: Segment, rng: torch.Generator, tasks: int = 10, samples: int | None = None, first_identity: bool = True
) -> Iterator[Segment]:
    """In each task the classes trade labels at random: what was learned about inputs stays true, the answers do not.

    Parameters
    ----------
    data : Dataset
        With at least two classes that occur; these trade labels.
    rng : seed
        Of the label permutations, of which samples are played, and of their order.
    tasks : int
        At least 1.
    samples : int, optional
        Samples in each task, drawn anew without replacement for each. Default: all.
    first_identity : bool
        Leave the labels of the first task as they are.

    Raises
    ------
    ScenarioError
        For data without classes, or numbers out of range.

    Notes
    -----
    Source: label-permuted EMNIST of Elsayed & Mahmood, *Addressing loss of plasticity and catastrophic forgetting in
    continual learning*, ICLR 2024 (a new permutation every 2 500 samples).

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.permuted_labels(driftline.load("digits"), seed=0, tasks=3)
    >>> [segment.recipes[0].relabel is None for segment in stream.segments]
    [True, False, False]
    """
    classes = classes_in(data)
    whole("tasks", tasks, 1)
    size = samples_per_task(data, samples)
    for i in range(tasks):
        task = data.shuffle(rng).take(size)
        if i > 0 or not first_identity:
            mapping = torch.arange(data.num_classes)
            mapping[classes] = classes[torch.randperm(len(classes), generator=rng)]
            task = task.relabel(mapping)
        yield task.named(f"task {i}")
