"""Which parameters an adapter changes, and the optimizer that changes them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.optim import Optimizer

from driftline.errors import ConfigError, unknown

Parameters = str | Sequence[str] | Callable[[str], bool]
"""``"affine"`` (scales and shifts of normalisation layers), ``"all"``, patterns of names such as ``["layer4.*"]``, or
``function(name) -> bool``."""

MakeOptimizer = str | Callable[[list[nn.Parameter]], Optimizer]
"""``"adam"``, ``"sgd"`` (momentum 0.9), ``"nesterov"`` (the same with Nesterov's), or ``function(parameters)``."""

NORMALIZATION = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def choose(model: nn.Module, parameters: Parameters = "affine", exclude: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """Let only the chosen parameters of a model require gradients, and return them by name.

    Parameters
    ----------
    model : nn.Module
        Whose parameters' ``requires_grad`` is set, whatever it was: a model frozen for inference can be adapted.
    parameters : str, sequence of str, or callable
        See :data:`Parameters`.
    exclude : sequence of str
        Patterns of names that are left out.

    Raises
    ------
    ConfigError
        When nothing is chosen, with what there is.

    Warns
    -----
    UserWarning
        When there are patterns to exclude and they match nothing that is wanted.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    >>> list(choose(model)), list(choose(model, ["2.*"])), list(choose(model, lambda name: name.endswith("bias")))
    (['1.weight', '1.bias'], ['2.weight', '2.bias'], ['0.bias', '1.bias', '2.bias'])
    """
    wanted = _predicate(model, parameters)
    known = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    fitting = {name: p for name, p in known.items() if wanted(name)}
    stay = patterns(exclude)
    chosen = {name: p for name, p in fitting.items() if not any(fnmatchcase(name, pattern) for pattern in stay)}
    if not chosen:
        hint = "the model has no normalisation layer with parameters; " if parameters == "affine" else ""
        left_out = f" without exclude={[*stay]}" if stay else ""
        raise ConfigError(
            f"parameters={parameters!r}{left_out} chooses none of the model's: {hint}name some, as parameters='all' "
            f"or by patterns such as {[*known][:1] or 'layer.*'}; it has {', '.join([*known][:8]) or 'no parameters'}"
        )
    if stay and len(chosen) == len(fitting):
        warnings.warn(
            f"exclude={[*stay]} matches none of this model's parameters, so that the last are trained, too "
            f"({', '.join([*chosen][-2:])}); name those that should stay, as exclude=['*layer3.*'] does for CIFAR's "
            "ResNets, or give exclude=[] to train them all",
            stacklevel=3,
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return chosen


def _predicate(model: nn.Module, parameters: Parameters) -> Callable[[str], bool]:
    if callable(parameters):
        return parameters
    if parameters == "all":
        return lambda name: True
    if parameters == "affine":
        affine = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in model.named_modules()
            if isinstance(module, NORMALIZATION)
            for name, _ in module.named_parameters(recurse=False)
        }
        return affine.__contains__
    wanted = patterns(parameters)
    return lambda name: any(fnmatchcase(name, pattern) for pattern in wanted)


def patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return patterns, of which one may be given alone."""
    return (given,) if isinstance(given, str) else tuple(given)


def make_optimizer(optimizer: MakeOptimizer, parameters: Sequence[nn.Parameter], lr: float) -> Optimizer:
    """Return an optimizer for parameters: by name with a step size, or the caller's own.

    Raises
    ------
    ConfigError
        For an unknown name, or a step size that is not positive.

    Examples
    --------
    >>> make_optimizer("sgd", [nn.Parameter(torch.zeros(1))], lr=0.1).defaults["momentum"]
    0.9
    """
    if callable(optimizer):
        return optimizer(list(parameters))
    if not lr > 0:
        raise ConfigError(f"lr={lr}: the step size must be positive")
    if optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr)
    if optimizer in ("sgd", "nesterov"):
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=optimizer == "nesterov")
    raise unknown("optimizer", optimizer, ("adam", "sgd", "nesterov"))
