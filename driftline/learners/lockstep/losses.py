"""A loss of R replicas: the sum of each one's own, so that their gradients stay apart."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from driftline.learners import losses
from driftline.learners.task_loss import TaskCrossEntropy

Loss = Callable[[Tensor, Tensor], Tensor]

MEANS = {
    F.cross_entropy,
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    losses.squared_error,
    losses.absolute_error,
    losses.huber_error,
}
"""Losses that are a mean over samples, so that all replicas' samples can be averaged together."""


def over_replicas(loss: Loss, scores: Tensor, y: Tensor) -> Tensor:
    """Return the sum over replicas of ``loss(scores[i], y[i])``; any loss works, those in :data:`MEANS` at once.

    Examples
    --------
    >>> import torch
    >>> scores, y = torch.zeros(3, 2, 4), torch.zeros(3, 2, dtype=torch.long)
    >>> round(float(over_replicas(F.cross_entropy, scores, y)), 3)
    4.159
    """
    if loss is losses.squared_error and scores.numel() == y.numel():
        # The same as below in fewer operations: in studies of tiny networks each of them counts.
        total = F.mse_loss(scores, y.view(scores.shape), reduction="sum")
        return total if scores[0].numel() == 1 else total / scores[0].numel()
    if isinstance(loss, TaskCrossEntropy):
        return loss(scores, y)
    if loss in MEANS:
        return loss(scores.flatten(0, 1), y.flatten(0, 1)) * len(scores)
    return sum((loss(s, t) for s, t in zip(scores, y)), start=scores.new_zeros(()))
