"""Pulls towards zero (L2) and towards the initial parameters (L2-init)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.errors import CheckpointError, unknown
from driftline.learners.penalties.base import ModelPenalty, State, check_tensors, factor, rates
from driftline.learners.penalties.pull import Pull
from driftline.learners.replicas import Setting

VARIANTS = ("paper", "released")


class L2(Pull):
    """λ Σ θ² over all trainable parameters: keeps them small.

    Parameters
    ----------
    strength : float or sequence of float
        λ, at least 0; one number, or one for each replica.
    decoupled : bool
        False: the gradient 2 λ θ is part of the loss's, so it passes through the optimizer's moments; for
        ``penalties=[...]``. True: after each optimizer step θ ← θ − lr · 2 λ θ; for ``renewers=[...]``.
    replicas : int, optional
        How many runs the model holds in lockstep.

    Raises
    ------
    ConfigError
        For a strength below 0, or the wrong place; at the first use when the model has no trainable parameter.

    Notes
    -----
    Torch's ``weight_decay`` is 2 λ, of SGD and Adam in the coupled form, of AdamW in the decoupled one (Loshchilov &
    Hutter, "Decoupled Weight Decay Regularization", ICLR 2019).

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.ones_(model.weight)
    >>> penalty = L2(strength=0.5)
    >>> penalty(model).item()
    1.0
    >>> penalty.add_gradients(model)
    >>> model.weight.grad
    tensor([[1., 1.]])
    """

    def __init__(self, strength: Setting, *, decoupled: bool = False, replicas: int | None = None) -> None:
        super().__init__(strength, replicas)
        self.decoupled = self.after_step = decoupled

    def targets(self, model: nn.Module, training: bool) -> None:
        """Return None: zero."""
        return None


class L2Init(ModelPenalty, Pull):
    """λ Σ (θ − θ₀)² over all trainable parameters, where θ₀ are the initial ones: keeps a network near plastic.

    Parameters
    ----------
    model : nn.Module
        The model at its initialisation: θ₀ is captured here.
    strength : float or sequence of float
        λ, at least 0; one number, or one for each replica. The paper finds 1e-2 best nearly everywhere.
    decoupled : bool
        False: the gradient 2 λ (θ − θ₀) is part of the loss's, so it passes through the optimizer's moments; for
        ``penalties=[...]``. True: after each optimizer step θ ← θ − lr · 2 λ (θ − θ₀); for ``renewers=[...]``.
    variant : {"paper", "released"}
        "released" does as the weight-clipping repository: a renewer that adds lr · λ · θ₀ after each step, where θ₀
        is captured after the first one; the decay towards zero is the optimizer's own, ``weight_decay=strength``.
    replicas : int, optional
        How many runs the model holds in lockstep.

    Raises
    ------
    ConfigError
        For a bad strength or variant, the wrong place, or a model without trainable parameters.

    Notes
    -----
    Kumar, Marklund & Van Roy, "Maintaining Plasticity in Continual Learning via Regenerative Regularization" (2023).
    The released variant is of Elsayed, Lan, Lyle & Mahmood, "Weight Clipping for Deep Continual and Reinforcement
    Learning" (2024); its λ is twice the paper's. The gradient takes two passes over the parameters.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> penalty = L2Init(model, strength=0.5)
    >>> with torch.no_grad():
    ...     _ = model.weight.add_(1.0)
    >>> round(penalty(model).item(), 4)
    1.0

    In a plain loop, add it to the loss, or add its gradient after the backward pass:

    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    >>> model(torch.ones(1, 2)).square().mean().backward()
    >>> penalty.add_gradients(model)
    >>> optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        strength: Setting,
        *,
        decoupled: bool = False,
        variant: Literal["paper", "released"] = "paper",
        replicas: int | None = None,
    ) -> None:
        if variant not in VARIANTS:
            raise unknown("variant", str(variant), VARIANTS)
        super().__init__(model, strength, replicas)
        self.decoupled, self.variant = decoupled, variant
        self.after_step = decoupled or variant == "released"
        self._initial: dict[str, Tensor] = {}
        if variant == "paper":
            self._capture()

    def _capture(self) -> None:
        self._initial = {name: p.detach().clone() for name, p in self._own.items()}

    def targets(self, model: nn.Module, training: bool) -> Mapping[str, Tensor]:
        """Return θ₀."""
        return self._initial

    def renew(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Pull the parameters towards θ₀ after an optimizer step; for the decoupled forms."""
        if self.variant == "paper":
            super().renew(model, optimizer)
        elif not self.off:
            self._add_initial(model, optimizer)

    @torch.no_grad()
    def _add_initial(self, model: nn.Module, optimizer: Optimizer) -> None:
        if not self._initial:
            self._capture()
        named = self.named_parameters(model)
        learning_rates = {id(p): rate for p, rate in rates(optimizer)}
        for name, p in named.items():
            if id(p) in learning_rates:
                p.add_(self._initial[name] * (learning_rates[id(p)] * factor(self.strength, p)))

    def to(self, device: torch.device | str) -> Self:
        """Move θ₀ to ``device``."""
        self._initial = {name: t.to(device) for name, t in self._initial.items()}
        return self

    def state_dict(self) -> State:
        """Return θ₀ by parameter name; empty until it is captured."""
        return {"initial": dict(self._initial)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When it is of another model; nothing has been changed then.
        """
        if "initial" not in state:
            raise CheckpointError(f"the state has parts {sorted(state)}, L2Init ['initial']")
        if self.variant == "released" and not state["initial"]:
            self._initial = {}
        else:
            self._initial = check_tensors({n: p.detach() for n, p in self._own.items()}, state["initial"], "parameters")
