"""Predicting in eight bits while adapting in float: convolutions and linear layers by oneDNN's int8 kernels."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from driftline.adapters import Adapter
from driftline.adapters.wrapper import Wrapper
from driftline.errors import ConfigError

WEIGHTS, INPUTS = 127, 126
"""Steps of either side. Inputs have 7 bits: without VNNI the kernels add pairs of products in 16 bits, where 8 bits
overflow."""


class Packed(NamedTuple):
    """A layer's weights in eight bits: the float ones they are of, the kernel's layout, scale and zero of each row."""

    of: Tensor
    weight: Tensor
    scale: Tensor
    zero: Tensor
    groups: int


class Int8(TorchFunctionMode):
    """Inside of it, ``conv2d`` and ``linear`` of float32 run in eight bits, without gradients; all else is as it was.

    Weights are rounded row by row, once; inputs by their range in the batch at hand, so that nothing is calibrated and
    an adapted model is as good as a shipped one. Normalisation, activations and sums stay in float, and so do the
    projections of ``nn.MultiheadAttention``. After weights have changed, :meth:`refresh` rounds those that have anew.

    Parameters
    ----------
    network : nn.Module, optional
        Looked at beforehand, whether there is anything that can run in eight bits.

    Raises
    ------
    ConfigError
        Where torch has no such kernels, or the network no such layer.

    Examples
    --------
    >>> layer = nn.Linear(64, 10)
    >>> x = torch.randn(5, 64)
    >>> with torch.no_grad(), Int8(layer):
    ...     scores = layer(x)
    >>> torch.equal(scores, layer(x)), torch.allclose(scores, layer(x), atol=0.1)
    (False, True)
    """

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        self._packed: MutableMapping[Tensor, Packed] = WeakTensorKeyDictionary()
        _demand_kernels()
        if network is not None:
            _demand_layers(network)

    def __deepcopy__(self, memo: object) -> Self:
        """Return a new one: a copied network has weights of its own."""
        return type(self)()

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Run a function, in eight bits if it can."""
        kwargs = kwargs or {}
        run = {torch.conv2d: self._conv2d, F.linear: self._linear}.get(func)
        scores = None if run is None else run(*args, **kwargs)
        return func(*args, **kwargs) if scores is None else scores

    def refresh(self) -> None:
        """Round those weights anew that are others than they were."""
        for weight, packed in list(self._packed.items()):
            if not torch.equal(weight, packed.of):
                self._packed[weight] = _pack(weight, packed.groups)

    @property
    def nbytes(self) -> int:
        """Bytes of the rounded weights, and of the float copies that they are compared with."""
        return sum(packed.of.nbytes + packed.of.numel() for packed in self._packed.values())

    def _conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple[int, ...] = 1,
        padding: int | str | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
    ) -> Tensor | None:
        if isinstance(padding, str) or input.dim() != 4:
            return None
        return self._run(input, weight, bias, _pair(stride), _pair(padding), _pair(dilation), groups=groups)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        # A convolution of 1 x 1: the kernel for linear layers is several times slower on a single sample.
        scores = self._run(input.reshape(-1, input.shape[-1], 1, 1), weight, bias, [1, 1], [0, 0], [1, 1])
        return None if scores is None else scores.reshape(*input.shape[:-1], len(weight))

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None, *how: list[int], groups: int = 1) -> Tensor | None:
        """Return the result, or None where it has to be in float: other types, gradients, or NaN and Inf."""
        if x.dtype != torch.float32 or weight.dtype != torch.float32 or x.device.type != "cpu" or not x.numel():
            return None
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return None
        low, high = min(float(x.amin()), 0.0), max(float(x.amax()), 0.0)
        if not math.isfinite(low) or not math.isfinite(high):
            return None
        packed = self._packed.get(weight)
        if packed is None or packed.groups != groups:
            packed = self._packed[weight] = _pack(weight, groups)
        scale = max((high - low) / INPUTS, 1e-30)
        zero = round(-low / scale)
        # The conversion to int8 is vectorised, the one to uint8 is not; of what is above 0 it takes the floor.
        steps = x.mul(1 / scale).add_(zero + 0.5).to(torch.int8, memory_format=torch.channels_last).view(torch.uint8)
        return _convolve(steps, scale, zero, packed, None if bias is None else bias.detach(), *how)


class SeenInInt8(Wrapper):
    """An adapter whose scores are those that are served in eight bits, so that a guard around it watches these.

    Parameters
    ----------
    inner : Adapter
        Adapts in float.
    int8 : Int8
        How it is served.
    """

    def __init__(self, inner: Adapter, int8: Int8) -> None:
        super().__init__(inner)
        self.int8 = int8

    def adapt(self, x: Tensor) -> Tensor:
        """Adapt in float; return what is then served for the samples."""
        self.inner.adapt(x)
        self.int8.refresh()
        with torch.no_grad(), self.int8:
            return self.inner.predict(x)

    def state_dict(self) -> dict[str, object]:
        """Return the inner adapter's state: the eight bits follow from it."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        self.inner.load_state_dict(state)


def _pack(weight: Tensor, groups: int = 1) -> Packed:
    """Round each output's weights to 255 steps between -127 and 127 times a scale of its own."""
    of = weight.detach().clone()
    rows = of.flatten(1)
    scale = (rows.abs().amax(1) / WEIGHTS).clamp_min(1e-30)
    steps = (rows / scale[:, None]).round().to(torch.int8)
    steps = steps.view(*of.shape[:2], 1, 1) if of.dim() == 2 else steps.view(of.shape)
    # Stride, padding and dilation have no part in the layout.
    packed = torch.ops.onednn.qconv_prepack(steps, scale, 1.0, 0, [1, 1], [0, 0], [1, 1], groups, None)
    return Packed(of, packed, scale, torch.zeros(len(of), dtype=torch.int64), groups)


def _convolve(x: Tensor, scale: float, zero: int, packed: Packed, bias: Tensor | None, *how: list[int]) -> Tensor:
    convolve = torch.ops.onednn.qconv_pointwise
    weight = packed.weight, packed.scale, packed.zero, bias
    return cast(Tensor, convolve(x, scale, zero, *weight, *how, packed.groups, 1.0, 0, torch.float32, "none", [], ""))


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


def _demand_kernels() -> None:
    """Raise unless a small convolution in eight bits gives what it should."""
    where = f"torch {torch.__version__} on {platform.machine()}"
    try:
        one = torch.ones(1, 1, 1, 1)
        steps = torch.full((1, 1, 1, 1), 100, dtype=torch.uint8)
        found = float(_convolve(steps, 0.01, 0, _pack(one), None, [1, 1], [0, 0], [1, 1]))
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"quantize='int8': {where} has no kernels for it ({first}); leave quantize out") from error
    if abs(found - 1) > 1e-3:
        raise ConfigError(f"quantize='int8': the kernels of {where} give {found} in place of 1; leave quantize out")


def _demand_layers(network: nn.Module) -> None:
    layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    if any(layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu" for layer in layers):
        return
    kinds = sorted({type(module).__name__ for module in network.modules() if not [*module.children()]})
    types = sorted({f"{p.dtype} on {p.device.type}".removeprefix("torch.") for p in network.parameters()})
    raise ConfigError(
        f"quantize='int8' is for Conv2d and Linear in float32 on the CPU; this network has {', '.join(kinds)} "
        f"({', '.join(types) or 'no parameters'}); leave quantize out"
    )
