"""The diagonal of the loss's Hessian, found during the ordinary backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from driftline.errors import ConfigError, InputError, unknown
from driftline.learners.optimizers.backward_rules import has_rule, is_curved, of_parameters, through

OutputCurvature = Callable[[Tensor], Tensor]


@dataclass
class _Layer:
    """A layer as it was used in a forward pass, and the gradient at its output once that is known."""

    module: nn.Module
    x: Tensor
    y: Tensor
    gradient: Tensor | None = None

    def keep(self, gradient: Tensor) -> None:
        self.gradient = gradient


@dataclass
class _Pass:
    """One forward pass of the model."""

    layers: list[_Layer] = field(default_factory=list)
    last: Tensor | None = None


class HesScale:
    """Approximates the diagonal of the Hessian with respect to every parameter, at about the cost of a backward pass.

    It installs forward hooks on the model, so any training loop stays as it is: after ``loss.backward()``,
    :meth:`take` gives the diagonals, summed over the backward passes since it was last called.
    ``UPGD(..., order=2, curvature=HesScale(model))`` calls it at each step.

    Parameters
    ----------
    model : nn.Module
        Linear, Conv2d, elementwise, pooling and flatten modules, each of which hands its output to the next.
    loss : {"cross_entropy", "squared_error"} or callable
        What is minimised: torch's ``cross_entropy`` of scores (B, classes) or ``mse_loss``; or a function from the
        outputs to the diagonal of the loss's Hessian with respect to them.
    reduction : {"mean", "sum"}
        Of that loss; with replicas, of each replica's.
    replicas : int, optional
        Number of runs in lockstep: the model takes (R, B, *input).

    Raises
    ------
    ConfigError
        When the model has a layer without a rule (normalisation, dropout, recurrence, ...); it is named.

    Notes
    -----
    Elsayed, Farrahi, Dangel & Mahmood, "Revisiting Scalable Hessian Diagonal Approximations for Applications in
    Reinforcement Learning" (ICML 2024), after Becker & LeCun (1989): from the exact diagonal at the outputs, a
    layer passes back only what is on the diagonal. This is exact for the last layer, and for networks with one
    hidden layer and a squared error; elsewhere terms between units (and, for convolutions, between positions) are
    left out.

    Forward passes without gradients are not seen.

    Examples
    --------
    >>> import torch
    >>> from driftline.learners.optimizers import UPGD
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    >>> optimizer = UPGD(model.parameters(), order=2, curvature=HesScale(model))
    >>> F.cross_entropy(model(torch.ones(2, 4)), torch.tensor([0, 2])).backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Literal["cross_entropy", "squared_error"] | OutputCurvature = "cross_entropy",
        *,
        reduction: Literal["mean", "sum"] = "mean",
        replicas: int | None = None,
    ) -> None:
        if isinstance(loss, str) and loss not in ("cross_entropy", "squared_error"):
            raise unknown("loss", loss, ("cross_entropy", "squared_error"))
        if reduction not in ("mean", "sum"):
            raise unknown("reduction", reduction, ("mean", "sum"))
        leaves = [(name, m) for name, m in model.named_modules() if not list(m.children())]
        for name, module in leaves:
            if not has_rule(module):
                raise ConfigError(
                    f"HesScale has no rule for {type(module).__name__} ({name or 'the model'}); it knows Linear, "
                    "Conv2d, elementwise activations, pooling and flattening"
                )
        self.model, self.loss, self.reduction, self.replicas = model, loss, reduction, replicas
        self._now: _Pass | None = None
        self._done: list[_Pass] = []
        self._sums: dict[Tensor, Tensor] = {}
        # A model that is one layer is seen from outside first and last.
        self._handles: list[RemovableHandle] = [model.register_forward_pre_hook(self._begin)]
        self._handles += [m.register_forward_hook(self._see) for _, m in leaves]
        self._handles.append(model.register_forward_hook(self._end))

    def take(self) -> dict[Tensor, Tensor]:
        """Return the diagonal for each trainable parameter since the last call, and forget it."""
        self._fold()
        sums, self._sums = self._sums, {}
        return sums

    def diagonal(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return the diagonal for each trainable parameter, in their order, on one batch; ``grad`` is left alone.

        Raises
        ------
        ConfigError
            When the loss is one's own, whose gradient is not known here.
        """
        if not isinstance(self.loss, str):
            raise ConfigError("diagonal() needs to know the loss; call backward() on your own and take()")
        before, params = self.take(), [p for p in self.model.parameters() if p.requires_grad]
        with torch.enable_grad():
            out = self.model(x)
            if self.loss == "squared_error":
                value, entries = F.mse_loss(out, y, reduction="sum"), out.numel()
            else:
                value, entries = F.cross_entropy(out.flatten(0, -2), y.flatten(), reduction="sum"), y.numel()
            if self.reduction == "mean":
                value = value / (entries // (self.replicas or 1))
            torch.autograd.grad(value, params)
        found, self._sums = self.take(), before
        return [found[p] for p in params]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._fold()  # with the weights that the pass was made with
        self._now = _Pass() if torch.is_grad_enabled() else None

    def _see(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self._now is None:
            return
        if self._now.layers and inputs[0] is not self._now.last:
            before = type(self._now.layers[-1].module).__name__
            self._now = None
            raise InputError(
                f"HesScale: the input of {type(module).__name__} is not the output of the {before} before it; write "
                "everything in between as modules, and without branches"
            )
        layer = _Layer(module, inputs[0].detach(), output.detach())
        if is_curved(module) and output.requires_grad:
            output.register_hook(layer.keep)  # type: ignore[no-untyped-call]
        self._now.layers.append(layer)
        self._now.last = output

    def _end(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        made, self._now = self._now, None
        if made is None or not made.layers or not output.requires_grad:
            return
        if output is not made.last:
            raise InputError("HesScale: what the model returns is not the output of its last layer")
        made.last = None  # the graph is kept by the loss, not from here
        output.register_hook(lambda gradient: self._done.append(made))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _fold(self) -> None:
        """Work through the backward passes made since the last time."""
        for one in self._done:
            curvature = self._at_outputs(one.layers[-1].y)
            for i, layer in reversed(list(enumerate(one.layers))):
                for p, own in of_parameters(layer.module, layer.x, curvature):
                    self._sums[p] = self._sums[p] + own if p in self._sums else own
                if i > 0:
                    curvature = through(layer.module, layer.x, layer.y, layer.gradient, curvature)
        self._done.clear()

    def _at_outputs(self, out: Tensor) -> Tensor:
        if not isinstance(self.loss, str):
            return self.loss(out)
        lead = 0 if self.replicas is None else 1
        if self.loss == "squared_error":
            return torch.full_like(out, 2.0 / (out[(0,) * lead].numel() if self.reduction == "mean" else 1))
        if out.dim() != lead + 2:
            raise InputError(f"HesScale: cross_entropy needs scores (B, classes), the model gave {tuple(out.shape)}")
        p = out.softmax(-1)
        return p * (1 - p) / (out.shape[-2] if self.reduction == "mean" else 1)
