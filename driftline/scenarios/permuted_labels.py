"""The classes change names in every task (Elsayed & Mahmood, ICLR 2024)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from driftline.scenarios.checks import classes_in, whole
from driftline.scenarios.draws import task_samples
from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment


@scenario
def permuted_labels(
    data: Segment,
    rng: torch.Generator,
    tasks: int = 10,
    samples: int | None = None,
    first_identity: bool = True,
    draw: str = "per_task",
    compound: bool = False,
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
        Samples in each task. Default: as many as there are. More than there are: in several passes.
    first_identity : bool
        Leave the labels of the first task as they are.
    draw : "per_task", "passes" or "replacement"
        Which samples a task plays, as in :func:`permuted_inputs`.
    compound : bool
        Permute the labels of the task before, not the original ones. The distribution is the same.

    Raises
    ------
    ScenarioError
        For data without classes, or numbers out of range.

    Notes
    -----
    Source: Elsayed & Mahmood, *Addressing loss of plasticity and catastrophic forgetting in continual learning*, ICLR
    2024. Their label-permuted streams, EMNIST (the balanced split of 47 classes, which is not among the named datasets:
    load it from an .npz file), CIFAR-10 and mini-ImageNet, are ``tasks=400, samples=2500, first_identity=False,
    compound=True``, with inputs in [-1, 1] (``load(..., input_range=(-1, 1))``) and batches of 1.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.permuted_labels(driftline.load("digits"), seed=0, tasks=3)
    >>> [segment.recipes[0].relabel is None for segment in stream.segments]
    [True, False, False]
    """
    classes = classes_in(data)
    whole("tasks", tasks, 1)
    drawn = task_samples(data, rng, samples, draw)
    before = torch.arange(data.num_classes)
    for i in range(tasks):
        task = next(drawn)
        if i > 0 or not first_identity:
            fresh = torch.arange(data.num_classes)
            fresh[classes] = classes[torch.randperm(len(classes), generator=rng)]
            before = fresh[before] if compound else fresh
            task = task.relabel(before)
        yield task.named(f"task {i}")
