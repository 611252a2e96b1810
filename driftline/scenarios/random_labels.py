"""Labels that mean nothing and have to be memorised, again and again (Lyle et al., 2023; Kumar et al., 2023)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from driftline.scenarios.checks import choice, classes_in, samples_per_task, whole
from driftline.stream.join import concatenate
from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment


@scenario
def random_labels(
    data: Segment,
    rng: torch.Generator,
    tasks: int = 10,
    samples: int | None = None,
    epochs: int = 20,
    labels: str = "drawn",
) -> Iterator[Segment]:
    """The same samples in every task, each with a label drawn at random for the task: a test of plasticity.

    Nothing carries over between tasks but the ability to learn. A sample can be predicted from its second visit on,
    so accuracy is bounded by chance in the first of a task's ``epochs``; see it over the later ones.

    Parameters
    ----------
    data : Dataset
        With at least two classes that occur.
    rng : seed
        Of the labels, of which samples are played, and of their order.
    tasks : int
        At least 1.
    samples : int, optional
        Distinct samples, drawn once for all tasks. Default: all.
    epochs : int
        Visits to each sample in a task, at least 1, each in a new order.
    labels : "drawn" or "shuffled"
        "drawn": evenly from the classes that occur. "shuffled": the samples trade their own labels, so that class sizes
        stay.

    Raises
    ------
    ScenarioError
        For data without classes, or numbers out of range.

    Notes
    -----
    Source: Lyle et al., *Understanding plasticity in neural networks*, ICML 2023; random-label MNIST of Kumar, Marklund
    & Van Roy, *Maintaining plasticity in continual learning via regenerative regularization*, 2023, is
    ``tasks=50, samples=1200, epochs=400, labels="shuffled"`` on ``load("mnist", input_range=(-1, 1))``, in batches of
    16.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.random_labels(driftline.load("digits"), tasks=2, samples=100, epochs=5)
    >>> [len(segment) for segment in stream.segments]
    [500, 500]
    """
    classes = classes_in(data)
    whole("tasks", tasks, 1)
    whole("epochs", epochs, 1)
    choice("labels", labels, ("drawn", "shuffled"))
    chosen = data.shuffle(rng).take(samples_per_task(data, samples))
    for i in range(tasks):
        if labels == "drawn":
            truth = classes[torch.randint(len(classes), (len(data),), generator=rng)]
        else:
            truth = data.labels()
            truth[chosen.rows] = truth[chosen.shuffle(rng).rows]
        task = chosen.with_labels(truth)
        yield concatenate(*(task.shuffle(rng) for _ in range(epochs))).named(f"task {i}")
