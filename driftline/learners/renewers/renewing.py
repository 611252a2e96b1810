"""What every renewer of units shares: the units of a model, what happens to chosen ones, and the state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import ClassVar, Literal, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.errors import CheckpointError, ConfigError, unknown
from driftline.learners.draws import Draws
from driftline.learners.renewers.initialization import INITIALIZATIONS, Initialization, bound
from driftline.learners.renewers.resetting import reset_units
from driftline.learners.renewers.unit_groups import UnitGroup, check_groups, find_unit_groups, weight_of
from driftline.learners.renewers.unit_state import Chosen, forget
from driftline.learners.replicas import Seeds

State = dict[str, object]
Variant = Literal["paper", "released"]


class UnitRenewer(ABC):
    """Base of the renewers of hidden units. A subclass decides in :meth:`renew` which units start again.

    Parameters
    ----------
    model : nn.Module
        Its hidden layers are renewed. With replicas: one of :mod:`driftline.learners.lockstep.modules`.
    initialization : str
        Of new incoming weights: ``kaiming``, ``default`` (torch's), ``xavier`` or ``lecun``, each uniform.
    seed : int or sequence of int
        Decides new weights; one for each replica.
    groups : sequence of UnitGroup, optional
        The layers to renew, from :func:`find_unit_groups`; default: all hidden layers.
    variant : {"paper", "released"}
        ``released`` reproduces released code.
    replicas : int, optional
        Number of replicas; default: the model's.

    Raises
    ------
    ConfigError
        For an unknown name, or layers that cannot be renewed; see :func:`find_unit_groups`.
    """

    purpose: ClassVar[str]
    """Name of the method in messages, and under which it draws random numbers."""
    lanes: ClassVar[int] = 1
    """Lanes of random numbers that each layer has; new weights take the first."""

    def __init__(
        self,
        model: nn.Module,
        initialization: Initialization,
        seed: Seeds,
        groups: Sequence[UnitGroup] | None,
        variant: Variant,
        replicas: int | None,
    ) -> None:
        self.replicas = replicas_of(model, replicas)
        for name, value, known in (
            ("initialization", initialization, INITIALIZATIONS),
            ("variant", variant, ("paper", "released")),
        ):
            if value not in known:
                raise unknown(name, value, known)
        self.draws = Draws(seed, self.purpose, self.replicas)
        self.groups = tuple(find_unit_groups(model) if groups is None else check_groups(model, groups))
        self.model, self.seed, self.variant, self.initialization = model, seed, variant, initialization
        self.step = 0

    @abstractmethod
    def renew(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Follow up one optimizer step."""

    def start_again(self, number: int, chosen: Chosen, optimizer: Optimizer) -> None:
        """Give units of a group fresh incoming and silent outgoing weights, and let the optimizer forget them."""
        group = self.groups[number]
        reset_units(group, chosen, self._new_rows(number, chosen))
        self._forget(optimizer, group, chosen)

    def state_dict(self) -> State:
        """Return everything that the next steps depend on: tensors and plain values only."""
        return {
            "step": self.step,
            "seed": list(self.seed) if isinstance(self.seed, Sequence) else self.seed,
            "layers": [group.name for group in self.groups],
            **self._own_state(),
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When the state is that of another renewer, of other layers or replicas; nothing has been changed then.
        """
        own = self.state_dict()
        check_keys(state, own, self.purpose)
        if state["layers"] != own["layers"]:
            raise CheckpointError(f"the state is that of layers {state['layers']}, here there are {own['layers']}")
        self._check_own_state(state)
        self.step = cast(int, state["step"])
        if state["seed"] != self.seed:
            self.seed = cast(Seeds, state["seed"])
            self.draws = Draws(self.seed, self.purpose, self.replicas)
        self._load_own_state(state)

    @abstractmethod
    def _own_state(self) -> State:
        """Return what a method remembers besides seed and step."""

    @abstractmethod
    def _check_own_state(self, state: Mapping[str, object]) -> None:
        """Raise CheckpointError unless :meth:`_load_own_state` can take this state."""

    @abstractmethod
    def _load_own_state(self, state: Mapping[str, object]) -> None:
        """Continue from :meth:`_own_state`."""

    def _new_rows(self, number: int, chosen: Chosen) -> Tensor:
        """Draw incoming weights (R?, k * fan_in)."""
        group = self.groups[number]
        weight = weight_of(group.in_module)
        fan_in = math.prod(weight.shape[group.lead + 1 :])
        drawn = self._uniform(number, 0, chosen.units.shape[-1] * fan_in, weight)
        largest = bound(group, self.initialization, self.variant == "released")
        return drawn.mul_(2 * largest).sub_(largest)

    def _forget(self, optimizer: Optimizer, group: UnitGroup, chosen: Chosen) -> None:
        forget(optimizer, group, chosen)

    def _uniform(self, number: int, what: int, count: int, like: Tensor) -> Tensor:
        lane = self.lanes * number + what
        return self.draws.uniform(self.step, count, lane, device=like.device, dtype=like.dtype)


def replicas_of(model: nn.Module, replicas: int | None) -> int | None:
    """Return the model's number of replicas.

    Raises
    ------
    ConfigError
        When another one is asked for.
    """
    of_model = cast("int | None", getattr(model, "replicas", None))
    if replicas is not None and replicas != of_model:
        raise ConfigError(f"replicas={replicas}, but the model has {of_model or 'none'}")
    return of_model


def check_whole(name: str, value: object, low: int = 1) -> None:
    """Raise unless a setting is a whole number, one for all replicas.

    Raises
    ------
    ConfigError

    Examples
    --------
    >>> check_whole("every", 0)
    Traceback (most recent call last):
    driftline.errors.ConfigError: every=0: must be a whole number of at least 1, the same for all replicas
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < low:
        raise ConfigError(f"{name}={value!r}: must be a whole number of at least {low}, the same for all replicas")


def check_keys(state: Mapping[str, object], own: Mapping[str, object], purpose: str) -> None:
    """Raise unless a state has the entries that it would have here.

    Raises
    ------
    CheckpointError
    """
    if set(state) != set(own):
        raise CheckpointError(f"the state has {sorted(state)}, {purpose} has {sorted(own)}")
