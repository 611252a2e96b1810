"""Several segments into one: after one another, or in turns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from driftline.errors import ScenarioError
from driftline.stream.dataset import Dataset, as_input
from driftline.stream.recipe import Recipe
from driftline.stream.segment import Segment


def concatenate(*segments: Segment) -> Segment:
    """Join segments into one, one after the other; each sample keeps its own recipe.

    Raises
    ------
    ScenarioError
        When the segments' datasets disagree on classes or input shape.
    """
    if not segments:
        raise ScenarioError("concatenate needs at least one segment")
    check_compatible(segments)
    if len({r.data.y is None and r.labels is None for s in segments for r in s.recipes}) > 1:
        raise ScenarioError(
            f"{segments[0].dataset.name} and what is joined to it: some have labels and some have none; "
            "yield them as segments of their own"
        )
    recipes: list[Recipe] = []
    which = []
    for segment in segments:
        numbers = []
        for recipe in segment.recipes:
            if not any(recipe is known for known in recipes):
                recipes.append(recipe)
            numbers.append(next(i for i, known in enumerate(recipes) if known is recipe))
        lines = torch.zeros(len(segment), dtype=torch.long) if segment.which is None else segment.which.long()
        which.append(torch.tensor(numbers)[lines])
    joined = torch.cat(which).to(torch.int32) if len(recipes) > 1 else None
    names = [s.name for s in segments if s.name]
    judged = None
    if all(s.judged is not None for s in segments):
        judged = tuple(dict.fromkeys(c for s in segments for c in s.judged or ()))
    return Segment(torch.cat([s.rows for s in segments]), tuple(recipes), joined, "+".join(names), judged)


def interleave(*segments: Segment, rng: torch.Generator | None = None) -> Segment:
    """Merge segments into one, each keeping its own order.

    Parameters
    ----------
    *segments : Segment
        What to merge.
    rng : torch.Generator, optional
        Draw the next sample's segment at random, in proportion to what is left of each. Default: spread each
        segment evenly over the whole.

    Examples
    --------
    >>> import torch
    >>> from driftline import Dataset
    >>> data = Segment.of(Dataset(torch.arange(6.0).unsqueeze(1), torch.tensor([0, 0, 0, 1, 1, 1])))
    >>> interleave(data.classes(0), data.classes(1)).rows.tolist()
    [0, 3, 1, 4, 2, 5]
    """
    joined = concatenate(*segments)
    lengths = [len(s) for s in segments]
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    if rng is not None:
        owner = owner[torch.randperm(len(owner), generator=rng)]
    else:
        due = torch.cat([(torch.arange(n, dtype=torch.float64) + 0.5) / max(n, 1) for n in lengths])
        owner = owner[torch.argsort(due, stable=True)]
    return joined.at(in_order(owner, lengths))


def in_order(owner: Tensor, lengths: Sequence[int]) -> Tensor:
    """Places in a concatenation of parts, given whose turn it is: every part is read in its own order.

    Parameters
    ----------
    owner : Tensor, shape (n,)
        Number of the part that gives each sample; part i occurs at most ``lengths[i]`` times.
    lengths : sequence of int
        Length of each part.
    """
    places = torch.empty_like(owner)
    offset = 0
    for number, length in enumerate(lengths):
        turns = (owner == number).nonzero().flatten()
        if len(turns) > length:
            raise ScenarioError(f"part {number} has {length} samples, but {len(turns)} were asked for")
        places[turns] = offset + torch.arange(len(turns))
        offset += length
    return places


def check_compatible(segments: Sequence[Segment]) -> None:
    """Raise unless all recipes of these segments agree on classes, input shape and dtype.

    What transforms make of samples is not known here; where they are mixed, the reader looks.
    """
    first = segments[0].dataset
    dtype = _seen(first)
    for segment in segments:
        for recipe in segment.recipes:
            data = recipe.data
            if len(data.classes) != len(first.classes):
                raise ScenarioError(
                    f"{data.name} has {len(data.classes)} classes and {first.name} {len(first.classes)}; "
                    "a stream has one label space"
                )
            if recipe.transforms or segments[0].recipes[0].transforms:
                continue
            if data.input_shape != first.input_shape or _seen(data) != dtype:
                raise ScenarioError(
                    f"{data.name} has samples of shape {data.input_shape} and {_seen(data)}, {first.name} of "
                    f"{first.input_shape} and {dtype}; bring them to one form with .transform(...)"
                )


def _seen(data: Dataset) -> torch.dtype:
    """Dtype in which samples reach a learner."""
    return as_input(data.x[:0]).dtype
