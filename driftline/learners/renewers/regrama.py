"""ReGraMa: now and then, renew the units that hardly learn any more.

Liu, Wu, Obando-Ceron, Castro, Courville, Pan, "Measure gradients, not activations! Enhancing neuronal activity in deep
reinforcement learning" (NeurIPS 2025).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.errors import CheckpointError, ConfigError
from driftline.learners.renewers.initialization import Initialization
from driftline.learners.renewers.renewing import State, UnitRenewer, check_whole
from driftline.learners.renewers.unit_groups import UnitGroup, weight_of
from driftline.learners.renewers.unit_state import Chosen
from driftline.learners.renewers.utility import relative
from driftline.learners.replicas import Seeds, Setting, check_setting, spread


class ReGraMa(UnitRenewer):
    """Every so many steps, renews the units whose incoming weights receive next to no gradient.

    A unit's score is the mean magnitude of the gradients of its incoming weights, over the latest steps, divided by
    the mean of that over its layer. Units that score at most ``tau`` get fresh incoming weights and outgoing weights
    of zero, and the optimizer forgets them. Works for every activation, and puts no hooks on the model.

    Parameters
    ----------
    model : nn.Module
        Its hidden layers are renewed. With replicas: one of :mod:`driftline.learners.lockstep.modules`.
    tau : float or sequence of float
        Largest score of an inactive unit, in [0, 1].
    every : int
        Optimizer steps from one look at the units to the next.
    steps : int
        Over how many of the latest steps gradients are averaged, at most ``every``.
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
    magnitudes : list of Tensor
        Summed magnitudes (R?, units) of each group since the latest steps began.
    step : int
        Steps made.

    Raises
    ------
    ConfigError
        For a value out of range, or layers that cannot be renewed; see :func:`find_unit_groups`.

    Notes
    -----
    The published rule looks at one batch, which is ``steps=1``. With single samples that would renew half of all
    units of a ReLU network, since a unit that is silent for a sample has no gradient for it; hence the average.
    Gradients are those that the optimizer saw, penalties included. A layer without any gradient is left alone, since
    that happens to a network that fits its samples too. A unit whose gradients are not finite is left out of the mean
    and stays.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    >>> _ = model[0].bias.data[:3].fill_(-100.0)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> renewer = ReGraMa(model, every=10)
    >>> for x in torch.rand(10, 8, 4):
    ...     optimizer.zero_grad()
    ...     model(x).square().sum().backward()
    ...     optimizer.step()
    ...     renewer.renew(model, optimizer)
    >>> model[0].bias[:3].tolist()
    [0.0, 0.0, 0.0]
    """

    purpose = "ReGraMa"

    def __init__(
        self,
        model: nn.Module,
        tau: Setting = 0.01,
        every: int = 1000,
        steps: int = 64,
        initialization: Initialization = "kaiming",
        seed: Seeds = 0,
        groups: Sequence[UnitGroup] | None = None,
        replicas: int | None = None,
    ) -> None:
        super().__init__(model, initialization, seed, groups, "paper", replicas)
        check_setting("tau", tau, self.replicas, 0, 1)
        check_whole("every", every)
        check_whole("steps", steps)
        self.tau, self.every, self.steps = tau, every, steps
        weights = [(weight_of(group.in_module), group.lead + 1) for group in self.groups]
        self.magnitudes = [weight.new_zeros(weight.shape[:dims]).detach() for weight, dims in weights]

    @torch.no_grad()
    def renew(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Follow up one optimizer step: note the gradients where they count, and renew inactive units where due.

        Parameters
        ----------
        model : nn.Module
            The model that the renewer was made for.
        optimizer : Optimizer
            What it remembers of renewed units is forgotten.

        Raises
        ------
        ConfigError
            When a layer has no gradient; nothing has been changed then.
        """
        ahead = -(self.step + 1) % self.every
        gradients = [self._gradient(group) for group in self.groups] if ahead < self.steps else []
        self.step += 1
        for number, gradient in enumerate(gradients):
            magnitude = gradient.flatten(self.groups[number].lead + 1).abs().mean(-1)
            self.magnitudes[number] = self.magnitudes[number].to(magnitude) + magnitude
        if ahead:
            return
        inactive = [scores <= spread(self.tau, scores) for scores in self.scores()]
        for number, mask in enumerate(inactive):
            if (chosen := Chosen.where(mask)) is not None:
                self.start_again(number, chosen, optimizer)
            self.magnitudes[number].zero_()

    def scores(self) -> list[Tensor]:
        """Return each group's scores (R?, units) for the gradients noted so far."""
        return [relative(summed) for summed in self.magnitudes]

    def _gradient(self, group: UnitGroup) -> Tensor:
        gradient = weight_of(group.in_module).grad
        if gradient is None:
            raise ConfigError(
                f"the weight of {group.name!r} has no gradient; call renew after each optimizer step, before the "
                "gradients are set to None"
            )
        return gradient

    def _own_state(self) -> State:
        return {"magnitudes": [summed.clone() for summed in self.magnitudes]}

    def _check_own_state(self, state: Mapping[str, object]) -> None:
        saved = [tuple(summed.shape) for summed in cast("list[Tensor]", state["magnitudes"])]
        if saved != (own := [tuple(summed.shape) for summed in self.magnitudes]):
            raise CheckpointError(f"the state's magnitudes are those of layers of {saved} units, here there are {own}")

    def _load_own_state(self, state: Mapping[str, object]) -> None:
        saved = cast("list[Tensor]", state["magnitudes"])
        self.magnitudes = [summed.to(own.device, copy=True) for summed, own in zip(saved, self.magnitudes)]
