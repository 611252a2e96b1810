"""Layer resets: every so many steps, the last layers of a network start again, or all of them.

Nikishin, Schwarzer, D'Oro, Bacon, Courville, "The primacy bias in deep reinforcement learning" (ICML 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import nn
from torch.optim import Optimizer

from driftline.errors import CheckpointError
from driftline.learners.draws import Draws
from driftline.learners.renewers.fresh_layers import last_layers, start_layer_again
from driftline.learners.renewers.renewing import State, check_keys, check_whole, replicas_of
from driftline.learners.renewers.unit_state import forget_parameters
from driftline.learners.replicas import Seeds


class LayerReset:
    """Gives whole layers new weights every so many steps, and lets the optimizer forget them.

    What the network knows survives in the other layers, and in a replay memory: after a reset it is learned again
    from there. Without either, a reset of all layers starts from nothing.

    Parameters
    ----------
    model : nn.Module
        With replicas: one of :mod:`driftline.learners.lockstep.modules`.
    layers : int, "all" or sequence of str
        How many of the last linear and convolutional layers, with the normalisations between them; all layers, for
        a full reset; or names of modules. Frozen layers are passed over.
    every : int
        Optimizer steps from one reset to the next.
    seed : int or sequence of int
        Decides new weights; one for each replica.
    replicas : int, optional
        Number of replicas; default: the model's.

    Attributes
    ----------
    names : tuple of str
        The modules that start again.
    step : int
        Steps made.

    Raises
    ------
    ConfigError
        For a number out of range, and for layers that the model does not have or that cannot start again: tied,
        computed or partly frozen weights, and kinds of layers other than linear, convolutional and normalisation.

    Notes
    -----
    New weights come from the distribution that PyTorch's layers begin with, whatever the model's first weights were.
    "Last" goes by the order in which the model has its layers, which is usually that of the forward pass.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> renewer = LayerReset(model, layers=1, every=10)
    >>> for x in torch.rand(10, 8, 4):
    ...     optimizer.zero_grad()
    ...     model(x).square().sum().backward()
    ...     optimizer.step()
    ...     renewer.renew(model, optimizer)
    >>> model[0].weight in optimizer.state, model[2].weight in optimizer.state
    (True, False)
    """

    purpose = "layer reset"

    def __init__(
        self,
        model: nn.Module,
        layers: int | str | Sequence[str] = 1,
        every: int = 10_000,
        seed: Seeds = 0,
        replicas: int | None = None,
    ) -> None:
        self.replicas = replicas_of(model, replicas)
        check_whole("every", every)
        chosen = last_layers(model, layers)
        self.draws = Draws(seed, self.purpose, self.replicas)
        self.model, self.layers, self.every, self.seed = model, layers, every, seed
        self.names, self.modules = tuple(chosen), tuple(chosen.values())
        self.step = 0

    def renew(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Follow up one optimizer step: reset the layers at every ``every``-th one.

        Parameters
        ----------
        model : nn.Module
            The model that the renewer was made for.
        optimizer : Optimizer
            What it remembers of the layers is forgotten.
        """
        self.step += 1
        if self.step % self.every:
            return
        for number, module in enumerate(self.modules):
            start_layer_again(module, self.draws, self.step, number)
            forget_parameters(optimizer, module.parameters(recurse=False))

    def state_dict(self) -> State:
        """Return step and seed."""
        seed = list(self.seed) if isinstance(self.seed, Sequence) else self.seed
        return {"step": self.step, "seed": seed, "layers": list(self.names)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When the state is that of another renewer or of other layers; nothing has been changed then.
        """
        own = self.state_dict()
        check_keys(state, own, self.purpose)
        if state["layers"] != own["layers"]:
            raise CheckpointError(f"the state resets layers {state['layers']}, this renewer {own['layers']}")
        self.step = cast(int, state["step"])
        if state["seed"] != self.seed:
            self.seed = cast(Seeds, state["seed"])
            self.draws = Draws(self.seed, self.purpose, self.replicas)
