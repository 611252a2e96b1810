"""What learners and adapters both need from a module: to run it unchanged, and to recognise its saved state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from driftline.errors import CheckpointError, InputError


def evaluate(model: nn.Module, x: Tensor) -> Tensor:
    """Return ``model(x)`` in evaluation mode, without gradients; every module is left in the mode it was in.

    Examples
    --------
    >>> model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2).eval())
    >>> evaluate(model, torch.ones(1, 2)).shape
    torch.Size([1, 2])
    >>> [module.training for module in model]
    [True, False]
    """
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        with torch.no_grad():
            return cast(Tensor, model(x))
    finally:
        # One by one: model.train() would also switch on the parts that were frozen on purpose.
        for module in training:
            module.training = True


def probe(model: nn.Module, x: Tensor, axis: int = 0, samples: int = 1) -> Tensor:
    """Return what the model gives for the first samples of ``x`` along ``axis``, changing nothing.

    Raises
    ------
    InputError
        When the model does not take such samples.
    """
    try:
        return evaluate(model, x.narrow(axis, 0, min(samples, x.shape[axis])))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the model does not take samples of shape {tuple(x.shape[1 + axis :])} and {x.dtype}: {reason}"
        ) from error


def depends_on_mode(model: nn.Module) -> bool:
    """Whether any module's code looks at ``training`` (dropout, batch normalisation, ...).

    Examples
    --------
    >>> depends_on_mode(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    False
    >>> depends_on_mode(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    True
    """
    kinds = {kind for module in model.modules() for kind in type(module).__mro__ if issubclass(kind, nn.Module)}
    codes = (getattr(f, "__code__", None) for kind in kinds - {nn.Module} for f in vars(kind).values())
    return any(code is not None and "training" in code.co_names for code in codes)


def check_same_model(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise if a state belongs to another model, naming the first difference.

    Raises
    ------
    CheckpointError
    """
    own = model.state_dict()
    for name in [*own, *state]:
        saved, here = _size(state, name), _size(own, name)
        if saved != here:
            raise CheckpointError(
                f"the state belongs to another model: for {name!r} it holds {saved}, the model has {here}"
            )


def _size(state: Mapping[str, object], name: str) -> str:
    """Say what a state holds under a name (a module may add entries that are no tensors)."""
    if name not in state:
        return "nothing"
    value = state[name]
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def draws_globally(model: nn.Module) -> bool:
    """Whether the model has modules of torch's that draw from its global generator in training.

    Examples
    --------
    >>> draws_globally(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)))
    True
    """
    kinds = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
    return any(isinstance(module, kinds) for module in model.modules())
