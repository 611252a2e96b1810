"""Losses that need no labels."""

from __future__ import annotations

import math

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


def entropy_level(given: float | None, scores: Tensor, share: float) -> float:
    """Return a level of entropy: the given one, or a share of the largest that scores (B, C) can have, ln C.

    Examples
    --------
    >>> import torch
    >>> round(entropy_level(None, torch.zeros(1, 10), share=0.4), 3)
    0.921
    """
    return share * math.log(scores.shape[1]) if given is None else given
