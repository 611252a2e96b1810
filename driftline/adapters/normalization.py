"""Batch normalisation at test time: layers that take the place of a model's, under the same parameter names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from driftline.errors import ConfigError, InputError


class AdaptedNorm(_BatchNorm):
    """A layer in the place of a source model's batch normalisation: it has its parameters and its statistics.

    Parameters
    ----------
    source : nn.BatchNorm1d, 2d, 3d or SyncBatchNorm
        Its parameters and buffers are taken over, not copied, under the same names, so that weights load as before.
    """

    def __init__(self, source: _BatchNorm) -> None:
        nn.Module.__init__(self)
        self.num_features, self.eps, self.momentum = source.num_features, source.eps, source.momentum
        self.affine, self.track_running_stats = source.affine, source.track_running_stats
        self.weight, self.bias = source.weight, source.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(source, name))
        self.training = source.training

    def stored(self) -> tuple[Tensor, Tensor]:
        """Return the source's mean and variance, (C,) each.

        Raises
        ------
        InputError
            When the source kept none.
        """
        if self.running_mean is None or self.running_var is None:
            raise InputError(
                "the model's batch normalisation keeps no statistics (track_running_stats=False), and a single value "
                "per channel has none of its own; give larger batches"
            )
        return self.running_mean, self.running_var

    def by(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Normalise (B, C, ...) by a mean and a variance (C,), through which gradients flow."""
        shape = (1, -1) + (1,) * (x.dim() - 2)
        scale = (var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        return x * scale.view(shape) + shift.view(shape)

    def moments(self, x: Tensor, unbiased: bool = False) -> tuple[Tensor, Tensor]:
        """Return the batch's mean and variance, (C,) each; those of the source for one value per channel."""
        if x.numel() == x.shape[1]:
            return self.stored()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        var, mean = torch.var_mean(x, axes, correction=int(unbiased))
        return mean, var


class FollowingNorm(AdaptedNorm):
    """Keeps running statistics that follow the samples it adapts to.

    A forward pass leaves the statistics that follow from its batch in ``due``, and :meth:`take_in` makes them the
    layer's, so that a batch that turns out to be unusable leaves no trace.
    """

    def __init__(self, source: _BatchNorm) -> None:
        super().__init__(source)
        if self.running_mean is None:
            raise ConfigError(
                "the adapter starts from the source's statistics, and a batch normalisation of the model keeps none "
                "(track_running_stats=False)"
            )
        self.due: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def take_in(self) -> None:
        """Keep the statistics that are due."""
        if self.due is not None:
            for running, new in zip(self.stored(), self.due, strict=True):
                running.copy_(new)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        self.due = None


def following(model: nn.Module) -> list[FollowingNorm]:
    """Return a model's layers whose statistics follow the samples."""
    return [layer for layer in model.modules() if isinstance(layer, FollowingNorm)]


@contextmanager
def taking_in(*models: nn.Module) -> Iterator[None]:
    """Let layers look at batches in forward passes inside, and take in what is due at the end unless one failed."""
    layers = [layer for model in models for layer in following(model)]
    for layer in layers:
        layer.training = True
    try:
        yield
        for layer in layers:
            layer.take_in()
    finally:
        for layer in layers:
            layer.training, layer.due = False, None


class BatchStatistics(AdaptedNorm):
    """Normalises by the statistics of the batch at hand, in training and evaluation mode alike.

    The variance is the biased one, as in training. Where a batch holds one value per channel, which has no statistics,
    the source's are used. The source's statistics stay in the state, unchanged.

    Examples
    --------
    >>> layer = BatchStatistics(nn.BatchNorm1d(1)).eval()
    >>> layer(torch.tensor([[10.0], [12.0]])).flatten()
    tensor([-1.0000,  1.0000], grad_fn=<ViewBackward0>)
    >>> layer(torch.tensor([[10.0]])).item() > 9
    True
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised samples (B, C, ...)."""
        if x.numel() == x.shape[1]:
            return F.batch_norm(x, *self.stored(), self.weight, self.bias, False, 0.0, self.eps)
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


def replace_batch_norm(
    model: nn.Module, make: Callable[[_BatchNorm], nn.Module] = BatchStatistics, required: bool = False
) -> nn.Module:
    """Put other layers in the places of a model's batch normalisations.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    make : callable
        Makes a layer of each, such as a :class:`AdaptedNorm`.
    required : bool
        Raise when there is none.

    Returns
    -------
    nn.Module
        The model; what took its place, when it is a batch normalisation itself.

    Raises
    ------
    ConfigError
        When there is none and there must be.

    Examples
    --------
    >>> replace_batch_norm(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))[1]
    BatchStatistics(3, eps=1e-05, ...)
    """
    made: dict[nn.Module, nn.Module] = {}
    found = [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm) and not isinstance(module, AdaptedNorm)
    ]
    if required and not found and not any(isinstance(m, AdaptedNorm) for m in model.modules()):
        raise ConfigError(
            f"{type(model).__name__} has no batch normalisation, whose statistics this adapter adapts; "
            "choose an adapter that changes parameters, such as Tent with parameters='affine' or SAR"
        )
    for name, module in found:
        layer = made.setdefault(module, make(module))
        if not name:
            return layer
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)
    return model
