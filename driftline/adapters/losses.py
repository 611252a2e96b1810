"""Losses that need no labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def entropy(scores: Tensor) -> Tensor:
    """Return the entropy of softmax(scores), (B,), in nats.

    Examples
    --------
    >>> import torch
    >>> entropy(torch.zeros(1, 4)).exp().round()
    tensor([4.])
    """
    logs = F.log_softmax(scores, 1)
    return -(logs.exp() * logs).sum(1)


def cross_entropy_to(scores: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of softmax(scores) to softmax(target), (B,), in nats.

    Examples
    --------
    >>> import torch
    >>> cross_entropy_to(torch.zeros(1, 4), torch.randn(1, 4)).exp().round()
    tensor([4.])
    """
    return -(F.softmax(target, 1) * F.log_softmax(scores, 1)).sum(1)
