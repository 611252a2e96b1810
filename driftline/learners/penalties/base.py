"""What penalties share: their strength, the parameters they act on, and the gradients they add to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.learners.replicas import Setting, check_setting, spread

State = dict[str, object]


class Penalty(ABC):
    """A term that is added to the loss: as a number that autograd follows, or as a gradient, which costs less.

    A subclass writes :meth:`__call__` and :meth:`add_gradients`, which agree up to rounding. Parameters that do not
    require gradients are left out, tied ones count once.

    Parameters
    ----------
    strength : float or sequence of float
        Factor of the term, at least 0; one number, or one for each replica. 0: as if the penalty were not there.
    replicas : int, optional
        How many runs the model holds in lockstep; None for an ordinary model.

    Raises
    ------
    ConfigError
        For a strength below 0 or not one for each replica.
    """

    def __init__(self, strength: Setting, replicas: int | None = None) -> None:
        check_setting("strength", strength, replicas, low=0)
        self.strength, self.replicas = strength, replicas

    @abstractmethod
    def __call__(self, model: nn.Module) -> Tensor:
        """Return the term for a model, a scalar; with replicas, the sum of each one's."""

    @abstractmethod
    def add_gradients(self, model: nn.Module) -> None:
        """Add the term's gradient to each parameter's ``grad``, making it where there is none.

        Raises
        ------
        InputError
            For a sparse gradient; nothing has been changed then.
        """

    @property
    def off(self) -> bool:
        """Whether the strength is 0, for all replicas."""
        return not (any(self.strength) if isinstance(self.strength, Sequence) else self.strength)

    def is_own(self, model: nn.Module) -> bool:
        """Whether what the penalty remembers, if anything, is of this very model."""
        return True

    def named_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters of a model that the penalty acts on."""
        return trainable(model, self.replicas, type(self).__name__)


class ModelPenalty(Penalty):
    """A penalty that remembers something of the model it was made for: of the parameters trainable then.

    Called with another model of the same form, such as a copy, it changes nothing of what it remembers.

    Parameters
    ----------
    model : nn.Module
        The model that will be trained.
    strength : float or sequence of float
        As for :class:`Penalty`.
    replicas : int, optional
        As for :class:`Penalty`.

    Raises
    ------
    ConfigError
        Also when the model has no trainable parameter, or other replicas than said.
    """

    def __init__(self, model: nn.Module, strength: Setting, replicas: int | None = None) -> None:
        super().__init__(strength, replicas)
        self.model = model
        self._own = trainable(model, replicas, type(self).__name__)

    def is_own(self, model: nn.Module) -> bool:
        """Whether the penalty was made for this very model, not for a copy."""
        return model is self.model

    def named_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return those of the model's parameters that were trainable at the start, and still are."""
        if self.is_own(model):
            found = self._own
        else:
            theirs = dict(model.named_parameters())
            missing = sorted(set(self._own) - set(theirs))
            if missing:
                raise ConfigError(f"{type(self).__name__} was made for another model: this one has no {missing[0]!r}")
            found = {name: theirs[name] for name in self._own}
        return {name: p for name, p in found.items() if p.requires_grad}

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move what is remembered to ``device``."""


def trainable(model: nn.Module, replicas: int | None, who: str) -> dict[str, nn.Parameter]:
    """Return a model's trainable parameters by name, each once.

    Raises
    ------
    ConfigError
        When there is none, or the model has other replicas.

    Examples
    --------
    >>> layer = nn.Linear(2, 3)
    >>> list(trainable(nn.Sequential(layer, nn.Linear(3, 2).requires_grad_(False), layer), None, "L2"))
    ['0.weight', '0.bias']
    """
    held = getattr(model, "replicas", None)
    if held != replicas:
        raise ConfigError(f"{who}: replicas={replicas}, but the model has replicas={held}; give the model's")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ConfigError(f"{who}: the model has no trainable parameter")
    return named


def gradients(named: Mapping[str, nn.Parameter]) -> list[Tensor]:
    """Return each parameter's ``grad``, first made of zeros where there is none.

    Raises
    ------
    InputError
        For a sparse gradient, before any is made.
    """
    grads = [p.grad for p in named.values()]
    if not all(grad is not None and grad.layout is torch.strided for grad in grads):
        for name, grad in zip(named, grads):
            if grad is not None and grad.layout is not torch.strided:
                raise InputError(f"the gradient of {name!r} is sparse, which penalties cannot add to; use sparse=False")
        for p in named.values():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        grads = [p.grad for p in named.values()]
    return cast("list[Tensor]", grads)


def check_place(penalty: Penalty, after_step: bool) -> None:
    """Raise where a penalty that has two forms, coupled and decoupled, is used in the other form's place.

    Raises
    ------
    ConfigError
    """
    decoupled = bool(getattr(penalty, "after_step", False))
    if after_step != decoupled:
        where = ("renewers", "penalties") if decoupled else ("penalties", "renewers")
        raise ConfigError(
            f"this {type(penalty).__name__} is {'' if decoupled else 'not '}decoupled: it belongs in {where[0]}=[...], "
            f"not in {where[1]}=[...]"
        )


def nothing(model: nn.Module) -> Tensor:
    """Return a zero to add to a loss, or to call ``backward`` on, that reaches none of the model's parameters."""
    like = next(model.parameters())
    return torch.zeros((), dtype=like.dtype, device=like.device, requires_grad=True)


def factor(value: Setting, like: Tensor) -> float | Tensor:
    """Return a setting in the form that multiplies a tensor, as :func:`spread`, but made only once."""
    return _spread(tuple(value), like.dim(), like.dtype, like.device) if isinstance(value, Sequence) else value


@lru_cache(maxsize=256)
def _spread(values: tuple[float, ...], dims: int, dtype: torch.dtype, device: torch.device) -> float | Tensor:
    return spread(values, torch.empty((0,) * dims, dtype=dtype, device=device))


def rates(optimizer: Optimizer) -> Iterator[tuple[nn.Parameter, float | Tensor]]:
    """Yield an optimizer's parameters, each with the learning rate it has now.

    Raises
    ------
    ConfigError
        When the optimizer has none.
    """
    each = getattr(optimizer, "lr", None)  # the only place where torch's own can have one for each replica
    for group in optimizer.param_groups:
        if "lr" not in group:
            raise ConfigError(f"{type(optimizer).__name__} has no learning rate, which a decoupled penalty needs")
        rate = each if isinstance(each, Sequence) else group["lr"]
        for p in group["params"]:
            yield p, factor(rate, p)


def check_tensors(own: Mapping[str, Tensor], saved: object, what: str) -> dict[str, Tensor]:
    """Return copies of saved tensors, on the device and in the dtype of one's own.

    Raises
    ------
    CheckpointError
        When names or shapes differ.
    """
    if not isinstance(saved, Mapping) or set(saved) != set(own):
        names = sorted(saved) if isinstance(saved, Mapping) else saved
        raise CheckpointError(f"the state has {what} of {names}, this penalty of {sorted(own)}")
    for name, tensor in own.items():
        if saved[name].shape != tensor.shape:
            raise CheckpointError(
                f"the state has {what} of shape {tuple(saved[name].shape)} for {name!r}, "
                f"this penalty of {tuple(tensor.shape)}"
            )
    return {name: saved[name].detach().to(own[name], copy=True) for name in own}
