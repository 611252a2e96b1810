"""Torch's own optimizers with a learning rate for each replica."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from driftline.learners.replicas import check_setting

ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
)
"""Optimizers that treat every entry alike and alone, so that replicas do not meet in them."""


class RatePerReplica(Optimizer):
    """An elementwise optimizer whose step is scaled by each replica's own learning rate.

    The optimizer takes its step with rate 1, of which ``lr[i]`` is kept for replica i: a step of these optimizers,
    decoupled weight decay included, is proportional to the rate.

    Parameters
    ----------
    optimizer : Optimizer
        One of :data:`ELEMENTWISE`, made with ``lr=1.0`` over parameters with R replicas.
    lr : sequence of float
        One for each replica.

    Examples
    --------
    >>> p = torch.nn.Parameter(torch.ones(2, 3))
    >>> optimizer = RatePerReplica(torch.optim.SGD([p], lr=1.0), lr=[0.1, 0.2])
    >>> p.sum().backward()
    >>> optimizer.step()
    >>> p[:, 0].tolist()
    [0.8999999761581421, 0.800000011920929]
    """

    def __init__(self, optimizer: Optimizer, lr: Sequence[float], replicas: int | None = None) -> None:
        check_setting("lr", lr, len(lr) if replicas is None else replicas, low=0)
        self.optimizer, self.lr, self.replicas = optimizer, list(lr), replicas
        self.defaults = optimizer.defaults
        self.param_groups = optimizer.param_groups
        self.state = optimizer.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step."""
        moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [p.clone() for p in moved]
        loss = self.optimizer.step(closure) if closure is not None else self.optimizer.step()
        for p, start in zip(moved, before):
            rate = torch.tensor(self.lr, dtype=p.dtype, device=p.device).view(-1, *(1 for _ in p.shape[1:]))
            p.copy_(start + rate * (p - start))
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a :meth:`state_dict`."""
        self.optimizer.load_state_dict(dict(state_dict))
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state

    def __repr__(self) -> str:
        return f"RatePerReplica({self.optimizer!r}, lr={self.lr})"
