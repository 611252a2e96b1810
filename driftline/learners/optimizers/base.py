"""What the optimizers here share: settings for each replica, one clock, checks before any change, exact state."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.learners.draws import Draws
from driftline.learners.optimizers.passes import Factors
from driftline.learners.replicas import Seeds, check_setting

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
Group = dict[str, Any]

_add_param_group, _zero_grad, _state_dict, _load_state_dict = (
    inspect.unwrap(method)
    for method in (Optimizer.add_param_group, Optimizer.zero_grad, Optimizer.state_dict, Optimizer.load_state_dict)
)
"""torch's own, but for what loads torch's compiler at the first call: 70 MB and seconds that a device may not have."""


def check_dense(params: Iterable[Tensor], who: str) -> None:
    """Raise if a parameter has a sparse gradient.

    Raises
    ------
    InputError
    """
    if any(p.grad is not None and p.grad.layout != torch.strided for p in params):
        raise InputError(f"{who}: a gradient is sparse; build the embedding with sparse=False")


class Ready:
    """The parameters of one group that have a gradient, and their state."""

    def __init__(self, group: Group, params: list[Tensor], states: list[dict[str, Any]]) -> None:
        self.group, self.params, self.states = group, params, states
        self.grads: list[Tensor] = [p.grad for p in params if p.grad is not None]
        self.counts: list[int] = []

    def tensors(self, name: str) -> list[Tensor]:
        """Return the state tensors of this name, zeros in the parameters' shape where there are none yet."""
        for p, state in zip(self.params, self.states):
            if name not in state:
                state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return [state[name] for state in self.states]

    def tick(self) -> None:
        """Count this step for each parameter; :attr:`counts` is its number, 1 for the first."""
        for state in self.states:
            state["step"] = state.get("step", 0) + 1
        self.counts = [state["step"] for state in self.states]


class StreamOptimizer(Optimizer):
    """Base of the optimizers in this folder; a subclass writes :meth:`update`.

    A step first checks everything it needs and only then changes anything. Parameters without a gradient are
    passed over. Settings in ``param_groups`` are one number, or one for each replica.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or parameter groups, as for every ``torch.optim.Optimizer``.
    defaults : dict
        Settings of a group that does not give its own.
    replicas : int, optional
        Number of runs in lockstep: every parameter then has a leading dimension of this size.
    seed : int or sequence of int, optional
        Of the random numbers, for those that draw any; one for each replica.

    Raises
    ------
    ConfigError
        For a setting out of range or not one for each replica, a parameter listed twice, or one without the
        leading dimension.
    """

    bounds: ClassVar[Mapping[str, tuple[float | None, float | None]]] = {}
    """Smallest and largest value of each setting of a group that may differ between replicas."""
    purpose: ClassVar[str] = ""
    """Name under which this kind of optimizer draws random numbers."""
    counters: ClassVar[tuple[str, ...]] = ("steps",)
    """Attributes that travel with the state: the addresses of random draws."""
    of_units: ClassVar[tuple[str, ...]] = ()
    """State tensors of real numbers that do not have the parameter's shape."""

    def __init__(
        self, params: Parameters, defaults: dict[str, Any], replicas: int | None, seed: Seeds | None = None
    ) -> None:
        self.replicas, self.seed = replicas, seed
        self.draws = None if seed is None else Draws(seed, self.purpose, replicas)
        self.steps = 0
        self.factor = Factors()
        super().__init__(params, defaults)

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters with their own settings; checked first."""
        for name, (low, high) in self.bounds.items():
            check_setting(name, param_group.get(name, self.defaults[name]), self.replicas, low, high)
        _add_param_group(self, param_group)
        try:
            self.check_group(self.param_groups[-1])
        except ConfigError:
            self.param_groups.pop()
            raise

    def check_group(self, group: Group) -> None:
        """Raise for parameters that this optimizer cannot hold."""
        params = group["params"]
        if len({id(p) for p in params}) < len(params):
            raise ConfigError("a parameter is listed twice; list tied weights once, as model.parameters() does")
        for p in params:
            if self.replicas is not None and (p.dim() == 0 or p.shape[0] != self.replicas):
                raise ConfigError(
                    f"replicas={self.replicas}, but a parameter has shape {tuple(p.shape)}; "
                    "every parameter needs one slice for each replica in front"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and the gradients again, and returns the loss.

        Raises
        ------
        InputError
            For a sparse gradient; nothing has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ready = self.ready()
        if ready:
            self.update(ready)
        self.steps += 1
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or set them to zero."""
        _zero_grad(self, set_to_none)

    def update(self, ready: list[Ready]) -> None:
        """Change the parameters that have gradients."""
        raise NotImplementedError

    def ready(self) -> list[Ready]:
        """Return the parameters that have gradients, group by group.

        Raises
        ------
        InputError
            For a sparse gradient.
        """
        found = []
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None and p.numel() > 0]
            check_dense(params, type(self).__name__)
            if params:
                found.append(Ready(group, params, [self.state[p] for p in params]))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return groups, state, and the seed and the number of steps made, on which random draws depend."""
        state = {**_state_dict(self), **{name: getattr(self, name) for name in self.counters}}
        if self.seed is not None:
            state["seed"] = self.seed if isinstance(self.seed, int) else list(self.seed)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly from a :meth:`state_dict`; tensors are copied.

        Raises
        ------
        CheckpointError
            When the state is another optimizer's; nothing has been changed then.
        """
        self._check_state(state_dict)
        copied = copy.deepcopy(dict(state_dict))
        _load_state_dict(self, copied)
        # torch casts every state tensor to the parameter's dtype; counts above 2**24 would not survive that
        for index, p in enumerate(p for group in self.param_groups for p in group["params"]):
            for name, value in copied["state"].get(index, {}).items():
                if isinstance(value, Tensor) and not value.is_floating_point():
                    self.state[p][name] = value if value.dim() == 0 else value.to(p.device)
        for name in self.counters:
            setattr(self, name, copied[name])
        if "seed" in copied and copied["seed"] != self.seed:
            self.seed = copied["seed"]
            self.draws = Draws(copied["seed"], self.purpose, self.replicas)

    def _check_state(self, state: Mapping[str, Any]) -> None:
        name = type(self).__name__
        wanted = {"state", "param_groups", *self.counters, *(() if self.seed is None else ("seed",))}
        if not wanted <= set(state):
            raise CheckpointError(f"{name}: the state has {sorted(state)}; it was saved with another optimizer")
        sizes = [len(g["params"]) for g in state["param_groups"]]
        own = [len(g["params"]) for g in self.param_groups]
        if sizes != own:
            raise CheckpointError(f"{name}: the state has groups of {sizes} parameters, this optimizer of {own}")
        for saved, group in zip(state["param_groups"], self.param_groups):
            if missing := sorted(set(group) - set(saved) - {"param_names"}):
                raise CheckpointError(f"{name}: the state lacks {', '.join(missing)}; it is another optimizer's")
        for index, p in enumerate(p for group in self.param_groups for p in group["params"]):
            for key, value in state["state"].get(index, {}).items():
                whole = isinstance(value, Tensor) and value.is_floating_point() and key not in self.of_units
                if whole and value.shape != p.shape:
                    raise CheckpointError(
                        f"{name}: {key} of parameter {index} has shape {tuple(value.shape)}, but the parameter "
                        f"{tuple(p.shape)}; it is another model's"
                    )

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but torch's hooks, so that copies and pickles are whole."""
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_optimizer_") and k != "step"}
