"""Layers of R networks at once: a leading dimension R on weights and activations, and one batched operation for all."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.activations import ASH, CReLU, Fourier, HardASH
from driftline.errors import ConfigError
from driftline.models import Block, Network, Subsample

Kind = Literal["linear", "conv", "batch_norm", "layer_norm", "group_norm"]


class Replicated(nn.Module):
    """Base of the layers that hold the parameters of R layers; ``replicas`` is R."""

    replicas: int

    def single(self, number: int) -> nn.Module:
        """Return one of the R layers; its parameters and buffers are views of this one's."""
        raise NotImplementedError

    def _share(self, layer: nn.Module, number: int) -> nn.Module:
        """Let a layer, made without memory of its own, show this one's tensors."""
        for name, parameter in self.named_parameters(recurse=False):
            view = nn.Parameter(parameter.data[number], requires_grad=parameter.requires_grad)
            layer.register_parameter(name, view)
        for name, buffer in self.named_buffers(recurse=False):
            layer.register_buffer(name, buffer[number])
        return layer

    def extra_repr(self) -> str:
        """Return the number of replicas and the weight's shape, for ``print``."""
        weight = getattr(self, "weight", None)
        return f"replicas={self.replicas}" + ("" if weight is None else f", weight={tuple(weight.shape)}")


def _stacked(tensors: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.stack([t.detach() for t in tensors]), requires_grad=tensors[0].requires_grad)


class ReplicatedLinear(Replicated):
    """R linear layers: (R, B, in) -> (R, B, out).

    Examples
    --------
    >>> layer = ReplicatedLinear([nn.Linear(4, 3), nn.Linear(4, 3)])
    >>> layer.weight.shape, layer(torch.zeros(2, 5, 4)).shape
    (torch.Size([2, 3, 4]), torch.Size([2, 5, 3]))
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.replicas = len(layers)
        self.in_features, self.out_features = layers[0].in_features, layers[0].out_features
        self.weight = _stacked([layer.weight for layer in layers])
        self.bias = None if layers[0].bias is None else _stacked([layer.bias for layer in layers])

    def single(self, number: int) -> nn.Module:
        """Return one of the layers."""
        bias = self.bias is not None
        return self._share(nn.Linear(self.in_features, self.out_features, bias, device="meta"), number)

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, B, in) to (R, B, out)."""
        if self.bias is None:
            return torch.bmm(x, self.weight.transpose(1, 2))
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.transpose(1, 2))


class ReplicatedConv2d(Replicated):
    """R convolutions as one with R groups: (R, B, C, H, W) -> (R, B, C', H', W')."""

    def __init__(self, layers: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        first = layers[0]
        self.replicas = len(layers)
        self.in_channels, self.out_channels, self.kernel_size = first.in_channels, first.out_channels, first.kernel_size
        self.stride, self.padding, self.dilation, self.groups = (
            first.stride,
            first.padding,
            first.dilation,
            first.groups,
        )
        if first.padding_mode != "zeros":
            raise ConfigError(f"padding_mode={first.padding_mode!r}: replicas know zeros only")
        self.weight = _stacked([layer.weight for layer in layers])
        self.bias = None if first.bias is None else _stacked([layer.bias for layer in layers if layer.bias is not None])

    def single(self, number: int) -> nn.Module:
        """Return one of the layers."""
        layer = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.dilation,  # type: ignore[arg-type]
            self.groups,
            bias=self.bias is not None,
            device="meta",
        )
        return self._share(layer, number)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (R, B, C, H, W) with each replica's own kernels."""
        bias = None if self.bias is None else self.bias.flatten()
        y = F.conv2d(
            _channels(x),
            self.weight.flatten(0, 1),
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups * self.replicas,
        )
        return _replicas(y, self.replicas)


class ReplicatedBatchNorm(Replicated):
    """R batch normalisations, for (R, B, C) and (R, B, C, H, W); statistics of each replica's own batch."""

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, layers: Sequence[nn.BatchNorm1d | nn.BatchNorm2d]) -> None:
        super().__init__()
        first = layers[0]
        self.replicas, self.num_features, self._kind = len(layers), first.num_features, type(first)
        self.eps, self.momentum = first.eps, first.momentum
        self.affine, self.track_running_stats = first.affine, first.track_running_stats
        self.weight = _stacked([n.weight for n in layers]) if first.affine else None
        self.bias = _stacked([n.bias for n in layers]) if first.affine else None
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            buffers = [getattr(n, name) for n in layers]
            self.register_buffer(name, None if buffers[0] is None else torch.stack(buffers))

    def single(self, number: int) -> nn.Module:
        """Return one of the layers."""
        norm = self._kind(self.num_features, self.eps, self.momentum, self.affine, self.track_running_stats, "meta")
        return self._share(norm, number)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each replica."""
        batch_statistics = self.training or self.running_mean is None
        momentum = self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked[0])
        y = F.batch_norm(
            _channels(x),
            None if self.running_mean is None else self.running_mean.view(-1),
            None if self.running_var is None else self.running_var.view(-1),
            None if self.weight is None else self.weight.view(-1),
            None if self.bias is None else self.bias.view(-1),
            batch_statistics,
            0.0 if momentum is None else momentum,
            self.eps,
        )
        return _replicas(y, self.replicas)


class ReplicatedLayerNorm(Replicated):
    """R layer normalisations over the last dimensions."""

    def __init__(self, layers: Sequence[nn.LayerNorm]) -> None:
        super().__init__()
        first = layers[0]
        self.replicas, self.normalized_shape, self.eps = len(layers), tuple(first.normalized_shape), first.eps
        self.weight = _stacked([n.weight for n in layers]) if first.weight is not None else None
        self.bias = _stacked([n.bias for n in layers]) if first.bias is not None else None

    def single(self, number: int) -> nn.Module:
        """Return one of the layers."""
        affine, bias = self.weight is not None, self.bias is not None
        return self._share(nn.LayerNorm(self.normalized_shape, self.eps, affine, bias, "meta"), number)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each sample of each replica."""
        y = F.layer_norm(x, self.normalized_shape, None, None, self.eps)
        if self.weight is not None:
            y = y * self.weight.unsqueeze(1)
        return y if self.bias is None else y + self.bias.unsqueeze(1)


class ReplicatedGroupNorm(Replicated):
    """R group normalisations, for (R, B, C, ...)."""

    def __init__(self, layers: Sequence[nn.GroupNorm]) -> None:
        super().__init__()
        first = layers[0]
        self.replicas, self.num_groups, self.num_channels = len(layers), first.num_groups, first.num_channels
        self.eps, self.affine = first.eps, first.affine
        self.weight = _stacked([n.weight for n in layers]) if first.affine else None
        self.bias = _stacked([n.bias for n in layers]) if first.affine else None

    def single(self, number: int) -> nn.Module:
        """Return one of the layers."""
        return self._share(nn.GroupNorm(self.num_groups, self.num_channels, self.eps, self.affine, "meta"), number)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the groups of each sample of each replica."""
        y = F.group_norm(x.flatten(0, 1), self.num_groups, None, None, self.eps).reshape(x.shape)
        if self.weight is None or self.bias is None:
            return y
        shape = (self.replicas, 1, -1, *(1 for _ in x.shape[3:]))
        return y * self.weight.view(shape) + self.bias.view(shape)


class PerSample(Replicated):
    """Applies what works on single samples to all samples of all replicas; goes before a class of torch's."""

    def single(self, number: int) -> nn.Module:
        """Return the layer of torch's that this is without replicas."""
        one = copy.copy(self)
        one.__class__ = next(plain for plain, replicated in PER_SAMPLE.items() if replicated is type(self))
        return one

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, B, ...) as R * B samples."""
        y: Tensor = super().forward(x.flatten(0, 1))
        return y.reshape(*x.shape[:2], *y.shape[1:])


class ReplicatedFlatten(PerSample, nn.Flatten):
    """Flattens each sample."""


class ReplicatedMaxPool2d(PerSample, nn.MaxPool2d):
    """Pools each image."""


class ReplicatedAvgPool2d(PerSample, nn.AvgPool2d):
    """Pools each image."""


class ReplicatedAdaptiveAvgPool2d(PerSample, nn.AdaptiveAvgPool2d):
    """Pools each image."""


class ReplicatedASH(PerSample, ASH):
    """Thresholds each sample's units."""


class ReplicatedHardASH(PerSample, HardASH):
    """Thresholds each sample's units."""


class ReplicatedCReLU(PerSample, CReLU):
    """Makes two of each sample's units."""


class ReplicatedFourier(PerSample, Fourier):
    """Makes two of each sample's units."""


class ReplicatedSubsample(PerSample, Subsample):
    """Takes each image's shortcut."""


PARAMETERISED = {
    nn.Linear: ReplicatedLinear,
    nn.Conv2d: ReplicatedConv2d,
    nn.BatchNorm1d: ReplicatedBatchNorm,
    nn.BatchNorm2d: ReplicatedBatchNorm,
    nn.LayerNorm: ReplicatedLayerNorm,
    nn.GroupNorm: ReplicatedGroupNorm,
}
PER_SAMPLE = {
    nn.Flatten: ReplicatedFlatten,
    nn.MaxPool2d: ReplicatedMaxPool2d,
    nn.AvgPool2d: ReplicatedAvgPool2d,
    nn.AdaptiveAvgPool2d: ReplicatedAdaptiveAvgPool2d,
    ASH: ReplicatedASH,
    HardASH: ReplicatedHardASH,
    CReLU: ReplicatedCReLU,
    Fourier: ReplicatedFourier,
    Subsample: ReplicatedSubsample,
}
ELEMENTWISE = (
    nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh
)  # fmt: skip
CONTAINERS = (nn.Sequential, Network, Block)
"""Modules whose forward only hands on to their children; one's own class says so by ``lockstep = True``."""

KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: "linear",
    ReplicatedLinear: "linear",
    nn.Conv2d: "conv",
    ReplicatedConv2d: "conv",
    nn.BatchNorm1d: "batch_norm",
    nn.BatchNorm2d: "batch_norm",
    ReplicatedBatchNorm: "batch_norm",
    nn.LayerNorm: "layer_norm",
    ReplicatedLayerNorm: "layer_norm",
    nn.GroupNorm: "group_norm",
    ReplicatedGroupNorm: "group_norm",
}


def kind_of(module: nn.Module) -> Kind | None:
    """Return what a layer with parameters is, whether it holds those of one or of many replicas.

    Examples
    --------
    >>> kind_of(nn.Linear(2, 2)), kind_of(ReplicatedLinear([nn.Linear(2, 2)])), kind_of(nn.ReLU())
    ('linear', 'linear', None)
    """
    return next((KINDS[base] for base in type(module).__mro__ if base in KINDS), None)


def stack_models(models: Sequence[nn.Module]) -> nn.Module:
    """Return one model that computes what R models of the same form do: (R, B, *input) -> (R, B, ...).

    Modules and parameters keep their names; every parameter and buffer gets a leading dimension R.

    Parameters
    ----------
    models : sequence of nn.Module
        Of linear, convolutional, normalisation, pooling and elementwise layers in ``nn.Sequential``, the networks of
        :mod:`driftline.models`, or classes with an attribute ``lockstep = True``, by which they declare that their
        forward only passes tensors on to children and elementwise functions.

    Raises
    ------
    ConfigError
        For models of different form, tied weights, or a layer that replicas do not know; it is named.

    Examples
    --------
    >>> model = stack_models([nn.Sequential(nn.Linear(4, 3), nn.ReLU()) for _ in range(2)])
    >>> model.replicas, model[0].weight.shape, model(torch.zeros(2, 5, 4)).shape
    (2, torch.Size([2, 3, 4]), torch.Size([2, 5, 3]))
    """
    first = models[0]
    form = [(name, type(m)) for name, m in first.named_modules(remove_duplicate=False)]
    shapes = {name: (p.shape, p.requires_grad, p.dtype) for name, p in first.named_parameters(remove_duplicate=False)}
    if len({id(p) for _, p in first.named_parameters(remove_duplicate=False)}) < len(shapes):
        raise ConfigError("the models have tied weights, which replicas cannot keep tied")
    for other in models[1:]:
        theirs = {n: (p.shape, p.requires_grad, p.dtype) for n, p in other.named_parameters(remove_duplicate=False)}
        if form != [(name, type(m)) for name, m in other.named_modules(remove_duplicate=False)] or shapes != theirs:
            raise ConfigError("the models of the replicas differ in their layers or shapes")
    stacked = _stack(list(models), "model")
    stacked.replicas = len(models)  # type: ignore[assignment]
    stacked.train(first.training)
    return stacked


def _stack(modules: list[nn.Module], name: str) -> nn.Module:
    first = modules[0]
    kind = type(first)
    if kind in PARAMETERISED:
        stacked: nn.Module = PARAMETERISED[kind](modules)
        return stacked
    if kind in ELEMENTWISE or kind in PER_SAMPLE:
        one = _without_hooks(copy.deepcopy(first))
        if kind in PER_SAMPLE:
            one.__class__ = PER_SAMPLE[kind]
            one.replicas = len(modules)  # type: ignore[assignment]
        return one
    own = [*first.parameters(recurse=False), *first.buffers(recurse=False)]
    if own or not (kind in CONTAINERS or getattr(kind, "lockstep", False)):
        raise ConfigError(f"{name} is a {kind.__name__}, of which replicas cannot be stacked")
    whole = _without_hooks(copy.copy(first))
    whole._parameters, whole._buffers, whole._modules = {}, {}, {}
    for child, module in first._modules.items():
        parts = [m._modules[child] for m in modules]
        whole._modules[child] = None if module is None else _stack(cast("list[nn.Module]", parts), f"{name}.{child}")
    return whole


def _without_hooks(module: nn.Module) -> nn.Module:
    """Take off the hooks that a copied module brought along, which feed the original's parts."""
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(module, name, OrderedDict())
    return module


def _channels(x: Tensor) -> Tensor:
    """(R, B, C, ...) -> (B, R * C, ...)."""
    return x.transpose(0, 1).flatten(1, 2)


def _replicas(x: Tensor, replicas: int) -> Tensor:
    """(B, R * C, ...) -> (R, B, C, ...)."""
    return x.reshape(len(x), replicas, -1, *x.shape[2:]).transpose(0, 1)
