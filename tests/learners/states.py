"""Comparing what learners, memories and adapters have learned."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor


def kept(part) -> object:
    """Copy of a part's state that later steps cannot change."""
    return copy.deepcopy(part.state_dict())


def same(a: object, b: object) -> bool:
    """Whether two states are equal, bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b
