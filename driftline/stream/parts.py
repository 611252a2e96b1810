"""What a part is made of: its constructor's arguments, which every part keeps under their own names."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer


def settings_of(part: object) -> dict[str, object]:
    """Return the arguments a part was made with, by name (an optimizer's parameters left out).

    Examples
    --------
    >>> import torch
    >>> settings_of(torch.optim.SGD([torch.zeros(1)], lr=0.1))["lr"]
    0.1
    """
    found: dict[str, object] = {}
    defaults = part.defaults if isinstance(part, Optimizer) else {}
    for name, parameter in inspect.signature(type(part)).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name == "params":
            continue
        if name in defaults:
            found[name] = defaults[name]
        elif hasattr(part, name):
            found[name] = getattr(part, name)
    return found


def describe_part(part: object) -> dict[str, object]:
    """Return name and settings of a part for the record (JSON values; models and tensors left out)."""
    if inspect.isroutine(part):
        return {"name": getattr(part, "__qualname__", type(part).__name__)}
    settings = {name: plain(value) for name, value in settings_of(part).items() if name != "name"}
    return {"name": type(part).__name__, **{name: value for name, value in settings.items() if value is not None}}


def plain(value: object) -> object:
    """Return a setting as a JSON value; None for what has none."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Optimizer):
        return describe_part(value)
    if isinstance(value, Sequence) and not any(isinstance(v, (Tensor, nn.Module)) for v in value):
        parts = [plain(v) for v in value]
        return None if any(p is None for p in parts) else parts
    return None
