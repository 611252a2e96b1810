"""The pixels change places in every task (Goodfellow et al., 2013; Dohare et al., 2024)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from driftline.scenarios.checks import whole
from driftline.scenarios.domain_incremental import random_permutation
from driftline.scenarios.draws import task_samples
from driftline.scenarios.transforms import Permute
from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment


@scenario
def permuted_inputs(
    data: Segment,
    rng: torch.Generator,
    tasks: int = 10,
    samples: int | None = None,
    first_identity: bool = True,
    draw: str = "per_task",
    compound: bool = False,
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
        Samples in each task. Default: as many as there are. More than there are: in several passes.
    first_identity : bool
        Leave the inputs of the first task as they are.
    draw : "per_task", "passes" or "replacement"
        Which samples a task plays. "per_task": drawn from all, without replacement. "passes": a task goes on where the
        one before it stopped in a pass over all; each pass has a new order. "replacement": each drawn from all.
    compound : bool
        Permute what the task before had permuted, not the original inputs. The distribution is the same.

    Raises
    ------
    ScenarioError
        For numbers out of range.

    Notes
    -----
    Source: Goodfellow et al., *An empirical investigation of catastrophic forgetting*, 2013. Published benchmarks, all
    on MNIST, where [-1, 1] is ``load("mnist", input_range=(-1, 1))``:

    - online permuted MNIST (Dohare et al., *Loss of plasticity in deep continual learning*, Nature 2024):
      ``tasks=800, first_identity=False, compound=True``, inputs in [0, 1], batches of 1. Of their other rates of
      change, ``samples=1_000_000`` repeats its pass in the same order, here in a new one.
    - input-permuted MNIST (Elsayed & Mahmood, ICLR 2024): ``tasks=200, samples=5000, first_identity=False``, inputs in
      [-1, 1], batches of 1.
    - permuted MNIST of Kumar, Marklund & Van Roy (2023): ``tasks=500, samples=10_000``, inputs in [-1, 1], batches
      of 16.
    - Kirkpatrick et al. (PNAS 2017): ``tasks=10``, each with several epochs.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.permuted_inputs(driftline.load("digits"), tasks=3, samples=500)
    >>> len(stream), [segment.name for segment in stream.segments]
    (1500, ['task 0', 'task 1', 'task 2'])
    """
    whole("tasks", tasks, 1)
    drawn = task_samples(data, rng, samples, draw)
    before: Permute | None = None
    for i in range(tasks):
        task = next(drawn)
        if i > 0 or not first_identity:
            fresh = random_permutation(data, rng)
            before = Permute(before.permutation[fresh.permutation]) if compound and before is not None else fresh
            task = task.transform(before)
        yield task.named(f"task {i}")
