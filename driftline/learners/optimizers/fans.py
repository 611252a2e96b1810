"""Inputs of each unit, read off the parameters in their order."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def fan_ins(params: Sequence[Tensor], replicas: int | None) -> list[int | None]:
    """Return for each parameter how many inputs its units have.

    Weights have at least two dimensions of their own. A vector, as a bias is, has those of the weight before it;
    None where there is none.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5), torch.nn.Flatten(), torch.nn.Linear(10, 4))
    >>> fan_ins(list(model.parameters()), replicas=None)
    [75, 75, 10, 10]
    """
    lead = 0 if replicas is None else 1
    found: list[int | None] = []
    for p in params:
        if p.dim() - lead >= 2:
            found.append(math.prod(p.shape[lead + 1 :]))
        else:
            found.append(found[-1] if found else None)
    return found
