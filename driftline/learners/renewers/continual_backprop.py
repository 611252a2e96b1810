"""Continual backprop: renew the least useful hidden units, a few at a time, for ever.

Dohare, Hernandez-Garcia, Lan, Rahman, Mahmood, Sutton, "Loss of plasticity in deep continual learning" (Nature 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.errors import unknown
from driftline.learners.renewers.counting import Schedule
from driftline.learners.renewers.initialization import Initialization
from driftline.learners.renewers.renewing import State, UnitRenewer, Variant
from driftline.learners.renewers.resetting import compensate
from driftline.learners.renewers.traces import Averages, UnitTraces
from driftline.learners.renewers.unit_groups import UnitGroup
from driftline.learners.renewers.unit_state import Chosen, forget, unwrapped
from driftline.learners.renewers.utility import UTILITIES, Utility
from driftline.learners.renewers.watching import Watch
from driftline.learners.replicas import Seeds, Setting, check_setting, spread

ROWS, RANKS, COINS = range(3)
"""What is drawn for a layer; each has a lane of its own."""


class ContinualBackprop(UnitRenewer):
    """Renews the least useful mature units of every hidden layer after each optimizer step.

    Each unit has a utility, by default the mean magnitude of what it contributes to the next layer, averaged over
    time. At every step a share of the units that are older than ``maturity`` is due; of these the units with the
    lowest utility get fresh incoming weights and outgoing weights of zero, the optimizer forgets them, and the next
    layer's bias takes over what they said on average.

    Parameters
    ----------
    model : nn.Module
        Its hidden layers are renewed; hooks are put on it. With replicas: one of
        :mod:`driftline.learners.lockstep.modules`.
    replacement_rate : float or sequence of float
        Renewals expected for each mature unit and step, in [0, 1].
    maturity : int or sequence of int
        Steps for which a new unit is safe.
    decay : float or sequence of float
        Of the averages of utility and activation per step, in [0, 1).
    utility : str
        One of ``contribution``, ``zero_contribution``, ``adaptable_contribution``, ``adaptation``,
        ``feature_by_input``, ``weight``, ``random``; see :func:`~driftline.learners.renewers.utility.instantaneous`.
    accumulate : bool
        Whether fractions of a renewal are carried to the next step; otherwise they are left to chance.
    initialization : str
        ``kaiming``, ``default`` (torch's), ``xavier`` or ``lecun``, each uniform.
    compensate : bool
        Whether the next layers' biases take over the mean of what renewed units said.
    running : bool
        Whether utilities are averaged over time. Otherwise they are those of the current batch, and computed only
        when a renewal is due, so that most steps cost next to nothing.
    seed : int or sequence of int
        Decides new weights; one for each replica.
    groups : sequence of UnitGroup, optional
        The layers to renew, from :func:`find_unit_groups`; default: all hidden layers.
    variant : {"paper", "released"}
        ``released`` reproduces the released code, see Notes.
    replicas : int, optional
        Number of replicas; default: the model's.

    Attributes
    ----------
    averages : Averages
        The averages of all groups, and how they are updated.
    schedule : Schedule
        How many units are due when.
    step : int
        Steps made.

    Raises
    ------
    ConfigError
        For a value out of range, or layers that cannot be renewed; see :func:`find_unit_groups`.

    Notes
    -----
    Utilities look at the activations of the last forward pass made with gradients, before the update, and at the
    weights after it. Units are ranked by utilities corrected for the bias of a young average. The paper sums over
    outgoing weights where code and this take the mean, which ranks a layer's units alike.

    ``released`` differs in that the bias compensation does nothing (mean activations are zeroed before they are
    used); only the released Adam forgets renewed units; without ``accumulate`` fractions above 1 are dropped; and
    in networks with convolutions the rate counts for all units once one is mature, convolutions take ``default``
    initialization, and Adam keeps the first moment of incoming weights.

    A layer without bias has none to reset, or to take over. A unit whose utility is not finite is renewed last. The
    number of renewals never depends on values on the device, so a step waits for none.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> renewer = ContinualBackprop(model, replacement_rate=0.01, maturity=10)
    >>> for x in torch.rand(20, 1, 4):
    ...     optimizer.zero_grad()
    ...     model(x).square().sum().backward()
    ...     optimizer.step()
    ...     renewer.renew(model, optimizer)
    >>> (model[2].weight[0] == 0).sum() > 0
    tensor(True)
    """

    purpose = "continual backprop"
    lanes = 3

    def __init__(
        self,
        model: nn.Module,
        replacement_rate: Setting = 1e-4,
        maturity: Setting = 100,
        decay: Setting = 0.99,
        utility: Utility = "contribution",
        accumulate: bool = True,
        initialization: Initialization = "kaiming",
        compensate: bool = True,
        running: bool = True,
        seed: Seeds = 0,
        groups: Sequence[UnitGroup] | None = None,
        variant: Variant = "paper",
        replicas: int | None = None,
    ) -> None:
        super().__init__(model, initialization, seed, groups, variant, replicas)
        if utility not in UTILITIES:
            raise unknown("utility", utility, UTILITIES)
        replicas = self.replicas
        check_setting("replacement_rate", replacement_rate, replicas, 0, 1)
        check_setting("maturity", maturity, replicas, 0)
        check_setting("decay", decay, replicas, 0, 1 - 1e-12)
        self.replacement_rate, self.maturity, self.decay = replacement_rate, maturity, decay
        self.utility, self.accumulate = utility, accumulate
        self.compensate, self.running = compensate, running
        self.averages = Averages(self.groups, utility, decay, running and utility != "random")
        released, convolutional = variant == "released", any(group.is_conv for group in self.groups)
        self.schedule = Schedule(
            [group.units for group in self.groups],
            replacement_rate,
            maturity,
            replicas,
            accumulate=accumulate,
            released=released,
            whole=released and convolutional,
        )
        self._keeps_moment = released and convolutional
        self._lanes = [3 * i + COINS for i in range(len(self.groups))]
        self._watch = Watch(self.groups)

    @property
    def traces(self) -> list[UnitTraces]:
        """Averages and ages of the units of each group."""
        return self.averages.layers

    def renew(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Follow up one optimizer step: update the averages, and renew the units that are due.

        Parameters
        ----------
        model : nn.Module
            The model that the renewer was made for.
        optimizer : Optimizer
            What it remembers of renewed units is forgotten.

        Raises
        ------
        ConfigError
            When there was no forward pass with gradients since the last call; nothing has been changed then.
        """
        heard = [group.samples(h) for group, h in zip(self.groups, self._watch.take())]
        counts = self.advance()
        self.track(heard)
        if any(map(any, counts)):
            self.replace(counts, heard, optimizer)

    def advance(self) -> list[list[int]]:
        """Begin the next step and return how many units are due in each group: one number, or one per replica."""
        self.step += 1
        return self.schedule.due(self.step, self.draws, self._lanes)

    def track(self, heard: Sequence[Tensor]) -> None:
        """Update the averages with activations (R?, samples, units * out_repeat) of each group."""
        self.averages.update(heard, self.step)

    @torch.no_grad()
    def replace(self, counts: Sequence[Sequence[int]], heard: Sequence[Tensor], optimizer: Optimizer) -> None:
        """Renew as many units of each group as are due: choose in all groups, then renew in all."""
        everywhere = [
            self._choose(i, due, samples) if any(due) else None for i, (due, samples) in enumerate(zip(counts, heard))
        ]
        for i, (group, traces, chosen) in enumerate(zip(self.groups, self.traces, everywhere)):
            if chosen is None:
                continue
            if self.compensate and self.variant == "paper":
                correction = self.averages.correction(chosen.read(traces.birth), self.step, traces)
                compensate(group, chosen, chosen.read(traces.activation) / correction)
            self.start_again(i, chosen, optimizer)
            for trace, value in ((traces.utility, 0.0), (traces.activation, 0.0), (traces.birth, self.step)):
                chosen.write(trace, value)

    def ranking(self, number: int, samples: Tensor) -> Tensor:
        """Return the utilities (R?, units) by which units of a group are ranked now."""
        if self.utility == "random":
            return self._uniform(number, RANKS, self.groups[number].units, self.traces[number].utility)
        return self.averages.ranking(number, samples, self.step)

    def close(self) -> None:
        """Take the hooks off the model."""
        self._watch.close()

    def _own_state(self) -> State:
        return {"schedule": self.schedule.state_dict(), **self.averages.state_dict()}

    def _check_own_state(self, state: Mapping[str, object]) -> None:
        self.averages.check_state(state)
        self.schedule.check_state(state["schedule"])

    def _load_own_state(self, state: Mapping[str, object]) -> None:
        self.schedule.load_state_dict(cast("list[list[Mapping[str, object]]]", state["schedule"]))
        self.averages.load_state_dict(state)

    def _choose(self, number: int, due: Sequence[int], samples: Tensor) -> Chosen:
        traces = self.traces[number]
        highest = torch.finfo(traces.utility.dtype).max
        ranks = self.ranking(number, samples).nan_to_num(highest, highest)
        maturity = self.maturity if not isinstance(self.maturity, Sequence) else spread(self.maturity, traces.utility)
        young = self.step - traces.birth <= maturity
        most = max(due)
        # Stable, so that of equal units the first is renewed, wherever this runs.
        units = ranks.masked_fill_(young, torch.inf).sort(dim=-1, stable=True).indices[..., :most]
        if len(set(due)) == 1:
            return Chosen(units)
        each = torch.tensor(due).to(units.device, non_blocking=True).unsqueeze(-1)
        return Chosen(units, torch.arange(most, device=units.device) < each)

    def _forget(self, optimizer: Optimizer, group: UnitGroup, chosen: Chosen) -> None:
        if self.variant == "paper":
            forget(optimizer, group, chosen)
        elif any(getattr(one, "variant", None) == "released" for one in unwrapped(optimizer)):
            kept = group.in_module.weight if self._keeps_moment else None
            forget(optimizer, group, chosen, lambda name, parameter: name == "exp_avg" and parameter is kept)
