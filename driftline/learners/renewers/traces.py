"""Running averages of units' utilities and activations, updated at every step in as few passes as can be."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import cast

import torch
from torch import Tensor

from driftline.errors import CheckpointError
from driftline.learners.renewers.unit_groups import UnitGroup, weight_of
from driftline.learners.renewers.utility import CENTRED, instantaneous, outgoing_of_all, over_samples
from driftline.learners.replicas import Setting, spread

SWEEP = 64
"""Steps after which faded averages are set to 0."""
FADED = 1e-30


@dataclass
class UnitTraces:
    """What is remembered of one layer's units: (units,), or (R, units) with replicas, without gaps in memory.

    To be changed in place only, since the tensors are parts of larger ones.

    Attributes
    ----------
    utility : Tensor
        Running average u of the utility, 0 for a renewed unit; divide by 1 - decay**age to read it.
    activation : Tensor
        Running average f of the activation, likewise.
    birth : Tensor
        int64: the step after which a unit was renewed, 0 for those of the beginning. Its age at step t is t - birth.
    """

    utility: Tensor
    activation: Tensor
    birth: Tensor


TRACES = tuple(field.name for field in fields(UnitTraces))


class Averages:
    """The traces of all layers.

    Parameters
    ----------
    groups : sequence of UnitGroup
        The layers.
    kind : str
        The utility, one of :data:`~driftline.learners.renewers.utility.UTILITIES`.
    decay : float or sequence of float
        Of the averages per step; one for all replicas, or one for each.
    running : bool
        Whether utilities are averaged; otherwise only activations are.

    Attributes
    ----------
    layers : list of UnitTraces
        One for each group.
    """

    def __init__(self, groups: Sequence[UnitGroup], kind: str, decay: Setting, running: bool) -> None:
        self.groups, self.kind, self.decay, self.running = groups, kind, decay, running
        self._decays: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        layers = []
        for group in groups:
            weight = weight_of(group.in_module)
            zeros = torch.zeros(weight.shape[: group.lead + 1], dtype=weight.dtype, device=weight.device)
            layers.append(UnitTraces(zeros, zeros.clone(), zeros.long()))
        self._join(layers)

    @torch.no_grad()
    def update(self, heard: Sequence[Tensor], step: int) -> None:
        """Take activations (R?, samples, units * out_repeat) of each group into the averages."""
        weight = weight_of(self.groups[0].in_module)
        if self.layers[0].utility.device != weight.device or self.layers[0].utility.dtype != weight.dtype:
            self._move()
        heard = [h if h.dtype == t.utility.dtype else h.to(t.utility.dtype) for h, t in zip(heard, self.layers)]
        if self._together is not None:
            self._update_together(heard, *self._together)
        else:
            for group, traces, samples in zip(self.groups, self.layers, heard):
                self._update_layer(group, traces, samples, step)
        if step % SWEEP == 0:
            self._sweep()

    def _update_layer(self, group: UnitGroup, traces: UnitTraces, samples: Tensor, step: int) -> None:
        new = 1 - self.keep(traces)
        traces.activation.lerp_(group.fold(over_samples(samples)), new)
        if self.running:
            mean = self.mean(traces, step)
            traces.utility.lerp_(instantaneous(self.kind, group, samples, mean), new)

    def _update_together(self, heard: Sequence[Tensor], whole: UnitTraces, share: Tensor) -> None:
        """Do the same for the contributions of all layers' units in one, where each has one column."""
        new = 1 - cast(float, self.decay)
        if all(h.shape[-2] == 1 for h in heard):
            activation = torch.cat([h.flatten() for h in heard])
            magnitude = activation.abs()
        else:
            activation = torch.cat([over_samples(h).flatten() for h in heard])
            magnitude = torch.cat([over_samples(h.abs()).flatten() for h in heard])
        sums = torch.cat([sums.flatten() for sums in outgoing_of_all(self.groups)])
        whole.activation.lerp_(activation, new)
        whole.utility.lerp_(magnitude.mul_(sums.mul_(share)), new)

    @torch.no_grad()
    def ranking(self, number: int, samples: Tensor, step: int) -> Tensor:
        """Return the utilities (R?, units) by which a group's units are ranked at a step."""
        group, traces = self.groups[number], self.layers[number]
        if self.running:
            return traces.utility / self.correction(traces.birth, step, traces)
        return instantaneous(self.kind, group, samples.to(traces.utility.dtype), self.mean(traces, step))

    def mean(self, traces: UnitTraces, step: int) -> Tensor:
        """Return the mean activations so far, where the utility looks at them."""
        if self.kind not in CENTRED:
            return traces.activation
        return traces.activation / self.correction(traces.birth, step, traces)

    def correction(self, birth: Tensor, step: int, traces: UnitTraces) -> Tensor:
        """Return 1 - decay**age, the weight that averages have gathered since a birth."""
        return 1 - self.keep(traces) ** (step - birth).to(traces.utility.dtype)

    def keep(self, traces: UnitTraces) -> float | Tensor:
        """Return the decay as a number, or as (R, 1) where it differs between replicas."""
        if not isinstance(self.decay, Sequence):
            return self.decay
        key = (traces.utility.device, traces.utility.dtype)
        if key not in self._decays:
            self._decays[key] = cast(Tensor, spread(self.decay, traces.utility))
        return self._decays[key]

    def state_dict(self) -> dict[str, object]:
        """Return the traces: a list of tensors of each kind."""
        return {name: [getattr(traces, name).clone() for traces in self.layers] for name in TRACES}

    def check_state(self, state: Mapping[str, object]) -> None:
        """Raise unless a state has as many units in each layer.

        Raises
        ------
        CheckpointError
        """
        for name in TRACES:
            saved = [tuple(tensor.shape) for tensor in cast("list[Tensor]", state[name])]
            if saved != (own := [tuple(getattr(traces, name).shape) for traces in self.layers]):
                raise CheckpointError(f"the state's {name} is that of layers of {saved} units, here there are {own}")

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        for name in TRACES:
            for traces, saved in zip(self.layers, cast("list[Tensor]", state[name])):
                getattr(traces, name).copy_(saved)

    def _join(self, layers: Sequence[UnitTraces]) -> None:
        """Where all can be updated alike, let layers share memory, so that one pass is over all their units."""
        self.layers = list(layers)
        self._together: tuple[UnitTraces, Tensor] | None = None
        alike = len({(traces.utility.device, traces.utility.dtype) for traces in layers}) == 1
        plain = self.kind == "contribution" and self.running and not isinstance(self.decay, Sequence)
        if not (alike and plain) or any(group.out_repeat > 1 for group in self.groups):
            return
        whole = UnitTraces(*(torch.cat([getattr(traces, name).flatten() for traces in layers]) for name in TRACES))
        shares = [
            torch.full_like(traces.utility, 1 / group.out_weights).flatten()
            for group, traces in zip(self.groups, layers)
        ]
        self._together = whole, torch.cat(shares)
        ends = itertools.accumulate(traces.birth.numel() for traces in layers)
        self.layers = [
            UnitTraces(*(getattr(whole, name)[end - t.birth.numel() : end].view_as(t.birth) for name in TRACES))
            for t, end in zip(layers, ends)
        ]

    def _move(self) -> None:
        """Follow the model to its device and dtype."""
        moved = []
        for group, traces in zip(self.groups, self.layers):
            weight = weight_of(group.in_module)
            utility, activation = (t.to(weight.device, weight.dtype) for t in (traces.utility, traces.activation))
            moved.append(UnitTraces(utility, activation, traces.birth.to(weight.device)))
        self._join(moved)

    def _sweep(self) -> None:
        """Set averages of units that are silent for good to 0: subnormal numbers make arithmetic slow."""
        for traces in [self._together[0]] if self._together is not None else self.layers:
            for average in (traces.utility, traces.activation):
                average.mul_(average.abs() >= FADED)

    def __getstate__(self) -> dict[str, object]:
        """Return everything but the shared memory, which copies and pickles may not keep shared."""
        return {name: value for name, value in self.__dict__.items() if name != "_together"}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Share memory again."""
        self.__dict__.update(state)
        self._join(self.layers)
