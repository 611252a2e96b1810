"""How large weights, gradients and updates are, and how much of its loss one update takes away.

Every function takes the tensors of a whole network, as ``model.parameters()`` gives them, and pools over all their
entries. With ``replicas``, every tensor has that dimension first, and so has every result.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from driftline.errors import InputError


def matrices(parameters: Iterable[Tensor], replicas: int | None = None) -> list[Tensor]:
    """Return the weight matrices and kernels among parameters: those with at least two dimensions.

    Examples
    --------
    >>> [tuple(w.shape) for w in matrices(torch.nn.Linear(3, 2).parameters())]
    [(2, 3)]
    """
    return [p for p in parameters if p.dim() >= (2 if replicas is None else 3)]


def weight_magnitude(weights: Iterable[Tensor], replicas: int | None = None) -> Tensor:
    """Mean abs(theta) over all entries of all tensors together.

    Parameters
    ----------
    weights : iterable of Tensor
        All parameters (as Dohare et al. do for CIFAR-100), or their :func:`matrices`, or one layer's weight.
    replicas : int, optional
        Number of replicas, the first dimension of every tensor.

    Returns
    -------
    Tensor, shape () or (replicas,)
        In float64.

    Raises
    ------
    InputError
        When there are no weights.

    Examples
    --------
    >>> weight_magnitude([torch.tensor([[1.0, -3.0]]), torch.tensor([2.0])]).item()
    2.0
    """
    tensors = list(weights)
    return total_norm(tensors, 1, replicas) / _size(tensors, replicas)


def total_norm(tensors: Iterable[Tensor], order: float = 2, replicas: int | None = None) -> Tensor:
    """Norm of all entries of all tensors together: (sum abs(theta)^order)^(1/order); order 2 or 1.

    Takes and returns what :func:`weight_magnitude` does; of no tensors: an :class:`InputError`.

    Examples
    --------
    >>> both = [torch.tensor([[3.0]]), torch.tensor([-4.0])]
    >>> total_norm(both).item(), total_norm(both, 1).item()
    (5.0, 7.0)
    """
    norms = [torch.linalg.vector_norm(flat, order, -1, dtype=torch.float64) for flat in _flat(list(tensors), replicas)]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms), order, 0)
    return norm


def nonzero_share(tensors: Iterable[Tensor], replicas: int | None = None) -> Tensor:
    """Share of entries that are not 0, of all tensors together (the l0 norm of Elsayed and Mahmood, 2024).

    Examples
    --------
    >>> nonzero_share([torch.tensor([[0.0, 1.0]]), torch.tensor([2.0, 3.0])]).item()
    0.75
    """
    tensors = list(tensors)
    count = torch.stack([(flat != 0).sum(-1) for flat in _flat(tensors, replicas)]).sum(0)
    return count.double() / _size(tensors, replicas)


def gradient_norm(parameters: Iterable[Tensor], order: float = 2, replicas: int | None = None) -> Tensor:
    """:func:`total_norm` of the gradients that the last backward pass left in ``p.grad``; NaN when it left none.

    Examples
    --------
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> gradient_norm(layer.parameters()).item()
    nan
    >>> layer(torch.tensor([[3.0, 4.0]])).sum().backward()
    >>> gradient_norm(layer.parameters()).item()
    5.0
    """
    tensors = list(parameters)
    dense = [p.grad.to_dense() for p in tensors if p.grad is not None]
    if dense or not tensors:
        return total_norm(dense, order, replicas)
    return tensors[0].new_full(() if replicas is None else (replicas,), torch.nan, dtype=torch.float64)


def update_norm(before: Iterable[Tensor], after: Iterable[Tensor], replicas: int | None = None) -> Tensor:
    """Euclidean norm of the change of all parameters together: sqrt(sum (theta_after - theta_before)^2).

    Raises
    ------
    InputError
        When they are not as many, or none.

    Examples
    --------
    >>> update_norm([torch.zeros(2)], [torch.tensor([3.0, 4.0])]).item()
    5.0
    """
    old, new = list(before), list(after)
    if len(old) != len(new):
        raise InputError(f"{len(old)} tensors before the update, {len(new)} after it; give the same parameters")
    return total_norm([b - a for a, b in zip(old, new)], 2, replicas)


def weight_rank(weights: Iterable[Tensor]) -> Tensor:
    """Sum of the numerical ranks of weight matrices (..., out, in), by the sum of their highest possible ranks.

    Notes
    -----
    Elsayed and Mahmood, "Addressing loss of plasticity and catastrophic forgetting in continual learning" (2024).
    Singular values count above max(out, in) * eps * the largest, as ``torch.linalg.matrix_rank`` has it. Leading
    dimensions (replicas) are kept.

    Examples
    --------
    >>> weight_rank([torch.ones(2, 3), torch.eye(2)]).item()
    0.75
    """
    tensors = list(weights)
    if not tensors:
        raise InputError("no weight matrices to take the rank of")
    ranks = torch.stack([torch.linalg.matrix_rank(w) for w in tensors]).sum(0)
    return ranks.double() / sum(min(w.shape[-2:]) for w in tensors)


def sample_plasticity(before: Tensor, after: Tensor) -> Tensor:
    """Share of its loss on a batch that an update on the same batch took away: clamp(1 - after / before, 0, 1).

    Parameters
    ----------
    before, after : Tensor, shape () or (replicas,)
        Loss before and after the update. A loss before below 1e-8 counts as 1e-8.

    Returns
    -------
    Tensor
        In float64; NaN where a loss is NaN.

    Notes
    -----
    Elsayed and Mahmood, "Addressing loss of plasticity and catastrophic forgetting in continual learning" (2024).

    Examples
    --------
    >>> sample_plasticity(torch.tensor([2.0, 1.0]), torch.tensor([0.5, 3.0]))
    tensor([0.7500, 0.0000], dtype=torch.float64)
    """
    return (1 - after.double() / before.double().clamp(min=1e-8)).clamp(0, 1)


def _flat(tensors: list[Tensor], replicas: int | None) -> list[Tensor]:
    """Return the tensors as vectors, one for each replica."""
    _size(tensors, replicas)
    return [t.detach().reshape(-1) if replicas is None else t.detach().reshape(replicas, -1) for t in tensors]


def _size(tensors: list[Tensor], replicas: int | None) -> int:
    """Return the number of entries of one replica."""
    if not tensors:
        raise InputError("no tensors to measure; give at least one")
    return sum(t.numel() for t in tensors) // (replicas or 1)
