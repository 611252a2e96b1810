"""Layers that remember little for the backward pass: normalisation with pruned caches (Hong et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.grad import conv2d_input
from torch.nn.modules.batchnorm import _BatchNorm

from driftline.adapters.normalization import FollowingNorm, replace_batch_norm
from driftline.adapters.settings import between
from driftline.stream.seeds import derive_seed, generator


def memory_lean(model: nn.Module, prune: float = 0.7, threshold: float = 0.005, seed: int = 0) -> nn.Module:
    """Let a model remember little for the backward pass, so that adapters of its scales and shifts need less memory.

    Batch normalisations become :class:`LeanNorm`; convolutions whose weights are not trained keep no inputs, and ReLU
    modules keep a bit mask in place of their outputs, with the same gradients as before.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    prune : float
        Share of channels, chosen at random at each batch, of which a normalisation keeps no inputs, 0 to below 1.
        Published: 0.7.
    threshold : float
        A normalisation whose statistics change by less is not trained by a batch and keeps nothing; 0 to 1. Published:
        0.00125 for CIFAR-10-C, 0.005 for ImageNet-C.
    seed : int
        For the choice of channels.

    Returns
    -------
    nn.Module
        The model; what took its place, when it is a batch normalisation itself.

    Raises
    ------
    ConfigError
        For a model without batch normalisation that keeps statistics, or a setting out of range.

    Notes
    -----
    Source: Hong, Lyu, Zhou & Spranger, *MECTA: memory-economic continual test-time model adaptation*, ICLR 2023. The
    paper prunes the caches of normalisation; autograd keeps the inputs of frozen convolutions and the outputs of ReLU,
    too, which is as much again and is spared here without changing results.

    Examples
    --------
    >>> from driftline.adapters import Tent
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    >>> Tent(memory_lean(model)).adapt(torch.rand(16, 3, 8, 8)).shape
    torch.Size([16, 10])
    """
    between("prune", prune, 0, 1 - 1e-6)
    between("threshold", threshold, 0, 1)
    places = {module: number for number, module in enumerate(model.modules())}

    def make(layer: _BatchNorm) -> LeanNorm:
        return LeanNorm(layer, prune, threshold, derive_seed(seed, "channels", places[layer]))

    model = replace_batch_norm(model, make, required=True)
    for module in model.modules():
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = LeanConv2d
        elif type(module) is nn.ReLU:
            module.__class__ = LeanReLU
            module.inplace = False
    return model


class LeanNorm(FollowingNorm):
    """Normalises by running statistics that follow each batch the faster the more it differs from them.

    The weight of a batch is 1 - exp(-D), D the mean over channels of the two Kullback-Leibler divergences between the
    normal distributions of batch and running statistics. Where gradients are not recorded, nothing follows.

    Parameters
    ----------
    source : nn.BatchNorm1d, 2d or 3d
        Whose place it takes.
    prune : float
        Share of channels of which no inputs are kept: their scales get no gradient.
    threshold : float
        Up to this weight of the batch, scale and shift get no gradient and nothing is kept.
    seed : int
        For the choice of channels.

    Notes
    -----
    Gradients flow through the batch's statistics as in training. Of a pruned channel, the part that depends on its
    inputs is left out; below the threshold, statistics count as constant (the released code also leaves out the scale).
    """

    def __init__(self, source: _BatchNorm, prune: float, threshold: float, seed: int) -> None:
        super().__init__(source)
        self.prune, self.threshold, self.seed = prune, threshold, seed
        # Which channels a batch keeps depends on how many there were, so the count must be in the state.
        if self.num_batches_tracked is None:
            self.num_batches_tracked = torch.zeros((), dtype=torch.long)

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised samples (B, C, ...)."""
        mean, var = self.stored()
        if not torch.is_grad_enabled() or x.numel() == x.shape[1]:
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        with torch.no_grad():
            batch_mean, batch_var = self.moments(x)
            weight = -torch.expm1(-divergence(batch_mean, batch_var, mean, var).mean())
            mean, var = torch.lerp(mean, batch_mean, weight), torch.lerp(var, batch_var, weight)
            self.due = mean, var
            kept = self.kept(x.device) if float(weight) > self.threshold else None
        moments = mean, (var + self.eps).rsqrt(), batch_mean, (batch_var + self.eps).rsqrt()
        return cast(Tensor, _Normalize.apply(x, self.weight, self.bias, moments, kept))

    def kept(self, device: torch.device) -> Tensor:
        """Draw the channels of which this batch's inputs are kept, in order."""
        assert self.num_batches_tracked is not None
        count = self.num_features - int(self.num_features * self.prune)
        random = generator(derive_seed(self.seed, int(self.num_batches_tracked)))
        return torch.randperm(self.num_features, generator=random)[:count].sort().values.to(device)


def divergence(mean: Tensor, var: Tensor, other_mean: Tensor, other_var: Tensor, eps: float = 1e-3) -> Tensor:
    """Return the sum of the two Kullback-Leibler divergences between normal distributions, elementwise, in nats.

    Examples
    --------
    >>> zero, one = torch.zeros(1), torch.ones(1)
    >>> divergence(zero, one, zero, one), divergence(zero, one, one, one, eps=0.0)
    (tensor([0.]), tensor([1.]))
    """
    var, other_var = var + eps, other_var + eps
    square = (mean - other_mean).square()
    return ((var + square) / other_var + (other_var + square) / var) / 2 - 1


class _Normalize(Function):
    """Normalise by given statistics; go back through the batch's, as far as inputs were kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        moments: tuple[Tensor, Tensor, Tensor, Tensor],
        kept: Tensor | None,
    ) -> Tensor:
        mean, inverse, batch_mean, batch_inverse = moments
        shape = (1, -1) + (1,) * (x.dim() - 2)
        scale = inverse if weight is None else inverse * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        ctx.matched = kept is None
        if kept is None:
            ctx.save_for_backward(scale)
        else:
            inputs = x if len(kept) == x.shape[1] else x.index_select(1, kept)
            ctx.save_for_backward(scale, inputs, kept, mean, inverse, batch_mean, batch_inverse)
        return torch.addcmul(shift.view(shape), x, scale.view(shape))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        shape = (1, -1) + (1,) * (grad.dim() - 2)
        axes = [axis for axis in range(grad.dim()) if axis != 1]
        if ctx.matched:
            (scale,) = ctx.saved_tensors
            return grad * scale.view(shape), None, None, None, None
        scale, x, kept, mean, inverse, batch_mean, batch_inverse = ctx.saved_tensors
        total = grad.sum(axes)
        part = grad if len(kept) == grad.shape[1] else grad.index_select(1, kept)
        # The sum of g (x - batch mean) gives both the gradient of the scale and the part through the batch's variance.
        centred = x - batch_mean[kept].view(shape)
        along = (part * centred).sum(axes)
        for_weight = for_input = None
        if ctx.needs_input_grad[1]:
            own = (along + total[kept] * (batch_mean - mean)[kept]) * inverse[kept]
            for_weight = torch.zeros_like(total).index_copy_(0, kept, own)
        if ctx.needs_input_grad[0]:
            count = grad.numel() // grad.shape[1]
            for_input = grad - (total / count).view(shape)
            factor = along * batch_inverse[kept].square() / count
            for_input.index_add_(1, kept, centred.mul_(factor.view(shape)), alpha=-1)
            for_input.mul_(scale.view(shape))
        return for_input, for_weight, total if ctx.needs_input_grad[2] else None, None, None


class LeanConv2d(nn.Conv2d):
    """A convolution that keeps no inputs while its weights are not trained."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what the convolution gives (B, C, H, W)."""
        trained = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        if trained or not torch.is_grad_enabled() or not input.requires_grad:
            return super().forward(input)
        settings = self.stride, self.padding, self.dilation, self.groups
        return cast(Tensor, _Convolve.apply(input, self.weight, self.bias, settings))


class _Convolve(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.settings = x.shape, settings
        return F.conv2d(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        back = cast(Callable[..., Tensor], conv2d_input)
        return back(ctx.shape, ctx.saved_tensors[0], grads[0], *ctx.settings), None, None, None


class LeanReLU(nn.ReLU):
    """A ReLU that keeps a mask of one byte for each value."""

    def forward(self, input: Tensor) -> Tensor:
        """Return max(input, 0)."""
        return cast(Tensor, _Rectify.apply(input))


class _Rectify(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x > 0)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.saved_tensors[0]
