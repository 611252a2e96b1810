"""A penalty that keeps the effective rank of the features up: as many directions in use as there can be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, cast

import torch
from torch import Tensor, nn

from driftline.errors import CheckpointError, ConfigError
from driftline.learners.penalties.base import State, factor, nothing
from driftline.learners.penalties.features import FeaturePenalty
from driftline.learners.replicas import Setting


class EffectiveRank(FeaturePenalty):
    """λ (k − effective rank of the features), where k is the largest that there can be; in ``penalties=[...]``.

    The effective rank is exp(−Σ p ln p), p the singular values by their sum.

    Parameters
    ----------
    model : nn.Module
        The model that will be trained.
    strength : float or sequence of float
        λ, at least 0; one number, or one for each replica.
    samples : int, optional
        How many of the most recent samples' features make the matrix: the batch's own, and before it older ones, which
        are taken as they were. Default: the batch alone, whose rank is at most its size; of a single sample it is
        always 1, and nothing is pulled.
    layer : str, optional
        Name of the linear layer whose inputs are the features. Default: the last one.
    replicas : int, optional
        How many runs the model holds in lockstep.

    Raises
    ------
    ConfigError
        For a setting out of range, a model without linear layers, or none of that name.

    Notes
    -----
    The term of L2-ER (2025), which goes with :class:`L2` and takes all layers' mean: give one penalty for each layer,
    each with its share. Effective rank: Roy & Vetterli (EUSIPCO 2007). Singular values below the root of the dtype's
    precision, by the largest, count as 0: their directions are rounding errors. Costs a singular value decomposition.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    >>> _ = model[0].weight.data.copy_(torch.eye(2))
    >>> penalty = EffectiveRank(model, strength=1.0)
    >>> _ = model(torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    >>> round(penalty(model).item(), 3)
    1.0
    """

    def __init__(
        self,
        model: nn.Module,
        strength: Setting,
        *,
        samples: int | None = None,
        layer: str | None = None,
        replicas: int | None = None,
    ) -> None:
        if samples is not None and (not isinstance(samples, int) or samples < 2):
            raise ConfigError(f"samples={samples}: must be one whole number, at least 2")
        super().__init__(model, strength, layer, replicas)
        self.samples = samples
        self._recent: Tensor | None = None

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the term for the features of the last forward pass; with replicas, the sum of each one's."""
        total = nothing(model)
        if self.off:
            return total
        features = self.take(model)
        if self.samples is not None:
            if self._recent is not None:
                features = torch.cat((self._recent, features), -2)
            features = features[..., -self.samples :, :]
            self._recent = features.detach().clone()
        missing = min(features.shape[-2:]) - differentiable_rank(features)
        return total + (missing * factor(self.strength, missing)).sum()

    def to(self, device: torch.device | str) -> Self:
        """Move recent features to ``device``."""
        self._recent = None if self._recent is None else self._recent.to(device)
        return self

    def state_dict(self) -> State:
        """Return the recent features; none where only the batch counts."""
        return {"recent": self._recent}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When it is of other features; nothing has been changed then.
        """
        if set(state) != {"recent"}:
            raise CheckpointError(f"the state has parts {sorted(state)}, EffectiveRank ['recent']")
        recent = cast("Tensor | None", state["recent"])
        if recent is None:
            self._recent = None
            return
        shape = tuple(recent.shape)
        width = int(self._tapped.in_features)
        fits = shape[:-2] == (() if self.replicas is None else (self.replicas,)) and shape[-1] == width
        if not fits or self.samples is None or shape[-2] > self.samples:
            raise CheckpointError(
                f"the state has recent features of shape {shape}, this penalty {self.samples} x {width}"
            )
        self._recent = recent.detach().to(next(self.model.parameters()), copy=True)


def differentiable_rank(features: Tensor) -> Tensor:
    """Return the effective rank of (..., samples, units), with a gradient; that of a matrix with NaN or Inf is 1.

    Examples
    --------
    >>> round(differentiable_rank(torch.eye(3)).item(), 4)
    3.0
    """
    finite = features.isfinite().all(-1).all(-1)[..., None, None]
    # LAPACK raises for NaN, and one diverged replica is not to stop the others.
    values = torch.linalg.svdvals(torch.where(finite, features, 0.0))
    counted = values > values[..., :1] * torch.finfo(values.dtype).eps ** 0.5
    shares = torch.where(counted, values, 0.0)
    shares = shares / shares.sum(-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    return torch.exp(-(shares * torch.where(counted, shares, 1.0).log()).sum(-1))
