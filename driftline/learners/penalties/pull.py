"""The penalty λ Σ (θ − target)² and its gradient, for all penalties that pull each parameter towards some place."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.learners.penalties.base import Penalty, check_place, factor, gradients, nothing, rates


class Pull(Penalty):
    """λ Σ w (θ − target)², in the loss or as a step of its own after the optimizer's; a subclass says where to.

    Attributes
    ----------
    after_step : bool
        False: it stands among a learner's ``penalties``. True (decoupled): among its ``renewers``.
    averaged : bool
        Whether w is 1 / the number of a tensor's entries, not 1.
    """

    after_step: bool = False
    averaged: bool = False

    @abstractmethod
    def targets(self, model: nn.Module, training: bool) -> Mapping[str, Tensor] | None:
        """Return where each of a model's parameters is pulled to; None: all of them to 0.

        Parameters
        ----------
        model : nn.Module
            Which.
        training : bool
            Whether this is a step of training; otherwise what is remembered stays as it is.
        """

    def slope(self, p: Tensor) -> float | Tensor:
        """Return 2 λ w for a parameter, the derivative of its squares."""
        share = 2.0 * (self.replicas or 1) / p.numel() if self.averaged else 2.0
        return factor(self.strength, p) * share

    def __call__(self, model: nn.Module) -> Tensor:
        """Return λ Σ w (θ − target)²."""
        check_place(self, after_step=False)
        total = nothing(model)
        if self.off:
            return total
        targets = self.targets(model, training=torch.is_grad_enabled())
        for name, p in self.named_parameters(model).items():
            away = p if targets is None else p - targets[name]
            total = total + (away.square() * (self.slope(p) * 0.5)).sum()
        return total

    @torch.no_grad()
    def add_gradients(self, model: nn.Module) -> None:
        """Add 2 λ w (θ − target) to the gradients, in two passes."""
        check_place(self, after_step=False)
        if self.off:
            return
        named = self.named_parameters(model)
        grads = gradients(named)
        targets = self.targets(model, training=True)
        if isinstance(self.strength, float | int) and not self.averaged:
            torch._foreach_add_(grads, list(named.values()), alpha=2.0 * self.strength)
            if targets is not None:
                torch._foreach_add_(grads, [targets[name] for name in named], alpha=-2.0 * self.strength)
            return
        for grad, (name, p) in zip(grads, named.items()):
            slope = self.slope(p)
            if isinstance(slope, Tensor):
                grad.addcmul_(p if targets is None else p - targets[name], slope)
            else:
                grad.add_(p if targets is None else p - targets[name], alpha=slope)

    @torch.no_grad()
    def renew(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Move each parameter that the optimizer holds by −lr · 2 λ w (θ − target); for the decoupled form."""
        check_place(self, after_step=True)
        if self.off:
            return
        learning_rates = {id(p): rate for p, rate in rates(optimizer)}
        targets = self.targets(model, training=True)
        for name, p in self.named_parameters(model).items():
            if id(p) in learning_rates:
                share = learning_rates[id(p)] * self.slope(p)
                if targets is None:
                    p.mul_(1.0 - share)
                else:
                    p.lerp_(targets[name], share.to(p.dtype) if isinstance(share, Tensor) else share)
