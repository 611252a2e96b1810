"""Soft orthogonality of weight matrices: singular values near one, so that signals and gradients keep their size."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.errors import ConfigError, unknown
from driftline.learners.penalties.base import ModelPenalty, check_place, factor, gradients, nothing, rates
from driftline.learners.replicas import Setting, check_setting

Side = Literal["smaller", "rows", "columns", "both"]
SIDES = ("smaller", "rows", "columns", "both")


class Orthogonal(ModelPenalty):
    """λ Σ ‖W Wᵀ − s I‖² over weight matrices: Parseval regularization and its relatives.

    Parameters
    ----------
    model : nn.Module
        The model that will be trained. Kernels of convolutions count as matrices (out, in · height · width).
    strength : float or sequence of float
        λ, at least 0; one number, or one for each replica. Useful from about 1e-4 to 1e-3.
    side : {"smaller", "rows", "columns", "both"}
        Which Gram matrix: W Wᵀ ("rows", Parseval), Wᵀ W ("columns"), the smaller of the two, which alone can become
        the identity, or the sum of both terms ("both", double soft orthogonality).
    scale : float or sequence of float
        s, above 0.
    last_layer : bool
        Whether the last weight matrix is held, too.
    decoupled : bool
        False: the gradient is part of the loss's, so it passes through the optimizer's moments; for
        ``penalties=[...]``. True: W ← W − lr λ 4 (W Wᵀ − s I) W after each optimizer step; for ``renewers=[...]``.
    replicas : int, optional
        How many runs the model holds in lockstep.

    Raises
    ------
    ConfigError
        For a setting out of range, the wrong place, or a model without a trainable weight matrix.

    Notes
    -----
    Chung et al., "Parseval Regularization for Continual Reinforcement Learning" (NeurIPS 2024): rows of hidden layers.
    Bansal, Chen & Wang, "Can We Gain More from Orthogonality Regularizations in Training Deep Networks?" (NeurIPS
    2018): the smaller side, or both. The decoupled form is AdamO's (2026), with its c as λ. Costs two products of
    matrices per weight, which for batches below the layer's width is more than the step itself.

    Examples
    --------
    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    >>> penalty = Orthogonal(model, strength=1.0)
    >>> penalty(model).item()
    9.0
    >>> penalty.add_gradients(model)
    >>> model.weight.grad
    tensor([[24.,  0.],
            [ 0.,  0.]])
    """

    def __init__(
        self,
        model: nn.Module,
        strength: Setting = 1e-3,
        *,
        side: Side = "smaller",
        scale: Setting = 1.0,
        last_layer: bool = True,
        decoupled: bool = False,
        replicas: int | None = None,
    ) -> None:
        if side not in SIDES:
            raise unknown("side", str(side), SIDES)
        check_setting("scale", scale, replicas, low=1e-30)
        super().__init__(model, strength, replicas)
        self.side, self.scale, self.last_layer = side, scale, last_layer
        self.decoupled = self.after_step = decoupled
        self._lead = 0 if replicas is None else 1
        matrices = [name for name, p in self._own.items() if p.dim() >= self._lead + 2]
        self._own = {name: self._own[name] for name in (matrices if last_layer else matrices[:-1])}
        if not self._own:
            but = "" if last_layer else " but its last"
            raise ConfigError(f"Orthogonal: the model has no trainable weight matrix{but}")

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the term."""
        check_place(self, after_step=False)
        total = nothing(model)
        if self.off:
            return total
        for p in self.named_parameters(model).values():
            w = self._matrix(p)
            for tall in self._sides(w):
                term = self._excess(w.mT if tall else w).square()
                total = total + (term * factor(self.strength, term)).sum()
        return total

    @torch.no_grad()
    def add_gradients(self, model: nn.Module) -> None:
        """Add λ 4 (W Wᵀ − s I) W to the gradients."""
        check_place(self, after_step=False)
        if self.off:
            return
        named = self.named_parameters(model)
        for grad, p in zip(gradients(named), named.values()):
            grad.add_(self._slope(p))

    @torch.no_grad()
    def renew(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Move each matrix that the optimizer holds by −lr times the term's gradient; for the decoupled form."""
        check_place(self, after_step=True)
        if self.off:
            return
        learning_rates = {id(p): rate for p, rate in rates(optimizer)}
        for p in self.named_parameters(model).values():
            if id(p) in learning_rates:
                p.sub_(self._slope(p) * learning_rates[id(p)])

    def _slope(self, p: Tensor) -> Tensor:
        """Return the term's gradient by a parameter."""
        w = self._matrix(p)
        slopes = [self._excess(w.mT).matmul(w.mT).mT if tall else self._excess(w).matmul(w) for tall in self._sides(w)]
        total = slopes[0] if len(slopes) == 1 else slopes[0] + slopes[1]
        return (total * 4.0).reshape(p.shape) * factor(self.strength, p)

    def _excess(self, w: Tensor) -> Tensor:
        """Return W Wᵀ − s I."""
        gram = w @ w.mT
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return gram - identity * factor(self.scale, gram)

    def _sides(self, w: Tensor) -> tuple[bool, ...]:
        """Return for each Gram matrix whether it is Wᵀ W."""
        tall = w.shape[-2] > w.shape[-1]
        return {"smaller": (tall,), "rows": (False,), "columns": (True,), "both": (False, True)}[self.side]

    def _matrix(self, p: Tensor) -> Tensor:
        """Return a weight as (out, in) or (R, out, in)."""
        return p if p.dim() == self._lead + 2 else p.flatten(self._lead + 1)

    def to(self, device: torch.device | str) -> Self:
        """Do nothing: nothing but the model is remembered."""
        return self
