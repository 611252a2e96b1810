"""A step of any optimizer, without the entry in torch's profiler that costs a small network more than the step."""

from __future__ import annotations

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as of_torch

_ENTRY = Optimizer.profile_hook_step(lambda: None).__code__
"""Of the function that torch puts around every class's ``step``: it calls hooks, and makes the profiler's entry."""


def take_step(optimizer: Optimizer) -> None:
    """Do what ``optimizer.step()`` does.

    What torch puts around a step is left out where it would do nothing but cost: no hook is registered, and no
    profiler listens. A step that somebody else has wrapped, such as a scheduler, is called as it is.

    Examples
    --------
    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> p.grad = torch.ones(2)
    >>> take_step(torch.optim.SGD([p], lr=0.5))
    >>> p.tolist()
    [0.5, 0.5]
    """
    step = type(optimizer).step
    if getattr(step, "__code__", None) is not _ENTRY or "step" in vars(optimizer) or _watched(optimizer):
        optimizer.step()
    else:
        step.__wrapped__(optimizer)  # type: ignore[attr-defined]


def _watched(optimizer: Optimizer) -> bool:
    """Whether anybody wants to know of the step."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or of_torch._global_optimizer_pre_hooks
        or of_torch._global_optimizer_post_hooks
        or torch._C._autograd._profiler_enabled()
    )
