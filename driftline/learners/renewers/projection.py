"""Normalise and project: weights in front of normalisations are brought back to the size they began with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.errors import CheckpointError, ConfigError, unknown
from driftline.learners.lockstep.modules import kind_of
from driftline.learners.penalties.base import State, check_tensors, trainable

WEIGHTED = ("linear", "conv")


class NormalizeAndProject:
    """Normalise and project: W ← W ‖W₀‖ / ‖W‖ after every so many steps, for each layer that is normalised behind.

    Behind a normalisation the size of W has no influence on what the network computes, but a step changes a large W
    less: as weights grow, learning slows down. Bringing them back keeps the effective step size. Biases, and running
    statistics of batch normalisation, are rescaled with W, so that the function stays the same.

    Parameters
    ----------
    model : nn.Module
        The model at its initialisation: sizes are taken here. ``models.mlp(..., normalization="layer")`` and the other
        networks there have a normalisation before every nonlinearity, as the method wants.
    every : int
        Optimizer steps between two projections, at least 1; the paper finds 1 and 1000 equal.
    layers : sequence of str, optional
        Names of linear and convolutional layers to project. Default: those that a normalisation of their size follows
        in the order in which the model's modules were defined.
    replicas : int, optional
        How many runs the model holds in lockstep.

    Raises
    ------
    ConfigError
        For a setting out of range, or a model without such layers.

    Notes
    -----
    Lyle et al., "Normalization and effective learning rates in reinforcement learning" (NeurIPS 2024). Scales and
    shifts of the normalisations are left as they are; the paper drops them, or lets them decay.

    Examples
    --------
    >>> from driftline import models
    >>> model = models.mlp(4, classes=3, hidden=(8,), normalization="layer")
    >>> renewer = NormalizeAndProject(model)
    >>> size = model.body[1].weight.norm()
    >>> _ = model.body[1].weight.data.mul_(3.0)
    >>> renewer.renew(model, torch.optim.SGD(model.parameters(), lr=0.1))
    >>> torch.allclose(model.body[1].weight.norm(), size)
    True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 1,
        layers: Sequence[str] | None = None,
        replicas: int | None = None,
    ) -> None:
        if not isinstance(every, int) or every < 1:
            raise ConfigError(f"every={every}: must be one whole number of steps, at least 1")
        trainable(model, replicas, "NormalizeAndProject")
        self.model, self.every, self.layers, self.replicas = model, every, layers, replicas
        self._norms = _named(model, layers) if layers is not None else _normalised(model)
        if not self._norms:
            raise ConfigError(
                "NormalizeAndProject: the model has no layer with a normalisation behind it; build it with one, as "
                'models.mlp(..., normalization="layer"), or name the layers by layers=[...]'
            )
        self._sizes = {name: self._size(model, name) for name in self._norms}
        self.steps = 0

    def _size(self, model: nn.Module, name: str) -> Tensor:
        """Return a weight's Euclidean norm, a number or (R,)."""
        weight = cast(Tensor, model.get_submodule(name).weight).detach()
        found: Tensor = weight.norm() if self.replicas is None else weight.flatten(1).norm(dim=1)
        return found

    @torch.no_grad()
    def renew(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Count an optimizer step, and project where it is due."""
        self.steps += 1
        if self.steps % self.every == 0:
            for name in self._norms:
                self._project(model, name)

    def _project(self, model: nn.Module, name: str) -> None:
        layer, norm = model.get_submodule(name), self._norms[name]
        size = self._size(model, name)
        share = self._sizes[name] / size.clamp_min(torch.finfo(size.dtype).tiny)
        scaled = [(layer.weight, share), (layer.bias, share)]
        if norm is not None and kind_of(behind := model.get_submodule(norm)) == "batch_norm":
            scaled += [(behind.running_mean, share), (behind.running_var, share.square())]
        for tensor, by in cast("list[tuple[Tensor | None, Tensor]]", scaled):
            if tensor is not None:
                tensor.mul_(by if self.replicas is None else by.view(-1, *(1 for _ in tensor.shape[1:])))

    def to(self, device: torch.device | str) -> Self:
        """Move the initial sizes to ``device``."""
        self._sizes = {name: size.to(device) for name, size in self._sizes.items()}
        return self

    def state_dict(self) -> State:
        """Return the initial sizes and the number of steps."""
        return {"steps": self.steps, "sizes": dict(self._sizes)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When it is of another model; nothing has been changed then.
        """
        if set(state) != {"steps", "sizes"}:
            raise CheckpointError(f"the state has parts {sorted(state)}, NormalizeAndProject ['sizes', 'steps']")
        self._sizes = check_tensors(self._sizes, state["sizes"], "sizes")
        self.steps = cast(int, state["steps"])


def _normalised(model: nn.Module) -> dict[str, str | None]:
    """Return the layers that a normalisation of their size follows in the order of definition, with its name."""
    found: dict[str, str | None] = {}
    before: tuple[str, nn.Module] | None = None
    for name, module in model.named_modules():
        kind = kind_of(module)
        if kind in WEIGHTED:
            before = name, module
        elif kind is not None and before is not None:
            if _width(before[1]) == _width(module) and cast(Tensor, before[1].weight).requires_grad:
                found[before[0]] = name
            before = None
    return found


def _named(model: nn.Module, layers: Sequence[str]) -> dict[str, str | None]:
    known = {name: module for name, module in model.named_modules() if kind_of(module) in WEIGHTED}
    for name in layers:
        if name not in known:
            raise unknown("layer in layers", str(name), known)
    behind = _normalised(model)
    return {name: behind.get(name) for name in layers}


def _width(module: nn.Module) -> int:
    """Return how many units a layer has, or a normalisation expects."""
    for attribute in ("out_features", "out_channels", "num_features", "num_channels"):
        if hasattr(module, attribute):
            return int(getattr(module, attribute))
    return int(cast("tuple[int, ...]", module.normalized_shape)[-1])
