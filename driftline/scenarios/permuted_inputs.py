"""The pixels change places in every task (Goodfellow et al., 2013; Dohare et al., 2024)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from driftline.scenarios.checks import samples_per_task, whole
from driftline.scenarios.domain_incremental import random_permutation
from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment


@scenario
def permuted_inputs(
    data: Segment, rng: torch.Generator, tasks: int = 10, samples: int | None = None, first_identity: bool = True
) -> Iterator[Segment]:
    """In each task the input values are put in another random order, the same one for all of its samples.

    Parameters
    ----------
    data : Dataset
        Inputs of any shape. Labels are not needed.
    rng : seed
        Of the permutations, of which samples are played, and of their order.
    tasks : int
        At least 1.
    samples : int, optional
        Samples in each task, drawn anew without replacement for each. Default: all.
    first_identity : bool
        Leave the inputs of the first task as they are.

    Raises
    ------
    ScenarioError
        For numbers out of range.

    Notes
    -----
    Source: Goodfellow et al., *An empirical investigation of catastrophic forgetting*, 2013; Kirkpatrick et al.,
    *Overcoming catastrophic forgetting*, PNAS 2017. Online permuted MNIST of Dohare et al., *Loss of plasticity in
    deep continual learning*, Nature 2024, is ``tasks=800`` with all 60 000 samples; they permute the permuted
    images again, which has the same distribution.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.permuted_inputs(driftline.load("digits"), tasks=3, samples=500)
    >>> len(stream), [segment.name for segment in stream.segments]
    (1500, ['task 0', 'task 1', 'task 2'])
    """
    whole("tasks", tasks, 1)
    size = samples_per_task(data, samples)
    for i in range(tasks):
        task = data.shuffle(rng).take(size)
        if i > 0 or not first_identity:
            task = task.transform(random_permutation(data, rng))
        yield task.named(f"task {i}")
