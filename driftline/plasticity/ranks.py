"""Ranks of a matrix of features that count only what matters of it, all from its singular values.

The same word stands for different things in the literature, so names here follow definitions: what Dohare et al.
(2024) and the Plasticine benchmark call stable rank is :func:`srank`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def singular_values(features: Tensor) -> Tensor:
    """Singular values in descending order, of one matrix or of many.

    Parameters
    ----------
    features : Tensor, shape (..., samples, units)
        Leading dimensions (replicas) are kept.

    Returns
    -------
    Tensor, shape (..., min(samples, units))
        In float64 (computed in float32 when features are float32 or shorter). All NaN for a matrix with NaN or Inf.

    Examples
    --------
    >>> singular_values(torch.diag(torch.tensor([1.0, 3.0, 0.0])))
    tensor([3., 1., 0.], dtype=torch.float64)
    """
    if features.dtype != torch.float64:
        features = features.float()
    finite = features.isfinite().all(-1).all(-1)
    # LAPACK raises for NaN; a diverged network is to be measured, not to stop the run.
    values = torch.linalg.svdvals(torch.where(finite[..., None, None], features, 0.0)).double()
    return torch.where(finite[..., None], values, torch.nan)


def effective_rank(values: Tensor) -> Tensor:
    """Exponential of the entropy of the singular values' shares p = sigma / sum(sigma): exp(-sum(p ln p)).

    Parameters
    ----------
    values : Tensor, shape (..., k)
        Singular values.

    Returns
    -------
    Tensor, shape (...)
        In [1, k]; 0 for a matrix of zeros (undefined in the paper, 1 in Dohare et al.'s code).

    Notes
    -----
    Roy and Vetterli, "The effective rank: a measure of effective dimensionality" (2007).

    Examples
    --------
    >>> effective_rank(torch.tensor([2.0, 2.0, 0.0])).item()
    2.0
    """
    total = values.sum(-1, keepdim=True)
    return _unless_zero(torch.special.entr(values / total).sum(-1).exp(), total)


def stable_rank(values: Tensor) -> Tensor:
    """Squared Frobenius norm by squared spectral norm: sum(sigma^2) / max(sigma)^2.

    Takes what :func:`effective_rank` takes; in [1, k], 0 for a matrix of zeros.

    Examples
    --------
    >>> stable_rank(torch.tensor([2.0, 1.0, 0.0])).item()
    1.25
    """
    top = values.amax(-1, keepdim=True)
    return _unless_zero((values / top).square().sum(-1), top)


def srank(values: Tensor, delta: float = 0.01) -> Tensor:
    """Least k such that the k largest singular values make up at least 1 - ``delta`` of the sum of all.

    Takes what :func:`effective_rank` takes; a whole number as floating point, 0 for a matrix of zeros.

    Notes
    -----
    Kumar et al., "Implicit under-parameterization inhibits data-efficient deep reinforcement learning" (2021). For
    a matrix of zeros the code of Dohare et al. gives 1.

    Examples
    --------
    >>> srank(torch.tensor([98.0, 1.0, 0.6, 0.4])).item()
    2.0
    """
    return _least(values, delta)


def approximate_rank(values: Tensor, delta: float = 0.01) -> Tensor:
    """Least k such that the k largest squared singular values make up at least 1 - ``delta`` of the sum of all.

    Takes what :func:`effective_rank` takes; a whole number as floating point, 0 for a matrix of zeros.

    Notes
    -----
    Yang et al., "Harnessing structures for value-based planning and reinforcement learning" (2020).

    Examples
    --------
    >>> approximate_rank(torch.tensor([10.0, 2.0, 0.1])).item()
    2.0
    """
    return _least(values.square(), delta)


def _least(values: Tensor, delta: float) -> Tensor:
    shares = values.cumsum(-1)
    total = shares[..., -1:]
    return _unless_zero((shares / total < 1 - delta).sum(-1) + 1.0 + 0 * total[..., 0], total)


def _unless_zero(rank: Tensor, size: Tensor) -> Tensor:
    """Return the rank, but 0 where ``size`` (..., 1) is 0."""
    return torch.where(size[..., 0] == 0, 0.0, rank)
