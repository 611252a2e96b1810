"""How many weights of each layer a sparse network keeps, and which ones are dropped and grown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from driftline.errors import ConfigError


def uniform(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """Return the same density for every layer."""
    return dict.fromkeys(shapes, density)


def erdos_renyi_kernel(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """Return densities by layer that go with the sum of a weight's dimensions over their product (ERK).

    Small layers stay denser than large ones. Layers that would have more than all their weights are kept whole, and
    the others share what is left.

    Parameters
    ----------
    shapes : mapping of str to sequence of int
        Shapes of the weights.
    density : float
        Share of all weights together, within (0, 1].

    Notes
    -----
    Evci et al., "Rigging the lottery: making all tickets winners" (ICML 2020), after Mocanu et al. (2018).

    Examples
    --------
    >>> found = erdos_renyi_kernel({"first": (100, 784), "second": (10, 100)}, 0.1)
    >>> {name: round(share, 3) for name, share in found.items()}
    {'first': 0.09, 'second': 0.879}
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    whole: set[str] = set()
    while True:
        left = density * sum(sizes.values()) - sum(sizes[name] for name in whole)
        weighed = sum(raw[name] * size for name, size in sizes.items() if name not in whole)
        scale = left / weighed if weighed else 0.0
        over = [name for name in shapes if name not in whole and scale * raw[name] > 1]
        if not over:
            return {name: 1.0 if name in whole else scale * raw[name] for name in shapes}
        largest = max(raw[name] for name in over)
        whole |= {name for name in over if raw[name] == largest}


ALLOCATIONS = {"erk": erdos_renyi_kernel, "uniform": uniform}


def kept(shapes: Mapping[str, Sequence[int]], density: float, allocation: str) -> dict[str, int]:
    """Return how many weights each layer keeps.

    Raises
    ------
    ConfigError
        When a layer would keep none, through which nothing could pass.
    """
    shares = ALLOCATIONS[allocation](shapes, density)
    counts = {name: round(share * math.prod(shapes[name])) for name, share in shares.items()}
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(
                f"density={density:g} leaves none of the {math.prod(shapes[name])} weights of {name!r}, so nothing "
                f"would pass through it; give a larger density, {'' if allocation == 'erk' else 'allocation=erk, '}"
                "or layers= without it"
            )
    return counts


def share_at(step: int, fraction: float, final: float, decay: int | None) -> float:
    """Return the share of weights that is exchanged at a step: half a cosine from ``fraction`` to ``final``, then 0.

    Examples
    --------
    >>> [round(share_at(step, 0.5, 0.1, 100), 2) for step in (0, 50, 100, 101)]
    [0.5, 0.3, 0.1, 0]
    """
    if decay is None:
        return fraction
    return 0 if step > decay else final + (fraction - final) * (1 + math.cos(math.pi * step / decay)) / 2


def top(scores: Tensor, count: int) -> Tensor:
    """Mark the ``count`` highest scores along the last dimension.

    Examples
    --------
    >>> top(torch.tensor([3.0, 1.0, 2.0]), 2)
    tensor([ True, False,  True])
    """
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    return chosen.scatter_(-1, scores.topk(count, dim=-1).indices, True)


def exchange(mask: Tensor, size: Tensor, score: Tensor, count: int) -> Tensor:
    """Return a mask in which the ``count`` smallest weights gave way to as many with the highest scores.

    Parameters
    ----------
    mask : Tensor, shape (R?, n)
        Bool: weights that are in use.
    size : Tensor, shape (R?, n)
        How much each of them matters.
    score : Tensor, shape (R?, n)
        How much each of the others is wanted; one that was just dropped may come back.
    count : int
        How many, at most as many as are in use.

    Examples
    --------
    >>> mask, size = torch.tensor([True, True, False, False]), torch.tensor([0.1, 2.0, 0.0, 0.0])
    >>> exchange(mask, size, torch.tensor([0.0, 0.0, 0.5, 0.7]), 1)
    tensor([False,  True, False,  True])
    """
    remaining = mask & ~top(size.neg().masked_fill(~mask, -math.inf), count)
    return remaining | top(score.masked_fill(remaining, -math.inf), count)
