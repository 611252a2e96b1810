"""What an optimizer remembers about single units, and how it is forgotten when they are renewed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.learners.renewers.unit_groups import UnitGroup

CLOCKS = {0: "row_start", 1: "column_start"}
"""Names of an optimizer's clocks: at which step each row and column of a parameter began, by dimension."""


@dataclass(frozen=True)
class Chosen:
    """Some units of a layer.

    Attributes
    ----------
    units : Tensor
        Their numbers, (k,), or (R, k) with replicas; no number twice.
    counts : Tensor, optional
        (R, k) bool: which of them count, where the replicas have chosen different numbers of units.
    """

    units: Tensor
    counts: Tensor | None = None

    @classmethod
    def where(cls, mask: Tensor) -> Chosen | None:
        """Return the units that a mask (R?, units) marks, or None when there are none; waits for the device.

        Examples
        --------
        >>> Chosen.where(torch.tensor([False, True, True]))
        Chosen(units=tensor([1, 2]), counts=None)
        """
        if mask.dim() == 1:
            units = mask.nonzero().flatten()
            return cls(units) if len(units) else None
        each = mask.sum(-1, keepdim=True)
        most = int(each.max())
        units = mask.byte().sort(dim=-1, descending=True, stable=True).indices[:, :most]
        return cls(units, torch.arange(most, device=mask.device) < each) if most else None

    def repeated(self, times: int) -> Chosen:
        """Return their columns where each unit has ``times`` consecutive ones."""
        if times == 1:
            return self
        columns = self.units.unsqueeze(-1) * times + torch.arange(times, device=self.units.device)
        counts = None if self.counts is None else self.counts.repeat_interleave(times, -1)
        return Chosen(columns.flatten(-2), counts)

    def read(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Return these rows (``dim`` 0) or columns (1), as (R?, k, ...)."""
        if self.units.dim() == 1:
            return tensor.index_select(dim, self.units).transpose(0, dim)
        return tensor.transpose(1, 1 + dim)[self._replicas(), self.units]

    def write(self, tensor: Tensor, value: float | Tensor, dim: int = 0) -> None:
        """Set these rows (``dim`` 0) or columns (1) to a number, or to (R?, k, ...)."""
        if self.units.dim() == 2:
            if self.counts is not None:
                old = self.read(tensor, dim)
                value = torch.where(self.counts.view(*self.counts.shape, *(1 for _ in old.shape[2:])), value, old)
            tensor.transpose(1, 1 + dim)[self._replicas(), self.units] = value
        elif isinstance(value, Tensor) and value.dim():
            tensor.index_copy_(dim, self.units, value.transpose(0, dim))
        else:
            tensor.index_fill_(dim, self.units, value)

    def _replicas(self) -> Tensor:
        return torch.arange(len(self.units), device=self.units.device).unsqueeze(-1)


def slices(group: UnitGroup, chosen: Chosen) -> Iterator[tuple[nn.Parameter, int, Chosen]]:
    """Return what belongs to units: each parameter, the dimension along which they lie in it, and where."""
    for parameter in group.in_module.parameters(recurse=False):
        yield parameter, 0, chosen
    for norm in group.norms:
        for parameter in norm.parameters(recurse=False):
            yield parameter, 0, entries(group, chosen, parameter)
    for hearer in group.out_modules:
        yield hearer.get_parameter("weight"), 1, chosen.repeated(group.out_repeat)


def entries(group: UnitGroup, chosen: Chosen, tensor: Tensor) -> Chosen:
    """Return where units lie in a normalisation's tensor, which may stand behind a flattening."""
    lead = chosen.units.dim() - 1
    return chosen.repeated(tensor.shape[lead] // group.units)


@torch.no_grad()
def forget(
    optimizer: Optimizer, group: UnitGroup, chosen: Chosen, keep: Callable[[str, nn.Parameter], bool] | None = None
) -> None:
    """Let an optimizer forget renewed units: what it remembers of them becomes what it is for a new parameter.

    Entries of every state tensor that has the parameter's shape are set back, for the units' rows of weight, bias
    and normalisation and their columns of the next layers' weights. That is zero for momentum and for the averages
    of Adam, RMSprop and their kin; the initial accumulator of Adagrad, the learning rate for the step sizes of
    Rprop, the parameter itself for the average of ASGD. Where an optimizer keeps the steps at which rows and
    columns began (``row_start``, ``column_start``), these become its current step, so that bias correction starts
    anew; where it counts steps for the whole parameter, as torch's do, the count goes on.

    Parameters
    ----------
    optimizer : Optimizer
        Any; for one that wraps another as ``.optimizer``, both forget.
    group : UnitGroup
        Which layer's.
    chosen : Chosen
        The units.
    keep : callable, optional
        ``keep(name, parameter)``: True for state that stays.

    Examples
    --------
    >>> from driftline.learners.renewers.unit_groups import find_unit_groups
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> sum(p.sum() for p in model.parameters()).backward()
    >>> optimizer.step()
    >>> forget(optimizer, find_unit_groups(model)[0], Chosen(torch.tensor([1])))
    >>> optimizer.state[model[0].bias]["momentum_buffer"].tolist()
    [1.0, 0.0, 1.0]
    """
    for one in unwrapped(optimizer):
        for parameter, dim, where in slices(group, chosen):
            if parameter not in one.state:
                continue
            state = one.state[parameter]
            for name, value in state.items():
                if keep is not None and keep(name, parameter):
                    continue
                if name == CLOCKS[dim]:
                    where.write(value, _now(state["step"]))
                elif isinstance(value, Tensor) and value.shape == parameter.shape and name not in CLOCKS.values():
                    where.write(value, _fresh(one, parameter, name, where, dim), dim)


def forget_parameters(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Let an optimizer forget whole parameters: its next step finds them new.

    Parameters
    ----------
    optimizer : Optimizer
        Any; for one that wraps another as ``.optimizer``, both forget.
    parameters : iterable of nn.Parameter
        Those it does not hold are passed over.

    Examples
    --------
    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    >>> forget_parameters(optimizer, [model.weight])
    >>> model.weight in optimizer.state, model.bias in optimizer.state
    (False, True)
    """
    chosen = list(parameters)
    for one in unwrapped(optimizer):
        for parameter in chosen:
            if parameter not in one.state:
                continue
            if isinstance(one, torch.optim.Adagrad):  # the one that makes its state ahead, and only once
                group = next(g for g in one.param_groups if any(p is parameter for p in g["params"]))
                one.state[parameter]["sum"].fill_(group["initial_accumulator_value"])
                one.state[parameter]["step"].zero_()
            else:
                del one.state[parameter]


def forget_entries(optimizer: Optimizer, parameter: nn.Parameter, entries: Tensor) -> None:
    """Let an optimizer forget single entries of a parameter, as :func:`forget` does for units; clocks go on.

    Parameters
    ----------
    optimizer : Optimizer
        Any; for one that wraps another as ``.optimizer``, both forget.
    parameter : nn.Parameter
        Which.
    entries : Tensor
        Bool, in the parameter's shape.

    Examples
    --------
    >>> p = nn.Parameter(torch.zeros(3))
    >>> optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    >>> p.grad = torch.ones(3)
    >>> optimizer.step()
    >>> forget_entries(optimizer, p, torch.tensor([True, False, False]))
    >>> optimizer.state[p]["momentum_buffer"].tolist()
    [0.0, 1.0, 1.0]
    """
    everything = Chosen(torch.arange(0, device=parameter.device))
    for one in unwrapped(optimizer):
        for name, value in one.state[parameter].items() if parameter in one.state else ():
            if not isinstance(value, Tensor) or value.shape != parameter.shape or name in CLOCKS.values():
                continue
            fresh = parameter.detach() if name == "ax" else _fresh(one, parameter, name, everything, 0)
            value.copy_(torch.where(entries, fresh, value))


def unwrapped(optimizer: Optimizer) -> list[Optimizer]:
    """Return an optimizer and those that it wraps, outermost first."""
    found = [optimizer]
    while isinstance(inner := getattr(found[-1], "optimizer", None), Optimizer):
        found.append(inner)
    return list({id(one.state): one for one in found}.values())  # a wrapper may show the inner one's state as its own


def _now(step: int | Tensor) -> int | Tensor:
    """Return a step count as a number where that waits for no device."""
    return int(step) if isinstance(step, Tensor) and step.device.type == "cpu" else step


def _fresh(optimizer: Optimizer, parameter: nn.Parameter, name: str, where: Chosen, dim: int) -> float | Tensor:
    """Return what a state entry is for a parameter that the optimizer has not seen yet."""
    if name not in ("sum", "step_size", "ax"):
        return 0.0
    if name == "ax":
        return where.read(parameter, dim)
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    if name == "sum":
        return float(group.get("initial_accumulator_value", 0.0))
    return group["lr"]  # type: ignore[no-any-return]
