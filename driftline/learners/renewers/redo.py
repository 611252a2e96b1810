"""ReDo: now and then, renew the units that say next to nothing.

Sokar, Agarwal, Castro, Evci, "The dormant neuron phenomenon in deep reinforcement learning" (ICML 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.learners.renewers.initialization import Initialization
from driftline.learners.renewers.recent import Recent
from driftline.learners.renewers.renewing import State, UnitRenewer, Variant, check_whole
from driftline.learners.renewers.unit_groups import UnitGroup
from driftline.learners.renewers.unit_state import Chosen
from driftline.learners.renewers.utility import relative
from driftline.learners.renewers.watching import Watch
from driftline.learners.replicas import Seeds, Setting, check_setting, spread

SILENCE = 1e-9
"""Added to a layer's mean, so that all units of a silent layer are dormant."""


class ReDo(UnitRenewer):
    """Every so many steps, renews the dormant units of every hidden layer.

    A unit's score is its mean magnitude over the latest samples, divided by the mean of that over its layer. Units
    that score at most ``tau`` get fresh incoming weights and outgoing weights of zero, and the optimizer forgets them.

    Parameters
    ----------
    model : nn.Module
        Its hidden layers are renewed; hooks are put on it. With replicas: one of
        :mod:`driftline.learners.lockstep.modules`.
    tau : float or sequence of float
        Largest score of a dormant unit, in [0, 1]; with 0, units that have said nothing at all.
    every : int
        Optimizer steps from one look at the units to the next.
    samples : int
        How many of the latest samples units are judged by.
    initialization : str
        ``kaiming``, ``default`` (torch's), ``xavier`` or ``lecun``, each uniform.
    seed : int or sequence of int
        Decides new weights; one for each replica.
    groups : sequence of UnitGroup, optional
        The layers to renew, from :func:`find_unit_groups`; default: all hidden layers.
    variant : {"paper", "released"}
        ``released`` reproduces the code of Dohare et al. (2024) for this method, see Notes.
    replicas : int, optional
        Number of replicas; default: the model's.

    Attributes
    ----------
    recent : Recent
        The activations that units are judged by.
    step : int
        Steps made.

    Raises
    ------
    ConfigError
        For a value out of range, or layers that cannot be renewed; see :func:`find_unit_groups`.

    Notes
    -----
    The paper scores units by a forward pass of a batch of its own. Here the latest samples are looked at, with the
    activations that they had when they were learned from, so that streams of single samples need no second pass; with
    batches of at least ``samples`` it is one batch. The mean is over the layer's units, as in the authors' code, where
    the paper's text takes the sum.

    ``released``: the optimizer forgets nothing, and nothing is added to a layer's mean, so that a silent layer is
    never renewed. In ``paper``, a unit whose activations are not finite is left out of the mean and stays.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    >>> _ = model[0].bias.data[:3].fill_(-100.0)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> renewer = ReDo(model, tau=0.0, every=10)
    >>> for x in torch.rand(10, 8, 4):
    ...     optimizer.zero_grad()
    ...     model(x).square().sum().backward()
    ...     optimizer.step()
    ...     renewer.renew(model, optimizer)
    >>> model[0].bias[:3].tolist(), model[2].weight[:, :3].abs().max().item()
    ([0.0, 0.0, 0.0], 0.0)
    """

    purpose = "ReDo"

    def __init__(
        self,
        model: nn.Module,
        tau: Setting = 0.025,
        every: int = 1000,
        samples: int = 64,
        initialization: Initialization = "kaiming",
        seed: Seeds = 0,
        groups: Sequence[UnitGroup] | None = None,
        variant: Variant = "paper",
        replicas: int | None = None,
    ) -> None:
        super().__init__(model, initialization, seed, groups, variant, replicas)
        check_setting("tau", tau, self.replicas, 0, 1)
        check_whole("every", every)
        check_whole("samples", samples)
        self.tau, self.every, self.samples = tau, every, samples
        self.recent = Recent(self.groups, samples)
        self._watch = Watch(self.groups)

    @torch.no_grad()
    def renew(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Follow up one optimizer step: note the activations and, at every ``every``-th step, renew dormant units.

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
        self.recent.add(self._watch.take())
        self.step += 1
        if self.step % self.every:
            return
        dormant = [scores <= spread(self.tau, scores) for scores in self.scores()]
        for number, mask in enumerate(dormant):
            if (chosen := Chosen.where(mask)) is not None:
                self.start_again(number, chosen, optimizer)

    def scores(self) -> list[Tensor]:
        """Return each group's scores (R?, units) for the latest samples."""
        magnitudes = [self.recent.magnitudes(number) for number in range(len(self.groups))]
        if self.variant == "released":
            return [m / m.mean(-1, keepdim=True) for m in magnitudes]
        return [relative(m, SILENCE) for m in magnitudes]

    def close(self) -> None:
        """Take the hooks off the model."""
        self._watch.close()

    def _forget(self, optimizer: Optimizer, group: UnitGroup, chosen: Chosen) -> None:
        if self.variant == "paper":
            super()._forget(optimizer, group, chosen)

    def _own_state(self) -> State:
        return {"recent": self.recent.state()}

    def _check_own_state(self, state: Mapping[str, object]) -> None:
        self.recent.check_state(state["recent"])

    def _load_own_state(self, state: Mapping[str, object]) -> None:
        self.recent.load(state["recent"])
