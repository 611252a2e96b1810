"""Losses for targets that are numbers, of scores (B, K): means over the batch and the outputs."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from driftline.errors import ConfigError, InputError


def squared_error(scores: Tensor, y: Tensor) -> Tensor:
    """Return the mean of (score - target)^2 over the batch and the outputs.

    Parameters
    ----------
    scores : Tensor, shape (B, K)
        What the model gives.
    y : Tensor, shape (B, K), or (B,) where K is 1
        Targets, of any real dtype.

    Raises
    ------
    InputError
        For any other pair of shapes; nothing is broadcast.

    Examples
    --------
    >>> import torch
    >>> squared_error(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0]))
    tensor(2.)
    >>> squared_error(torch.zeros(4, 2), torch.zeros(4))
    Traceback (most recent call last):
    driftline.errors.InputError: squared_error: scores of shape (4, 2) and targets of shape (4,); give targets (4, 2)
    """
    return F.mse_loss(scores, _targets(scores, y, "squared_error"))


def absolute_error(scores: Tensor, y: Tensor) -> Tensor:
    """Return the mean of abs(score - target); parameters and errors as for :func:`squared_error`.

    Examples
    --------
    >>> import torch
    >>> absolute_error(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0]))
    tensor(1.)
    """
    return F.l1_loss(scores, _targets(scores, y, "absolute_error"))


def huber_error(scores: Tensor, y: Tensor, delta: float = 1.0) -> Tensor:
    """Return the mean of Huber's error: half the square up to ``delta``, linear beyond, so that outliers pull less.

    Parameters
    ----------
    scores, y : Tensor
        As for :func:`squared_error`.
    delta : float
        Where the square ends, in the targets' unit, above 0.

    Raises
    ------
    InputError
        As for :func:`squared_error`.
    ConfigError
        When ``delta`` is not above 0.

    Notes
    -----
    Huber, "Robust Estimation of a Location Parameter" (Annals of Mathematical Statistics, 1964).

    Examples
    --------
    >>> import torch
    >>> huber_error(torch.tensor([[1.0], [5.0]]), torch.tensor([0.0, 0.0]))
    tensor(2.5000)
    """
    if not delta > 0:
        raise ConfigError(f"delta={delta}: must be above 0")
    return F.huber_loss(scores, _targets(scores, y, "huber_error"), delta=delta)


def _targets(scores: Tensor, y: Tensor, name: str) -> Tensor:
    """Return targets in the scores' shape and dtype."""
    if scores.dim() == 2 and y.shape == scores.shape[:1] and scores.shape[1] == 1:
        y = y.unsqueeze(1)
    if scores.dim() != 2 or y.shape != scores.shape:
        give = f"give targets {tuple(scores.shape)}" if scores.dim() == 2 else "give scores (batch, outputs)"
        raise InputError(f"{name}: scores of shape {tuple(scores.shape)} and targets of shape {tuple(y.shape)}; {give}")
    return y.to(scores.dtype)
