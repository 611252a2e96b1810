"""Shares of hidden units by what they do on a batch: dormant, dead, rarely active, active.

A layer's activations have shape (samples, units, *space): a unit is a feature of a linear layer or a channel of a
convolution. With ``replicas``, every tensor has that dimension first and so has every result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from driftline.errors import ConfigError, InputError

Kind = Literal["relu", "tanh", "sigmoid"]
"""What counts as active: above zero; or not saturated, for activations that are bounded on both sides."""
Pooling = Literal["units", "layers"]
"""Whether a share is that of all units together, or the mean of the layers' own shares."""
Count = tuple[Tensor, int]
"""How many of how many."""

GUARD = 1e-9
"""Keeps the score of a layer that is silent altogether at 0 (Sokar et al.'s code)."""


def redo_score(activations: Tensor, *, centred: bool = False, replicas: int | None = None) -> Tensor:
    """Mean abs(h) of each unit over samples and space, divided by the mean of that over the layer's units + 1e-9.

    Parameters
    ----------
    activations : Tensor, shape (samples, units, *space)
        Of one layer.
    centred : bool
        Subtract each unit's mean over samples and space first.
    replicas : int, optional
        Number of replicas, the first dimension of ``activations``.

    Returns
    -------
    Tensor, shape (units,) or (replicas, units)
        In float64. A layer without any activity has scores 0.

    Notes
    -----
    Sokar et al., "The dormant neuron phenomenon in deep reinforcement learning" (2023). The paper says that a
    layer's scores sum to 1; its code, followed here, makes their mean 1.

    Examples
    --------
    >>> redo_score(torch.tensor([[0.0, 1.0, -2.0], [0.0, 0.0, 3.0]])).round(decimals=3)
    tensor([0.0000, 0.5000, 2.5000], dtype=torch.float64)
    """
    dims, unit = _dims(activations, replicas)
    if centred:
        activations = activations - activations.mean(dims, keepdim=True)
    size = activations.abs().mean(dims, dtype=torch.float64)
    return size / (size.mean(unit - 1, keepdim=True) + GUARD)


def is_dormant(activations: Tensor, threshold: float = 0.0, *, replicas: int | None = None) -> Tensor:
    """Whether each unit's :func:`redo_score` is at most ``threshold``; (units,) or (replicas, units)."""
    return redo_score(activations, replicas=replicas) <= threshold


def is_rarely_active(activations: Tensor, threshold: float = 0.01, *, replicas: int | None = None) -> Tensor:
    """Whether less than ``threshold`` of each unit's activations are not 0; (units,) or (replicas, units)."""
    dims, _ = _dims(activations, replicas)
    count = (activations != 0).sum(dims)
    return count.double() / (activations.numel() // count.numel()) < threshold


def is_dead(activations: Tensor, *, replicas: int | None = None) -> Tensor:
    """Whether each unit is 0 for every sample, everywhere in space; (units,) or (replicas, units)."""
    dims, _ = _dims(activations, replicas)
    return ~(activations != 0).any(dims)


def is_active(activations: Tensor, kind: Kind = "relu") -> Tensor:
    """Whether each single activation is active: h > 0; tanh: abs(h) <= 0.99; sigmoid: 0.01 <= h <= 0.99."""
    if kind == "relu":
        return activations > 0
    if kind == "tanh":
        return activations.abs() <= 0.99
    if kind == "sigmoid":
        return (activations >= 0.01) & (activations <= 0.99)
    raise ConfigError(f'kind={kind!r}: must be "relu", "tanh" or "sigmoid"')


def dormant_units(
    layers: Sequence[Tensor], threshold: float = 0.0, *, pooling: Pooling = "units", replicas: int | None = None
) -> Tensor:
    """Share of units whose :func:`redo_score` is at most ``threshold``.

    Parameters
    ----------
    layers : sequence of Tensor, shape (samples, units, *space)
        Activations of each hidden layer on one batch.
    threshold : float
        The paper's tau; 0.025 and 0.1 there, 0 in its code.
    pooling : "units" or "layers"
        Share of all units together (Sokar et al.), or the mean of the layers' own shares (Plasticine).
    replicas : int, optional
        Number of replicas, the first dimension of every tensor.

    Returns
    -------
    Tensor, shape () or (replicas,)
        In float64.

    Raises
    ------
    InputError
        When there are no layers, or activations have no dimension of units.

    Examples
    --------
    >>> layers = [torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0, 1.0, 1.0]])]
    >>> dormant_units(layers).item(), dormant_units(layers, pooling="layers").item()
    (0.3333333333333333, 0.375)
    """
    return pooled([counted(is_dormant(h, threshold, replicas=replicas), replicas) for h in layers], pooling)


def rarely_active_units(
    layers: Sequence[Tensor], threshold: float = 0.01, *, pooling: Pooling = "units", replicas: int | None = None
) -> Tensor:
    """Share of units of which less than ``threshold`` of the activations, over samples and space, are not 0.

    Takes and returns what :func:`dormant_units` does.

    Notes
    -----
    Called dormant in the code of Dohare et al., "Loss of plasticity in deep continual learning" (2024).

    Examples
    --------
    >>> rarely_active_units([torch.eye(200)[:, :4]]).item(), rarely_active_units([torch.eye(50)[:, :4]]).item()
    (1.0, 0.0)
    """
    return pooled([counted(is_rarely_active(h, threshold, replicas=replicas), replicas) for h in layers], pooling)


def dead_units(layers: Sequence[Tensor], *, pooling: Pooling = "units", replicas: int | None = None) -> Tensor:
    """Share of units that are exactly 0 for every sample, everywhere in space.

    Takes and returns what :func:`dormant_units` does.

    Examples
    --------
    >>> dead_units([torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])]).item()
    0.6666666666666666
    """
    return pooled([counted(is_dead(h, replicas=replicas), replicas) for h in layers], pooling)


def active_units(
    layers: Sequence[Tensor], kinds: Sequence[Kind] | None = None, *, replicas: int | None = None
) -> Tensor:
    """Share of activations that are active, see :func:`is_active`, pooled over layers, samples, units and space.

    Parameters
    ----------
    layers : sequence of Tensor, shape (samples, units, *space)
        Activations of each hidden layer on one batch.
    kinds : sequence of "relu", "tanh" or "sigmoid", optional
        What counts as active in each layer; default: all that is above 0.
    replicas : int, optional
        Number of replicas, the first dimension of every tensor.

    Returns
    -------
    Tensor, shape () or (replicas,)
        In float64.

    Notes
    -----
    The fraction of active units of Ma et al., "Revisiting plasticity in visual reinforcement learning" (2024): one
    pooled count of activations, not of units, and not a mean of the layers' rates.

    Examples
    --------
    >>> active_units([torch.tensor([[0.0, 1.0], [-1.0, 2.0]])]).item()
    0.5
    >>> active_units([torch.tensor([[0.0, 1.0], [-1.0, 2.0]])], ["tanh"]).item()
    0.25
    """
    kinds = kinds if kinds is not None else ["relu"] * len(layers)
    if len(kinds) != len(layers):
        raise InputError(f"{len(kinds)} kinds for {len(layers)} layers; give one for each")
    for activations in layers:
        _dims(activations, replicas)
    return pooled([counted(is_active(h, kind), replicas) for h, kind in zip(layers, kinds)])


def counted(mask: Tensor, replicas: int | None = None) -> Count:
    """Return how many entries are true, of how many; for each replica."""
    flat = mask.reshape(-1) if replicas is None else mask.reshape(replicas, -1)
    return flat.sum(-1), flat.shape[-1]


def pooled(counts: Sequence[Count], pooling: Pooling = "units") -> Tensor:
    """Return the share of all layers together, or the mean of the layers' shares.

    Raises
    ------
    InputError
        When there are no layers.
    ConfigError
        For an unknown way of pooling.
    """
    if not counts:
        raise InputError("no activations of hidden layers; give at least one layer's")
    if pooling == "units":
        return torch.stack([count for count, _ in counts]).sum(0).double() / sum(size for _, size in counts)
    if pooling == "layers":
        return torch.stack([count.double() / size for count, size in counts]).mean(0)
    raise ConfigError(f'pooling={pooling!r}: must be "units" or "layers"')


def _dims(activations: Tensor, replicas: int | None) -> tuple[list[int], int]:
    """Return the dimensions of samples and space, and that of the units."""
    samples = 0 if replicas is None else 1
    wanted = "(samples, units, ...)" if replicas is None else f"({replicas}, samples, units, ...)"
    if activations.dim() < samples + 2 or (replicas is not None and len(activations) != replicas):
        raise InputError(f"activations of shape {tuple(activations.shape)}: expected {wanted}")
    return [samples, *range(samples + 2, activations.dim())], samples + 1
