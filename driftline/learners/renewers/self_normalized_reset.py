"""Self-normalized resets: renew a unit when it has been silent for longer than its own past makes plausible.

Farias, Jozefiak, "Self-normalized resets for plasticity in continual learning" (ICLR 2025).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.errors import ConfigError
from driftline.learners.renewers.initialization import Initialization
from driftline.learners.renewers.renewing import State, UnitRenewer, check_whole
from driftline.learners.renewers.silences import Silences
from driftline.learners.renewers.unit_groups import UnitGroup, weight_of
from driftline.learners.renewers.unit_state import Chosen
from driftline.learners.renewers.watching import Watch
from driftline.learners.replicas import Seeds, Setting, check_setting


class SelfNormalizedReset(UnitRenewer):
    """Renews units whose present silence is a rare one among their past silences (SNR).

    A unit fires in a batch in which it is positive for any sample; its silence lasts until then. The hypothesis that
    a unit is as it was is rejected when its silence reaches a threshold that only a share ``eta`` of its past silences
    exceeded. Such a unit gets fresh incoming weights and outgoing weights of zero, and the optimizer forgets it.

    Parameters
    ----------
    model : nn.Module
        Its hidden layers are renewed; hooks are put on it. With replicas: one of
        :mod:`driftline.learners.lockstep.modules`.
    eta : float or sequence of float
        Share of past silences that were too long, in (0, 1).
    every : int
        Samples after which thresholds are set anew, from the silences in between.
    threshold : int
        Threshold of every unit until then, in samples.
    lowest, highest : int
        Bounds of thresholds, in samples.
    initialization : str
        ``kaiming``, ``default`` (torch's), ``xavier`` or ``lecun``, each uniform.
    seed : int or sequence of int
        Decides new weights; one for each replica.
    groups : sequence of UnitGroup, optional
        The layers to renew, from :func:`find_unit_groups`; default: all hidden layers.
    replicas : int, optional
        Number of replicas; default: the model's.

    Attributes
    ----------
    silences : Silences
        Ages, thresholds and past silences of all units, group after group.
    samples : int
        Samples met.
    step : int
        Steps made.

    Raises
    ------
    ConfigError
        For a value out of range, or layers that cannot be renewed; see :func:`find_unit_groups`.

    Notes
    -----
    As in the authors' code: a threshold that its percentile would not lower is doubled, a unit without a silence gets
    the lowest one, and silences cut off by a renewal count. There ``every`` is 16 tasks, ``lowest`` 100, and ``eta``
    0.08 in their example. Here silences are counted in bins 9 % apart instead of one by one, which needs a few hundred
    bytes for each unit, whatever ``highest`` is.

    With single samples most silences are short, so that a healthy unit that fires rarely can be rejected by chance:
    choose ``lowest`` well above the number of samples between two of a kind.

    Each step waits for the device once, to know whether any unit is rejected. An activation that is not a number
    counts as silence.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    >>> _ = model[0].bias.data[:3].fill_(-100.0)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> renewer = SelfNormalizedReset(model, threshold=80)
    >>> for x in torch.rand(10, 8, 4):
    ...     optimizer.zero_grad()
    ...     model(x).square().sum().backward()
    ...     optimizer.step()
    ...     renewer.renew(model, optimizer)
    >>> model[0].bias[:3].tolist()
    [0.0, 0.0, 0.0]
    """

    purpose = "self-normalized resets"

    def __init__(
        self,
        model: nn.Module,
        eta: Setting = 0.02,
        every: int = 20_000,
        threshold: int = 1000,
        lowest: int = 100,
        highest: int = 100_000,
        initialization: Initialization = "kaiming",
        seed: Seeds = 0,
        groups: Sequence[UnitGroup] | None = None,
        replicas: int | None = None,
    ) -> None:
        super().__init__(model, initialization, seed, groups, "paper", replicas)
        check_setting("eta", eta, self.replicas, 1e-12, 1 - 1e-12)
        for name, value in (("every", every), ("threshold", threshold), ("lowest", lowest), ("highest", highest)):
            check_whole(name, value)
        if lowest > highest:
            raise ConfigError(f"lowest={lowest} is above highest={highest}")
        self.eta, self.every, self.threshold, self.lowest, self.highest = eta, every, threshold, lowest, highest
        self.samples = 0
        lead = self.groups[0].lead
        first = weight_of(self.groups[0].in_module).detach()
        self._sizes = [group.units for group in self.groups]
        self.silences = Silences(first.new_zeros(*first.shape[:lead], sum(self._sizes)), threshold, lowest, highest)
        self._watch = Watch(self.groups)

    @torch.no_grad()
    def renew(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Follow up one optimizer step: note which units fired, and renew those that have been silent for too long.

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
        heard = self._watch.take()
        batch = heard[0].shape[self.groups[0].lead]
        fired = torch.cat([_fired(group, h) for group, h in zip(self.groups, heard)], -1)
        if fired.device != self.silences.age.device:
            self.silences.to(fired.device)
        self.step += 1
        self.silences.meet(fired, batch)
        rejected = self.silences.rejected()
        if rejected.any():
            self._renew(rejected, optimizer)
        before, self.samples = self.samples, self.samples + batch
        if self.samples // self.every > before // self.every:
            self.silences.adjust(self.eta)

    def close(self) -> None:
        """Take the hooks off the model."""
        self._watch.close()

    def _renew(self, rejected: Tensor, optimizer: Optimizer) -> None:
        self.silences.note(rejected)
        for number, mask in enumerate(torch.split(rejected, self._sizes, -1)):
            if (chosen := Chosen.where(mask)) is not None:
                self.start_again(number, chosen, optimizer)
        self.silences.age.masked_fill_(rejected, 0)

    def _own_state(self) -> State:
        return {"samples": self.samples, **self.silences.state()}

    def _check_own_state(self, state: Mapping[str, object]) -> None:
        self.silences.check_state(state)

    def _load_own_state(self, state: Mapping[str, object]) -> None:
        self.samples = int(state["samples"])  # type: ignore[call-overload]
        self.silences.load(state)


def _fired(group: UnitGroup, heard: Tensor) -> Tensor:
    """Return which units (R?, units) were positive for any sample, in any of their columns."""
    fired = (group.samples(heard) > 0).any(-2)
    return fired if group.out_repeat == 1 else fired.view(*fired.shape[:-1], -1, group.out_repeat).any(-1)
