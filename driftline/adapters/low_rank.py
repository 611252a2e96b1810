"""Low-rank layers: a few parameters beside each frozen weight, for adapters to train (Hu et al., ICLR 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.adapters.choosing import patterns
from driftline.adapters.model import copied
from driftline.adapters.settings import at_least
from driftline.errors import ConfigError
from driftline.stream.seeds import derive_seed, generator

LOW_RANK = ("*down", "*up")
"""Names of what :func:`low_rank` adds, for ``parameters=`` of adapters."""


class LowRankLinear(nn.Linear):
    """A linear layer with ``up @ down`` (out, rank) @ (rank, in) beside its weight."""

    down: nn.Parameter
    up: nn.Parameter

    @classmethod
    def of(cls, source: nn.Linear, rank: int, rng: torch.Generator) -> Self:
        """Return the layer that takes the place of another, whose parameters it takes over, under the same names."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        _take_over(self, source, (rank, source.in_features), (source.out_features, rank), rng)
        return self

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, ..., out)."""
        return super().forward(input) + F.linear(F.linear(input, self.down), self.up)


class LowRankConv2d(nn.Conv2d):
    """A convolution with ``up @ down`` beside its weight: (out, rank, 1, 1), (rank, in, height, width)."""

    down: nn.Parameter
    up: nn.Parameter

    @classmethod
    def of(cls, source: nn.Conv2d, rank: int, rng: torch.Generator) -> Self:
        """Return the layer that takes the place of another, whose parameters it takes over, under the same names."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        for name in (*source.__constants__, "_reversed_padding_repeated_twice", "transposed"):
            setattr(self, name, getattr(source, name))
        down, up = (rank, *source.weight.shape[1:]), (source.out_channels, rank, 1, 1)
        _take_over(self, source, down, up, rng)
        return self

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, out, H', W')."""
        # One convolution with the sum: two of few channels take twice the time, and the sum next to none.
        beside = self.up.flatten(1) @ self.down.flatten(1)
        weight = self.weight + beside.view_as(self.weight)
        return cast(Tensor, self._conv_forward(input, weight, self.bias))


def low_rank(model: nn.Module, rank: int = 4, layers: str | Sequence[str] | None = None, seed: int = 0) -> nn.Module:
    """Return a copy of a model with few trainable parameters beside its linear and convolutional layers.

    A layer's weight W stays, and ``up @ down`` is added to it: ``rank * (in + out)`` parameters in place of
    ``in * out``, and for an optimizer's moments. At first ``up`` is zero, so that the model predicts exactly what it
    did.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    rank : int
        At least 1.
    layers : str or sequence of str, optional
        Patterns of names of layers. Default: every linear layer and convolution (in two dimensions, without groups)
        of which neither side is smaller than twice the rank.
    seed : int
        ``down`` is drawn, uniform in +- 1 / sqrt(fan-in).

    Returns
    -------
    nn.Module
        Trained by an adapter's ``parameters=LOW_RANK``.

    Raises
    ------
    ConfigError
        When there is no such layer, or a pattern names one of another kind.

    Notes
    -----
    Source: Hu et al., *LoRA: low-rank adaptation of large language models*, ICLR 2022, with its scale alpha / rank
    fixed to 1. A convolution's sum is formed anew in each forward pass, for next to nothing, since it goes on changing;
    a linear layer's products are kept apart, which costs less for few samples.

    Examples
    --------
    >>> from driftline.adapters import Tent
    >>> model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
    >>> adapter = Tent(low_rank(model, rank=2), parameters=LOW_RANK)
    >>> [name for name, p in adapter.model.named_parameters() if p.requires_grad]
    ['0.down', '0.up', '3.down', '3.up']
    >>> sum(p.numel() for p in adapter.model.parameters() if p.requires_grad)
    660
    """
    at_least("rank", rank, 1)
    model = copied(model)
    named = dict(model.named_modules())
    wanted = patterns(layers) if layers is not None else None
    chosen = {
        name: module
        for name, module in named.items()
        if (_fits(module, rank) if wanted is None else any(fnmatchcase(name, pattern) for pattern in wanted))
    }
    for name, module in chosen.items():
        if not _known(module):
            raise ConfigError(
                f"layers={layers!r} names {name!r}, a {type(module).__name__}; low-rank forms there are of nn.Linear, "
                "and of nn.Conv2d without groups"
            )
    if not chosen:
        raise ConfigError(
            f"layers={layers!r}, rank={rank}: the model has no such linear layer or convolution without groups; it has "
            f"{', '.join(name or 'itself' for name, module in named.items() if _known(module)) or 'none at all'}"
        )
    for name, module in chosen.items():
        rng = generator(derive_seed(seed, "low-rank", name))
        made = LowRankLinear.of(module, rank, rng) if isinstance(module, nn.Linear) else _conv(module, rank, rng)
        if not name:
            return made
        parent, _, last = name.rpartition(".")
        setattr(named[parent], last, made)
    return model


def folded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a ``state_dict`` in which the products are added to the weights that they are beside of.

    Examples
    --------
    >>> model = low_rank(nn.Linear(8, 4), rank=2)
    >>> _ = nn.init.ones_(model.up)
    >>> x = torch.ones(1, 8)
    >>> plain = nn.Linear(8, 4)
    >>> plain.load_state_dict(folded(model.state_dict()))
    <All keys matched successfully>
    >>> torch.allclose(plain(x), model(x), atol=1e-6)
    True
    """
    found = dict(weights)
    for name in weights:
        layer, _, last = name.rpartition(".")
        prefix = f"{layer}." if layer else ""
        if last == "down" and f"{prefix}up" in weights and f"{prefix}weight" in weights:
            down, up, weight = found.pop(name), found.pop(f"{prefix}up"), found[f"{prefix}weight"]
            found[f"{prefix}weight"] = weight + (up.flatten(1) @ down.flatten(1)).view_as(weight)
    return found


def _conv(module: nn.Module, rank: int, rng: torch.Generator) -> LowRankConv2d:
    assert isinstance(module, nn.Conv2d)
    return LowRankConv2d.of(module, rank, rng)


def _known(module: nn.Module) -> bool:
    # Exactly these: a subclass may compute something else with its weight.
    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)


def _fits(module: nn.Module, rank: int) -> bool:
    return _known(module) and isinstance(module, (nn.Linear, nn.Conv2d)) and min(module.weight.shape[:2]) >= 2 * rank


def _take_over(
    layer: LowRankLinear | LowRankConv2d,
    source: nn.Linear | nn.Conv2d,
    down: tuple[int, ...],
    up: tuple[int, ...],
    rng: torch.Generator,
) -> None:
    """Give a layer another's parameters, and its own two."""
    layer.weight, layer.bias = source.weight, source.bias
    bound = 1 / math.sqrt(math.prod(down[1:]))
    drawn = (2 * torch.rand(down, generator=rng) - 1) * bound
    layer.down = nn.Parameter(drawn.to(source.weight))
    layer.up = nn.Parameter(source.weight.new_zeros(up))
    layer.training = source.training
