"""Reads a multilayer perceptron off its modules: linear layers, each with the activation function behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from driftline.learners.lockstep.modules import ReplicatedFlatten, ReplicatedLinear
from driftline.learners.renewers.watching import Watcher
from driftline.models import Network
from driftline.native.kernels import fits

ACTIVATIONS = {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class UnsupportedError(Exception):
    """A part has no compiled form; says which, and why."""


@dataclass
class Dense:
    """A linear layer and the activation function behind it.

    Parameters
    ----------
    module : nn.Module
        ``nn.Linear``, or the same with replicas.
    name : str
        Its name in the model.
    activation : str
        One of the names in :data:`driftline.native.structures.ACTIVATIONS`.
    slope : float
        Of leaky ReLU.
    """

    module: nn.Linear | ReplicatedLinear
    name: str
    activation: str = "identity"
    slope: float = 0.0

    def parameters(self) -> list[Tensor]:
        """Return weight and bias, if there is one."""
        return [p for p in (self.module.weight, self.module.bias) if p is not None]


def dense_layers(model: nn.Module) -> tuple[list[Dense], bool]:
    """Return the layers in order, and whether the model flattens its input.

    Raises
    ------
    UnsupportedError
        For any module that is not part of a plain multilayer perceptron, or what hangs on one.

    Examples
    --------
    >>> layers, flattens = dense_layers(nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1)))
    >>> [(layer.name, layer.activation) for layer in layers], flattens
    ([('1', 'relu'), ('3', 'identity')], True)
    """
    layers: list[Dense] = []
    flattens = False
    for name, module in _steps(model, ""):
        kind = type(module)
        if isinstance(module, nn.Linear | ReplicatedLinear):
            layers.append(Dense(module, name))
        elif kind in (nn.Flatten, ReplicatedFlatten):
            if [module.start_dim, module.end_dim] != [1, -1]:
                raise UnsupportedError(f"{name or 'the model'} flattens some dimensions only")
            flattens = flattens or not layers
        elif kind in ACTIVATIONS:
            if not layers or layers[-1].activation != "identity":
                raise UnsupportedError(f"{name or 'the model'} is an activation that follows no linear layer")
            slope = float(getattr(module, "negative_slope", 0.0))
            if slope < 0:
                raise UnsupportedError(f"{name} has a negative slope")
            layers[-1].activation, layers[-1].slope = ACTIVATIONS[kind], slope
        elif kind is not nn.Identity:
            raise UnsupportedError(f"{name or 'the model'} is a {kind.__name__}; compiled steps know small MLPs only")
    if not layers:
        raise UnsupportedError("the model has no linear layer")
    _check(model, layers)
    return layers, flattens


def _steps(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that a forward pass goes through, in its order."""
    if type(module) in (nn.Sequential, Network):
        for child, part in module.named_children():
            yield from _steps(part, f"{name}.{child}" if name else child)
    else:
        yield name, module


def _check(model: nn.Module, layers: list[Dense]) -> None:
    for name, module in model.named_modules():
        for hook in (h for kind in HOOKS for h in getattr(module, kind).values()):
            if not isinstance(hook, Watcher):
                raise UnsupportedError(f"a hook on {name or 'the model'} wants to see every step")
    parameters = [p for layer in layers for p in layer.parameters()]
    if len({id(p) for p in parameters}) < len(parameters):
        raise UnsupportedError("layers share weights")
    for layer in layers:
        for p in layer.parameters():
            if type(layer.module) not in (nn.Linear, ReplicatedLinear) or not isinstance(p, nn.Parameter):
                raise UnsupportedError(f"{layer.name} is more than a linear layer")
            if not p.requires_grad:
                raise UnsupportedError(f"a parameter of {layer.name} is frozen")
            if not fits(p):
                where = f"in {p.dtype} on {p.device}" if p.is_contiguous() else "not contiguous in memory"
                raise UnsupportedError(f"{layer.name} is {where}; compiled steps are for float32 on the CPU")
            if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
                raise UnsupportedError(f"a hook on a parameter of {layer.name} wants to see every gradient")
