"""Whole layers: which ones a model has, and how they are given weights as if they were new."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from driftline.errors import ConfigError, unknown
from driftline.learners.draws import Draws
from driftline.learners.lockstep.modules import Kind, kind_of
from driftline.learners.renewers.unit_groups import WEIGHTED, parameters_problem

LANES = 2
"""Lanes of random numbers of each layer: weight and bias."""
NEW = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0}
"""What a normalisation's tensors are at first."""


def last_layers(model: nn.Module, layers: int | str | Sequence[str]) -> dict[str, nn.Module]:
    """Return the modules with parameters that belong to some layers, by name, in the order of the model.

    Parameters
    ----------
    model : nn.Module
        Any.
    layers : int, "all" or sequence of str
        How many of the last linear and convolutional layers, in the order in which the model has them, with the
        normalisations after the first of them; all layers; or names of modules, with everything inside. Frozen
        layers (``requires_grad=False``) are passed over.

    Raises
    ------
    ConfigError
        For a name or number that the model does not have, and for modules whose weights cannot be made anew: tied,
        computed or partly frozen ones, and kinds of layers other than linear, convolutional and normalisation.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    >>> list(last_layers(model, 1)), list(last_layers(model, "all")), list(last_layers(model, ["1"]))
    (['3'], ['0', '1', '3'], ['1'])
    """
    known = dict(model.named_modules())
    owning = {name: m for name, m in known.items() if any(p.requires_grad for p in m.parameters(recurse=False))}
    weighted = [name for name, module in owning.items() if kind_of(module) in WEIGHTED]
    if isinstance(layers, int) and not isinstance(layers, bool):
        if not 1 <= layers <= len(weighted):
            raise ConfigError(f"layers={layers}, but the model has {len(weighted)} trainable layers")
        first = list(owning).index(weighted[-layers])
        chosen = dict(list(owning.items())[first:])
    elif layers == "all":
        chosen = owning
    elif isinstance(layers, Sequence) and not isinstance(layers, str) and layers:
        for name in layers:
            if name not in known:
                raise unknown("layer in layers", str(name), [n for n in known if n])
        inside = tuple(f"{name}." for name in layers)
        chosen = {name: m for name, m in owning.items() if name in layers or name.startswith(inside)}
    else:
        raise ConfigError(f"layers={layers!r}: give a number of last layers, names of layers, or 'all'")
    if not chosen:
        raise ConfigError(f"layers={layers!r}: there are no trainable parameters in it")
    _check(chosen, known)
    return chosen


def _check(chosen: Mapping[str, nn.Module], known: Mapping[str, nn.Module]) -> None:
    for name, module in chosen.items():
        if kind_of(module) is None:
            raise ConfigError(
                f"{name or 'the model'!r} is a {type(module).__name__}, whose first weights are not known; name other "
                "layers with layers="
            )
        if problem := parameters_problem(name, known):
            raise ConfigError(f"layer {name!r} cannot start again: {problem}")


@torch.no_grad()
def start_layer_again(module: nn.Module, draws: Draws, step: int, number: int) -> None:
    """Give a layer new weights from the distribution that PyTorch's layers begin with.

    That is U(-b, b) with b = sqrt(1 / fan_in) for weight and bias of linear and convolutional layers, and scale 1,
    shift 0 and fresh running statistics for normalisations.

    Parameters
    ----------
    module : nn.Module
        One of :func:`last_layers`.
    draws : Draws
        Where random numbers come from.
    step, number : int
        Address of the draw: step, and number of the layer.

    Examples
    --------
    >>> layer = nn.Linear(4, 100)
    >>> _ = layer.weight.data.fill_(7.0)
    >>> start_layer_again(layer, Draws(0, "example"), step=1, number=0)
    >>> 0.45 < layer.weight.abs().max() < 0.5
    tensor(True)
    """
    kind: Kind | None = kind_of(module)
    if kind not in WEIGHTED:
        for name, value in NEW.items():
            if (tensor := getattr(module, name, None)) is not None:
                tensor.fill_(value)
        return
    lead = int(hasattr(module, "replicas"))
    largest = math.sqrt(1 / math.prod(module.get_parameter("weight").shape[lead + 1 :]))
    for lane, (_, parameter) in enumerate(sorted(module.named_parameters(recurse=False), reverse=True)):
        count = math.prod(parameter.shape[lead:])
        drawn = draws.uniform(step, count, LANES * number + lane, device=parameter.device, dtype=parameter.dtype)
        parameter.copy_(drawn.mul_(2 * largest).sub_(largest).view_as(parameter))
