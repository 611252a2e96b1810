"""Classes that come in bunches, or in very different numbers (Gong et al., NeurIPS 2022; Cui et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from driftline.scenarios.checks import above, between, choice, classes_in, whole
from driftline.scenarios.class_incremental import class_order
from driftline.scenarios.places import places_of, shuffled
from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment


@scenario
def imbalanced(
    data: Segment,
    rng: torch.Generator,
    kind: str = "dirichlet",
    concentration: float = 0.1,
    chunks: int | None = None,
    imbalance: float = 100,
    order: Sequence[int] | str | None = None,
) -> Iterator[Segment]:
    """Label-correlated order (all samples, in bunches of one class), or long-tailed class sizes (shuffled).

    Parameters
    ----------
    data : Dataset
        With at least two classes that occur.
    rng : seed
        Of everything.
    kind : "dirichlet" or "long_tailed"
        "dirichlet": the stream is a row of chunks, each a segment; how a class divides among them is drawn from a
        Dirichlet distribution; within a chunk each class comes in one run. "long_tailed": the c-th of C classes has
        n * imbalance^(-c / (C - 1)) samples, at least one, shuffled in one segment.
    concentration : float
        Dirichlet: above 0. Small: a class comes in few long runs; large: each chunk has something of every class.
    chunks : int, optional
        Dirichlet: number of chunks, 1 to the number of samples. Default: one for each class.
    imbalance : float
        Long-tailed: size of the largest class over that of the smallest, at least 1.
    order : sequence of int, "random" or "sorted"
        Long-tailed: classes from the largest to the smallest, as in :func:`class_incremental`.

    Raises
    ------
    ScenarioError
        For data without classes, or numbers out of range.

    Notes
    -----
    Dirichlet: Gong et al., *NOTE: Robust continual test-time adaptation against temporal correlation*, NeurIPS 2022.
    As in their code, a chunk that has its even share of the samples takes no further class. Their code starts over
    until every chunk has 10 samples; here chunks may be smaller, and empty ones vanish. Long-tailed: Cui et al.,
    *Class-balanced loss based on effective number of samples*, CVPR 2019, where classes are in the dataset's order
    (``order="sorted"``).

    Examples
    --------
    >>> import driftline
    >>> digits = driftline.load("digits")
    >>> stream = driftline.scenarios.imbalanced(digits, seed=0)
    >>> len(stream)
    1438
    >>> stream = driftline.scenarios.imbalanced(digits, kind="long_tailed", imbalance=50, order="sorted")
    >>> stream.labels().bincount().tolist()
    [151, 97, 63, 40, 26, 17, 11, 7, 4, 3]
    """
    choice("kind", kind, ("dirichlet", "long_tailed"))
    if kind == "dirichlet":
        above("concentration", concentration, 0)
        present = classes_in(data)
        chunks = len(present) if chunks is None else chunks
        whole("chunks", chunks, 1, len(data), f"{data.dataset.name} has {len(data)} samples")
        yield from _in_bunches(data, rng, present, concentration, chunks)
    else:
        between("imbalance", imbalance, 1)
        yield _long_tailed(data, rng, class_order(data, rng, order), imbalance)


def _in_bunches(
    data: Segment, rng: torch.Generator, present: Tensor, concentration: float, chunks: int
) -> Iterator[Segment]:
    members = [shuffled(places, rng) for places in places_of(data, [[c] for c in present.tolist()])]
    sizes = torch.zeros(chunks, dtype=torch.long)
    chunk_of = []
    for places in members:
        share = _dirichlet(sizes < len(data) / chunks, concentration, rng)
        cuts = (share.cumsum(0) * len(places)).long()
        cuts[-1] = len(places)
        taken = cuts.diff(prepend=cuts.new_zeros(1))
        chunk_of.append(torch.repeat_interleave(torch.arange(chunks), taken))
        sizes += taken
    order = _runs_in_random_order(torch.cat(chunk_of), torch.tensor([len(places) for places in members]), rng)
    whole_stream = data.at(torch.cat(members)[order])
    start = 0
    for chunk, size in enumerate(sizes.tolist()):
        yield whole_stream.take(size, start).named(f"chunk {chunk}")
        start += size


def _runs_in_random_order(chunk_of: Tensor, class_sizes: Tensor, rng: torch.Generator) -> Tensor:
    """Order samples, given class after class, by chunk, and in a chunk by class in random order."""
    classes = len(class_sizes)
    class_of = torch.repeat_interleave(torch.arange(classes), class_sizes)
    runs, run_of = torch.unique(chunk_of * classes + class_of, return_inverse=True)
    turns = torch.randperm(len(runs), generator=rng)
    turns = turns[torch.argsort(runs[turns] // classes, stable=True)]
    rank = torch.empty_like(turns)
    rank[turns] = torch.arange(len(runs))
    return torch.argsort(rank[run_of], stable=True)


def _dirichlet(open_chunks: Tensor, concentration: float, rng: torch.Generator) -> Tensor:
    """Draw shares that sum to 1 over the open chunks, and are 0 elsewhere.

    A gamma variate of shape a is one of shape a + 1 times u^(1/a): its logarithm stays finite where for a small
    concentration the variate itself would be 0 everywhere.
    """
    shape = torch.full((len(open_chunks),), concentration + 1.0, dtype=torch.float64)
    log_gamma = torch._standard_gamma(shape, generator=rng).log()
    log_gamma += torch.rand(len(shape), generator=rng, dtype=torch.float64).log() / concentration
    return torch.softmax(log_gamma.masked_fill(~open_chunks, -torch.inf), 0)


def _long_tailed(data: Segment, rng: torch.Generator, classes: Tensor, imbalance: float) -> Segment:
    profile = [imbalance ** (-c / (len(classes) - 1)) for c in range(len(classes))]
    members = [shuffled(places, rng) for places in places_of(data, [[c] for c in classes.tolist()])]
    # What is whole on paper must not fall below it in floating point.
    largest = min(int(len(places) / part + 1e-9) for places, part in zip(members, profile))
    kept = [places[: max(1, int(largest * part + 1e-9))] for places, part in zip(members, profile)]
    return data.at(torch.cat(kept)).shuffle(rng).named("long tail")
