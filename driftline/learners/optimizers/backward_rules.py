"""How a diagonal of second derivatives passes backward through a layer, leaving out all that is not on the diagonal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from driftline.learners.lockstep.modules import ELEMENTWISE, kind_of

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def has_rule(module: nn.Module) -> bool:
    """Whether second derivatives can pass through a layer."""
    if isinstance(module, nn.AvgPool2d):
        return not module.ceil_mode and module.padding in (0, (0, 0))
    if isinstance(module, ELEMENTWISE):
        return isinstance(module, nn.ReLU) or not getattr(module, "inplace", False)
    if isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or isinstance(module.padding, str)):
        return False
    return kind_of(module) in ("linear", "conv") or isinstance(module, (nn.Flatten, *POOLS))


def is_curved(module: nn.Module) -> bool:
    """Whether a layer's own second derivative is not zero, so that the gradient at its output is needed."""
    return isinstance(module, ELEMENTWISE) and not isinstance(module, (nn.Identity, nn.ReLU, nn.LeakyReLU))


def through(module: nn.Module, x: Tensor, y: Tensor, gradient: Tensor | None, curvature: Tensor) -> Tensor:
    """Return the diagonal at a layer's input from that at its output.

    Parameters
    ----------
    module : nn.Module
        A layer for which :func:`has_rule` is true.
    x, y : Tensor
        Its input and output.
    gradient : Tensor, optional
        Of the loss at the output; needed where :func:`is_curved` is true.
    curvature : Tensor
        At the output.
    """
    kind = kind_of(module)
    if kind == "linear":
        return curvature @ cast(Tensor, module.weight).square()
    if kind == "conv":
        return _conv_input(module, x, curvature)
    if isinstance(module, nn.Flatten):
        return curvature.reshape(x.shape)
    if isinstance(module, POOLS):
        return _pool(module, x, curvature)
    if isinstance(module, nn.Identity):
        return curvature
    if isinstance(module, nn.ReLU):
        return curvature * (y > 0)
    first, second = _derivatives(module, x)
    into = first.square() * curvature
    return into if second is None or gradient is None else into + second * gradient


def of_parameters(module: nn.Module, x: Tensor, curvature: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the trainable parameters of a layer with their diagonals, from that at its output."""
    kind = kind_of(module)
    if kind is None:
        return []
    weight, bias = cast(Tensor, module.weight), cast("Tensor | None", module.bias)
    if kind == "linear":
        lead = weight.dim() - 2
        x, curvature = x.flatten(lead, -2), curvature.flatten(lead, -2)
    found = []
    if weight.requires_grad:
        found.append((weight, curvature.mT @ x.square() if kind == "linear" else _conv_weight(module, x, curvature)))
    if bias is not None and bias.requires_grad:
        found.append((bias, curvature.sum(-2) if kind == "linear" else curvature.sum((bias.dim() - 1, -2, -1))))
    return found


def _conv_input(module: nn.Module, x: Tensor, curvature: Tensor) -> Tensor:
    def one(x: Tensor, weight: Tensor, own: Tensor) -> Tensor:
        return cast(Tensor, conv2d_input(x.shape, weight.square(), own, *_geometry(module)))  # type: ignore[no-untyped-call]

    return _for_each(one, x, cast(Tensor, module.weight), curvature)


def _conv_weight(module: nn.Module, x: Tensor, curvature: Tensor) -> Tensor:
    def one(x: Tensor, weight: Tensor, own: Tensor) -> Tensor:
        return cast(Tensor, conv2d_weight(x.square(), weight.shape, own, *_geometry(module)))  # type: ignore[no-untyped-call]

    return _for_each(one, x, cast(Tensor, module.weight), curvature)


def _for_each(rule: Callable[..., Tensor], x: Tensor, weight: Tensor, curvature: Tensor) -> Tensor:
    """Apply a convolution's rule, to each replica where there are some."""
    if weight.dim() == 4:
        return rule(x, weight, curvature)
    return torch.stack([rule(*one) for one in zip(x, weight, curvature)])


def _pool(module: nn.Module, x: Tensor, curvature: Tensor) -> Tensor:
    """Pooling is linear, y = A x; the diagonal at x is that at y times the squares of A's entries."""
    if isinstance(module, nn.AvgPool2d):
        kernel = module.kernel_size
        entries = module.divisor_override or math.prod((kernel, kernel) if isinstance(kernel, int) else kernel)
        curvature = curvature / entries
    elif isinstance(module, nn.AdaptiveAvgPool2d):
        rows, columns = (_window_sizes(x.shape[i], curvature.shape[i]) for i in (-2, -1))
        curvature = curvature / (rows[:, None] * columns).to(curvature)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(module.forward(leaf), leaf, curvature)[0]


def _window_sizes(inputs: int, outputs: int) -> Tensor:
    """Return how many inputs each output of an adaptive pooling averages, along one side."""
    return torch.tensor([-(-(i + 1) * inputs // outputs) - i * inputs // outputs for i in range(outputs)])


def _derivatives(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return an elementwise function's first and second derivative; None for a second one that is zero."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        first = torch.autograd.grad(module.forward(leaf).sum(), leaf, create_graph=is_curved(module))[0]
        if not is_curved(module) or not first.requires_grad:
            return first.detach(), None
        return first.detach(), torch.autograd.grad(first.sum(), leaf)[0]


def _geometry(module: nn.Module) -> tuple[object, ...]:
    return module.stride, module.padding, module.dilation, module.groups
