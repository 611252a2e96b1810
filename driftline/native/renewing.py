"""Lays out continual backprop's state for C's training loop, and takes its counts back."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from driftline.learners.draws import Draws
from driftline.learners.renewers import ContinualBackprop
from driftline.learners.renewers.counting import RenewalCounter
from driftline.learners.renewers.initialization import bound
from driftline.learners.renewers.traces import FADED, SWEEP
from driftline.learners.renewers.unit_groups import UnitGroup
from driftline.learners.replicas import Setting
from driftline.native import structures
from driftline.native.kernels import fits
from driftline.native.network import Dense, UnsupportedError


class Renewing:
    """One renewer, or none, of a learner.

    Parameters
    ----------
    renewers : sequence
        The learner's.
    layers : sequence of Dense
        The model's.
    optimizer : Optimizer
        What it knows of renewed units is forgotten.
    replicas : int
        How many, 1 without replicas.

    Raises
    ------
    UnsupportedError
        For a renewer that has no compiled form.
    """

    def __init__(
        self, renewers: Sequence[object], layers: Sequence[Dense], optimizer: Optimizer, replicas: int
    ) -> None:
        self.replicas, self.renewer = replicas, None
        if not renewers:
            return
        renewer = renewers[0]
        if len(renewers) > 1 or type(renewer) is not ContinualBackprop:
            names = ", ".join(type(r).__name__ for r in renewers)
            raise UnsupportedError(f"the renewers {names} have no compiled form; one ContinualBackprop has")
        assert isinstance(renewer, ContinualBackprop)
        self.renewer = renewer
        self.layers = [_layer_of(group, layers) for group in renewer.groups]
        self.forgets = renewer.variant == "paper" or getattr(optimizer, "variant", None) == "released"
        self.bounds = [bound(group, renewer.initialization, renewer.variant == "released") for group in renewer.groups]
        decay = _numbers(renewer.decay, replicas)
        take = 1 - decay if isinstance(renewer.decay, Sequence) else _numbers(1 - renewer.decay, replicas)
        self._numbers = (decay, take, _numbers(renewer.maturity, replicas))
        if not all(fits(traces.utility, traces.activation) for traces in renewer.traces):
            raise UnsupportedError("the averages of ContinualBackprop are not in float32 on the CPU")
        if type(renewer.draws) is not Draws:
            raise UnsupportedError("the draws of ContinualBackprop were replaced")

    def lay_out(self, kept: list[object]) -> structures.Renewal:
        """Return C's structure of the state as it is now; what it refers to is added to ``kept``."""
        renewer = self.renewer
        if renewer is None:
            return structures.Renewal()
        keys = renewer.draws.keys.contiguous()
        self._rings: list[Rings] = []
        groups = (structures.UnitGroup * len(renewer.groups))(
            *(self._group(number, kept) for number in range(len(renewer.groups)))
        )
        kept += [keys, groups]
        return structures.Renewal(
            groups=len(groups),
            step=renewer.step,
            group=ctypes.addressof(groups),
            keys=keys.data_ptr(),
            utility=structures.UTILITIES.index(renewer.utility),
            running=renewer.running,
            accumulate=renewer.accumulate,
            released=renewer.variant == "released",
            compensate=renewer.compensate and renewer.variant == "paper",
            forget=self.forgets,
            sweep=SWEEP,
            faded=FADED,
        )

    def take_back(self, steps: int) -> None:
        """Take over the counts after so many steps; averages and ages were changed in place."""
        renewer = self.renewer
        if renewer is None:
            return
        renewer.step += steps
        for rings in self._rings:
            rings.write()

    def _group(self, number: int, kept: list[object]) -> structures.UnitGroup:
        renewer = self.renewer
        assert renewer is not None
        group, traces = renewer.groups[number], renewer.traces[number]
        rings = Rings(renewer.schedule.counters[number], self.replicas)
        self._rings.append(rings)
        kept += [rings, *self._numbers]
        return structures.UnitGroup(
            self.layers[number],
            number,
            group.units,
            *(trace.data_ptr() for trace in (traces.utility, traces.activation, traces.birth)),
            ctypes.addressof(rings.counters),
            *(numbers.data_ptr() for numbers in self._numbers),
            self.bounds[number],
        )


class Rings:
    """A layer's counters with the past renewals that each remembers, as rings in C's memory.

    Parameters
    ----------
    sources : sequence of RenewalCounter
        One for all replicas, or one for each.
    replicas : int
        How many replicas there are; each gets its own.
    """

    def __init__(self, sources: Sequence[RenewalCounter], replicas: int) -> None:
        self.sources = sources
        units = sources[0].units
        pairs = [[*source.renewed, *[(0, 0)] * (units - len(source.renewed))] for source in sources]
        self.steps, self.counts = (part.expand(replicas, units).contiguous() for part in torch.tensor(pairs).unbind(-1))
        self.counters = (structures.Counter * replicas)()
        at, width = (self.steps.data_ptr(), self.counts.data_ptr()), 8 * units
        for r in range(replicas):
            source = sources[r if len(sources) > 1 else 0]
            self.counters[r] = structures.Counter(
                source.rate,
                source.carry,
                source.maturity,
                source.eligible,
                0,
                len(source.renewed),
                at[0] + r * width,
                at[1] + r * width,
            )

    def write(self) -> None:
        """Give what C has counted back to the counters."""
        for source, made, steps, counts in zip(self.sources, self.counters, self.steps.tolist(), self.counts.tolist()):
            places = [(made.first + i) % source.units for i in range(made.length)]
            source.carry, source.eligible = made.carry, made.eligible
            source.renewed = deque((steps[i], counts[i]) for i in places)


def _numbers(value: Setting, replicas: int) -> Tensor:
    return torch.tensor(list(value) if isinstance(value, Sequence) else [value] * replicas, dtype=torch.float32)


def _layer_of(group: UnitGroup, layers: Sequence[Dense]) -> int:
    """Return the number of the layer that a unit group is."""
    for number, (layer, after) in enumerate(zip(layers, layers[1:])):
        if group.in_module is layer.module and group.out_modules == (after.module,):
            if group.norms or group.out_repeat != 1:
                break
            return number
    raise UnsupportedError(f"the units of {group.name!r} are not those of a hidden layer of a plain MLP")
