"""Optimizers by name, torch's own and those of the pytorch_optimizer package, and what others' need to take a step."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import nn
from torch.optim import Optimizer

from driftline.errors import ConfigError, unknown

Maker = Callable[[Iterable[nn.Parameter]], Optimizer]

KNOWN = ("torch.optim.", "driftline.")
"""Where optimizers come from that take a step from gradients alone (``LBFGS`` aside)."""


def named_optimizer(name: str, **settings: object) -> Maker:
    """Return a function that makes an optimizer of parameters: one of torch's, or of the ``pytorch_optimizer`` package.

    Parameters
    ----------
    name : str
        Name of the class, in any case: ``"sgd"``, ``"adamw"`` (torch's); ``"prodigy"``, ``"dadaptadam"``, ``"lion"``
        (those of ``pytorch_optimizer``, which needs ``pip install "driftline[optimizers]"``).
    **settings
        What the class takes beside parameters. Without ``lr`` it is the class's own: optimizers that estimate their
        step size (Prodigy, D-Adaptation) take it as a factor of the estimate, 1.0.

    Raises
    ------
    ConfigError
        For an unknown name, or when the package is not installed; when called, for settings that the class refuses.

    Examples
    --------
    >>> named_optimizer("adamw", lr=0.01)([torch.nn.Parameter(torch.zeros(2))]).defaults["lr"]
    0.01
    >>> named_optimizer("sdg")
    Traceback (most recent call last):
    driftline.errors.ConfigError: unknown optimizer 'sdg'; did you mean 'sgd'? There are: ...
    """
    kind = _find(name)

    def make(params: Iterable[nn.Parameter]) -> Optimizer:
        try:
            # Classes for whole models take those by another name, which parameters cannot stand in for.
            return kind(list(params), **settings)
        except Exception as error:
            given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
            raise ConfigError(f"optimizer {name}({given}) cannot be made of a model's parameters: {error}") from error

    return make


def check_step(optimizer: Optimizer) -> bool:
    """Find out whether an optimizer of unknown origin takes steps from gradients, before it is used.

    It is tried on a copy, which takes one step on a loss of its own. Torch's and this package's are taken as known.

    Parameters
    ----------
    optimizer : Optimizer
        Not changed.

    Returns
    -------
    bool
        Whether gradients need a graph of their own (``create_graph``), as for optimizers that estimate the Hessian.

    Raises
    ------
    ConfigError
        When it takes a step neither way, such as one that needs a closure.

    Examples
    --------
    >>> parameter = torch.nn.Parameter(torch.zeros(2))
    >>> check_step(torch.optim.Adam([parameter]))
    False
    >>> check_step(torch.optim.LBFGS([parameter]))
    Traceback (most recent call last):
    driftline.errors.ConfigError: LBFGS cannot take a step from gradients alone ... closure...
    """
    name, module = type(optimizer).__name__, f"{type(optimizer).__module__}."
    if module.startswith(KNOWN) and not isinstance(optimizer, torch.optim.LBFGS):
        return False
    try:
        _try(optimizer, graph=False)
    except Exception as first:
        try:
            _try(optimizer, graph=True)
        except Exception:
            raise ConfigError(
                f"{name} cannot take a step from gradients alone ({first}); choose an optimizer that needs no closure "
                "and no second pass"
            ) from first
        return True
    return False


def _try(optimizer: Optimizer, graph: bool) -> None:
    """Let a copy take a step on a loss with curvature everywhere."""
    tried = _copied(optimizer, {})
    params = [p for group in tried.param_groups for p in group["params"] if p.requires_grad]
    cuda = sorted({p.device for p in params if p.device.type == "cuda"}, key=str)
    with torch.random.fork_rng(devices=cuda), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = torch.stack([(p.float() ** 2 + p.float()).sum() for p in params]).sum()
        gradients = torch.autograd.grad(loss, params, create_graph=graph)
        for p, gradient in zip(params, gradients):
            p.grad = gradient
        tried.step()


def _copied(optimizer: Optimizer, memo: dict[int, object]) -> Optimizer:
    """Return a copy with its parameters, whole: torch's own way leaves out what a class keeps beside its groups."""
    twin = memo[id(optimizer)] = object.__new__(type(optimizer))
    # A user's hooks, and the step that a schedule has wrapped, are the original's.
    kept = {k: v for k, v in vars(optimizer).items() if k != "step" and not k.startswith("_optimizer_")}
    for value in kept.values():
        if isinstance(value, Optimizer):
            _copied(value, memo)
    vars(twin).update(copy.deepcopy(kept, memo))
    Optimizer.__setstate__(twin, {})
    return twin


def _find(name: str) -> Callable[..., Optimizer]:
    """Return the class of that name."""
    kinds = {
        key.lower(): kind
        for key, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
    }
    if name.lower() in kinds:
        return cast("Callable[..., Optimizer]", kinds[name.lower()])
    try:
        import pytorch_optimizer
    except ImportError:
        error = unknown("optimizer", name, kinds)
        raise ConfigError(f'{error}; for others: pip install "driftline[optimizers]"') from None
    others = pytorch_optimizer.get_supported_optimizers()
    if name.lower() not in others:
        raise unknown("optimizer", name, sorted({*kinds, *others}))
    return cast("Callable[..., Optimizer]", pytorch_optimizer.load_optimizer(name))
