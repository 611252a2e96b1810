"""What adapters of networks share: a copy of the source model, the way back to it, and a state that says everything."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.adapters.base import Adapter
from driftline.adapters.normalization import following
from driftline.errors import CheckpointError, InputError
from driftline.stream.modules import check_same_model, evaluate, probe
from driftline.stream.parts import describe_part


class ModelAdapter(Adapter):
    """An adapter around a source model: a method adds a constructor, which ends in ``remember``, and ``update``.

    Parameters
    ----------
    model : nn.Module
        The source: maps (B, *input) to scores (B, classes). It may come in training or evaluation mode, frozen or not.
    inplace : bool
        Adapt the model itself, its layers included, in place of a copy.

    Attributes
    ----------
    model : nn.Module
        The model that is adapted, in evaluation mode.
    """

    held: ClassVar[tuple[str, ...]] = ("model",)
    """Names of the attributes that adapting changes: modules, optimizers, tensors, numbers, None, and objects with
    ``state_dict`` and ``load_state_dict``. They are the state, and what ``reset`` puts back."""

    optimizer: Optimizer

    def __init__(self, model: nn.Module, inplace: bool = False) -> None:
        self.inplace = inplace
        self.model = model if inplace else copied(model)
        self.model.eval()
        self._source: dict[str, object] = {}
        self._dtype: torch.dtype | None = None

    @abstractmethod
    def update(self, x: Tensor) -> Tensor:
        """Adapt to checked samples (B, *input) with gradients enabled, and return the scores for them (B, classes)."""

    def adapt(self, x: Tensor) -> Tensor:
        """Adapt to samples (B, *input) and return the method's scores for them (B, classes)."""
        self.check(x)
        # What changes several times on a batch may find out late that it cannot use it.
        before = {name: saved(getattr(self, name)) for name in self.held} if self.changes_on(len(x)) > 1 else {}
        try:
            with torch.enable_grad():
                scores = self.update(x).detach()
        except BaseException:
            for name, value in before.items():
                self._restore(name, value)
            for layer in following(self.model):
                layer.due = None
            raise
        for layer in following(self.model):
            layer.take_in()
        return scores

    def predict(self, x: Tensor) -> Tensor:
        """Return the scores (B, classes) of the model as it is now; changes nothing."""
        self.check(x)
        return evaluate(self.model, x)

    # --- for methods

    def changes_on(self, samples: int) -> int:
        """Return how many times a batch of so many samples may change the adapter; of one change, all or nothing."""
        return 1

    def step(self, loss: Tensor) -> None:
        """Take an optimizer step down a loss.

        Raises
        ------
        InputError
            When the loss is NaN or Inf; no parameter has been changed then.
        """
        demand_finite(loss, "the loss of this batch")
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()

    def remember(self) -> None:
        """Take what is held now for the source, to which ``reset`` returns."""
        self._source = {name: saved(getattr(self, name)) for name in self.held}

    # --- the contract

    def reset(self) -> None:
        """Return to the source: model, optimizer and everything else."""
        for name, value in self._source.items():
            self._restore(name, value)

    def state_dict(self) -> dict[str, object]:
        """Return everything that adapting has changed, and the adapter's name."""
        return {"adapter": type(self).__name__, **{name: state_of(getattr(self, name)) for name in self.held}}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When it belongs to another model or adapter; nothing has been changed then.
        """
        mine = {"adapter", *self.held}
        if set(state) != mine or state["adapter"] != type(self).__name__:
            who = state.get("adapter", f"something with parts {sorted(state)}")
            raise CheckpointError(f"the state is of {who}, this adapter is {type(self).__name__}")
        for name in self.held:
            here = getattr(self, name)
            if isinstance(here, nn.Module):
                check_same_model(here, cast(Mapping[str, Tensor], state[name]))
            elif isinstance(here, Optimizer):
                _check_same_optimizer(here, cast(Mapping[str, object], state[name]))
        for name in self.held:
            self._restore(name, state[name])

    def _restore(self, name: str, value: object) -> None:
        here = getattr(self, name)
        if hasattr(here, "load_state_dict"):
            here.load_state_dict(copy.deepcopy(value))
        elif isinstance(value, Tensor):
            setattr(self, name, value.clone().to(self.device))
        else:
            setattr(self, name, copy.deepcopy(value))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        first = next((t for t in (*self.model.parameters(), *self.model.buffers())), None)
        return torch.device("cpu") if first is None else first.device

    def network(self) -> nn.Module:
        """Return the model that is adapted."""
        return self.model

    def adapted_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all modules among ``held`` when an optimizer is, and none otherwise."""
        if "optimizer" not in self.held:
            return []
        modules = [value for name in self.held if isinstance(value := getattr(self, name), nn.Module)]
        return list(dict.fromkeys(parameter for module in modules for parameter in module.parameters()))

    def as_module(self) -> nn.Module | None:
        """Return the model that is adapted, unless the method predicts in a way of its own."""
        return self.model if type(self).predict is ModelAdapter.predict else None

    def describe(self) -> dict[str, object]:
        """Return the settings (JSON values)."""
        said = describe_part(self)
        name = said.pop("name")
        size = sum(p.numel() for p in self.model.parameters())
        return {"name": name, "parameters": {"model": type(self.model).__name__, "parameters": size, **said}}

    def to(self, device: torch.device | str) -> Self:
        """Move everything to ``device``."""
        for name, value in vars(self).items():
            if isinstance(value, nn.Module):
                value.to(device)
            elif isinstance(value, Tensor) or (name in self.held and hasattr(value, "to")):
                setattr(self, name, value.to(device))
        for value in vars(self).values():
            if isinstance(value, Optimizer):
                # Its tensors follow the parameters.
                value.load_state_dict(value.state_dict())
        return self

    def check(self, x: Tensor) -> None:
        """Raise if a batch cannot be used; the first of its kind is also tried on the model."""
        if self.trusted:
            return
        super().check(x)
        if x.dtype != self._dtype:
            # All of it, since a model that normalises by the batch may not take a single sample.
            self.num_classes = probe(self.model, x, samples=len(x)).shape[-1]
            self.verify(x)
            self.input_shape, self._dtype = tuple(x.shape[1:]), x.dtype

    def verify(self, x: Tensor) -> None:
        """Look at the first batch, changing nothing; a method raises InputError if it cannot work with the model."""


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model without gradients."""
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.grad = None
    return twin


def frozen(model: nn.Module) -> nn.Module:
    """Return a copy of a model that no gradient reaches, in evaluation mode: a teacher or an anchor."""
    return copied(model).eval().requires_grad_(False)


def values_of(tensors: Iterable[Tensor]) -> nn.ParameterList:
    """Return copies of tensors that no gradient reaches, as a module, which moves to a device as one."""
    return nn.ParameterList(nn.Parameter(t.detach().clone(), requires_grad=False) for t in tensors)


def follow(teacher: nn.Module, student: nn.Module, rate: float) -> None:
    """Move a teacher's parameters towards the student's: teacher <- (1 - rate) teacher + rate student."""
    with torch.no_grad():
        torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), rate)


def demand_finite(values: Tensor, what: str) -> None:
    """Raise unless all values are finite (this waits for the device).

    Raises
    ------
    InputError
    """
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            f"{what}: NaN or Inf; the model cannot use these samples, or adapting has made it diverge (lower lr, or "
            "wrap the adapter in a CollapseGuard); the model has not been changed by this batch"
        )


def state_of(value: object) -> object:
    """Return the state of something held."""
    return cast(Callable[[], object], value.state_dict)() if hasattr(value, "state_dict") else value


def saved(value: object) -> object:
    """Return the state of something held, in memory of its own."""
    return copy.deepcopy(state_of(value)) if not isinstance(value, Tensor) else value.detach().clone()


def _check_same_optimizer(here: Optimizer, state: Mapping[str, object]) -> None:
    groups = cast(Iterable[Mapping[str, list[int]]], state.get("param_groups", []))
    mine = [len(group["params"]) for group in here.param_groups]
    if [len(group["params"]) for group in groups] != mine:
        raise CheckpointError("the state's optimizer steps other parameters than this one")
