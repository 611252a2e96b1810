"""Activations for learning that never ends: ASH and Hard ASH, CReLU, deep Fourier features; and all of them by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.errors import ConfigError, unknown


class Activation(nn.Module):
    """Base of the activations here.

    Attributes
    ----------
    expansion : int
        How many activations come out for each unit that goes in; networks of :mod:`driftline.models` make the layer
        in front so much narrower.
    """

    expansion: ClassVar[int] = 1


class ASH(Activation):
    """Adaptive SwisH: x times a sigmoid that lets through what stands out among an example's units.

    x · sigmoid(α (x − μ − z s)), where μ and s are mean and standard deviation over the units of each example: about
    the share of units above z standard deviations stays active, whatever the layer's scale.

    Parameters
    ----------
    slope : float
        α, above 0: how sharp the threshold is.
    z : float
        z: 2.3 keeps about one unit in a hundred.

    Raises
    ------
    ConfigError
        For a slope that is not above 0, or a z that is not finite.

    Notes
    -----
    Lee et al., "Stochastic Adaptive Activation Function" (NeurIPS 2022), in the parameters of Keskinen, "Hard ASH:
    Sparsity and the right optimizer make a continual learner" (2024). All of an example's values are its units: for
    images, the channels at all pixels. s is not corrected for the mean's degree of freedom.

    Examples
    --------
    >>> ASH(z=1.0)(torch.tensor([[0.0, 0.0, 0.0, 4.0]])).round(decimals=2)
    tensor([[0.0000, 0.0000, 0.0000, 3.9100]])
    """

    def __init__(self, slope: float = 3.0, z: float = 2.3) -> None:
        if not slope > 0 or not abs(z) < float("inf"):
            raise ConfigError(f"slope={slope}, z={z}: slope must be above 0, and z a finite number")
        super().__init__()
        self.slope, self.z = slope, z

    def excess(self, x: Tensor) -> Tensor:
        """Return how far each unit lies above its example's threshold, times the slope."""
        flat = x.flatten(1)
        # Where all units are alike, the root's slope would be infinite, and NaN after a product with zero.
        spread = flat.var(1, correction=0, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
        threshold = flat.mean(1, keepdim=True) + self.z * spread
        return self.slope * (x - threshold.view(-1, *(1 for _ in x.shape[1:])))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, units) or (B, channels, ...) to the same shape."""
        return x * torch.sigmoid(self.excess(x))

    def extra_repr(self) -> str:
        """Return the settings, for ``print``."""
        return f"slope={self.slope:g}, z={self.z:g}"


class HardASH(ASH):
    """Hard ASH: ASH with a bounded x and a hard sigmoid, so that most units are exactly 0 and get no gradient.

    clip(x, 0, limit) · hard_sigmoid(α (x − μ − z s)), with hard_sigmoid(v) = clip(v / 6 + 1 / 2, 0, 1).

    Parameters
    ----------
    slope, z : float
        As for :class:`ASH`; the paper's z lies between 2.2 and 2.4.
    limit : float
        Above 0: the largest activation.

    Raises
    ------
    ConfigError
        For a setting out of range.

    Notes
    -----
    Keskinen (2024), see :class:`ASH`.

    Examples
    --------
    >>> HardASH(z=1.0)(torch.tensor([[0.0, 0.5, 0.0, 4.0]])).round(decimals=2)
    tensor([[0., 0., 0., 2.]])
    """

    def __init__(self, slope: float = 3.0, z: float = 2.3, limit: float = 2.0) -> None:
        if not limit > 0:
            raise ConfigError(f"limit={limit}: must be above 0")
        super().__init__(slope, z)
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, units) or (B, channels, ...) to the same shape."""
        return x.clamp(0.0, self.limit) * F.hardsigmoid(self.excess(x))

    def extra_repr(self) -> str:
        """Return the settings, for ``print``."""
        return f"{super().extra_repr()}, limit={self.limit:g}"


class CReLU(Activation):
    """Concatenated ReLU, [max(x, 0), max(−x, 0)]: no unit can die, as one of its two halves is active.

    Notes
    -----
    Shang, Sohn, Almeida & Lee, "Understanding and Improving Convolutional Neural Networks via Concatenated Rectified
    Linear Units" (ICML 2016); against loss of plasticity: Abbas et al. (2023).

    Examples
    --------
    >>> CReLU()(torch.tensor([[1.0, -2.0]]))
    tensor([[1., 0., 0., 2.]])
    """

    expansion: ClassVar[int] = 2

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, ...) to (B, 2 C, ...)."""
        return torch.cat((F.relu(x), F.relu(-x)), 1)


class Fourier(Activation):
    """Deep Fourier features, [sin x, cos x]: where one has no slope the other has most, so units stay trainable.

    Notes
    -----
    Lewandowski, Schuurmans & Machado, "Plastic Learning with Deep Fourier Features" (ICLR 2025).

    Examples
    --------
    >>> Fourier()(torch.zeros(1, 2))
    tensor([[0., 0., 1., 1.]])
    """

    expansion: ClassVar[int] = 2

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, ...) to (B, 2 C, ...)."""
        return torch.cat((torch.sin(x), torch.cos(x)), 1)


Make = Callable[[], nn.Module]

ACTIVATIONS: dict[str, Make] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "ash": ASH,
    "hard-ash": HardASH,
    "crelu": CReLU,
    "fourier": Fourier,
}


def activation_by(given: str | Make) -> Make:
    """Return what makes an activation, given by name or by itself.

    Raises
    ------
    ConfigError
        For an unknown name, or what cannot be called.

    Examples
    --------
    >>> activation_by("hard-ash")()
    HardASH(slope=3, z=2.3, limit=2)
    >>> activation_by("hardash")
    Traceback (most recent call last):
    driftline.errors.ConfigError: unknown activation 'hardash'; did you mean 'hard-ash'? There are: relu, ...
    """
    if isinstance(given, str):
        if given not in ACTIVATIONS:
            raise unknown("activation", given, ACTIVATIONS)
        return ACTIVATIONS[given]
    if not callable(given):
        raise ConfigError(f"activation={given!r}: give a name such as 'relu', or what makes a module, such as nn.ReLU")
    return given


def units_before(width: int, activation: Make, what: str) -> int:
    """Return how many units a layer needs so that ``width`` activations come out behind it.

    Raises
    ------
    ConfigError
        When the width is not a multiple of the activation's expansion.

    Examples
    --------
    >>> units_before(64, nn.ReLU, "hidden"), units_before(64, CReLU, "hidden")
    (64, 32)
    """
    expansion = int(getattr(activation(), "expansion", 1))
    if width % expansion:
        name = type(activation()).__name__
        raise ConfigError(f"{what}: {width} is no multiple of {expansion}, and {name} makes {expansion} of each unit")
    return width // expansion
