"""An optimizer around another one, which it shows as its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from driftline.errors import CheckpointError, ConfigError
from driftline.learners.optimizers.stepping import take_step


class Wrapper(Optimizer):
    """Does something before and after each step of another optimizer.

    Parameter groups, state and defaults are the other's, so schedulers and renewers work on either.

    Parameters
    ----------
    optimizer : Optimizer
        The one that makes the steps.

    Raises
    ------
    ConfigError
        When it is none.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            found = type(optimizer).__name__
            raise ConfigError(f"{type(self).__name__}: optimizer={found}: give a torch.optim.Optimizer")
        self.optimizer = optimizer
        super().__setstate__({})  # torch's hooks, without parameters of its own

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The other's parameter groups."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:
        """The other's state of each parameter."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The other's defaults, and this one's settings."""
        return {**self.optimizer.defaults, **self.own_settings()}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step of the other optimizer, with what this one adds to it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.before_step()
        take_step(self.optimizer)
        self.after_step()
        return loss

    def before_step(self) -> None:
        """Do what comes first; raise only before anything has changed."""

    def after_step(self) -> None:
        """Do what comes after the other's step."""

    def own_settings(self) -> dict[str, Any]:
        """Return what this one adds to the other's defaults."""
        return {}

    def own_state(self) -> dict[str, Any]:
        """Return what this one has to remember."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`own_state`."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the other optimizer."""
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the other's state, and this one's own under its class's name."""
        return {**self.optimizer.state_dict(), type(self).__name__: self.own_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`; tensors are copied.

        Raises
        ------
        CheckpointError
            When the state is another optimizer's; nothing has been changed then.
        """
        name = type(self).__name__
        if name not in state_dict or set(state_dict[name]) != set(self.own_state()):
            raise CheckpointError(f"{name}: the state was not saved by one, it has {sorted(state_dict)}")
        copied = copy.deepcopy(dict(state_dict))
        own = copied.pop(name)
        try:
            self.optimizer.load_state_dict(copied)
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{name}: the state does not fit the optimizer inside: {error}") from error
        self.load_own_state(own)

    def parameters(self) -> list[Tensor]:
        """Return all parameters in their order."""
        return [p for group in self.param_groups for p in group["params"]]

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but torch's hooks, so that copies and pickles are whole."""
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_optimizer_") and k != "step"}
