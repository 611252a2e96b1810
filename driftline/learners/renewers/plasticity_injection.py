"""Plasticity injection: a network's head starts again, and what it said is kept frozen beside it.

Nikishin, Oh, Ostrovski, Lyle, Pascanu, Dabney, Barreto, "Deep reinforcement learning with plasticity injection"
(NeurIPS 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.errors import ConfigError, unknown
from driftline.learners.draws import Draws
from driftline.learners.lockstep.modules import kind_of
from driftline.learners.renewers.fresh_layers import last_layers, start_layer_again
from driftline.learners.renewers.injected import Injected
from driftline.learners.renewers.renewing import State, check_keys, check_whole, replicas_of
from driftline.learners.renewers.unit_groups import WEIGHTED
from driftline.learners.renewers.unit_state import forget_parameters
from driftline.learners.replicas import Seeds
from driftline.stream.modules import depends_on_mode

Signal = Callable[[nn.Module], "bool | float | Tensor"]


class PlasticityInjection:
    """Once, gives the head of a network new weights to learn with, without changing what the network says.

    The head h becomes h_frozen + (h_trained - h_fresh): what it was, and the difference that new weights have made
    since they were drawn, which is zero at first. Only h_trained learns. It takes the place of the head in the
    optimizer, which forgets the head; the two frozen parts are kept with the model and travel with its state.

    Parameters
    ----------
    model : nn.Module
        Its head is put into an :class:`~driftline.learners.renewers.injected.Injected`, so parameters of the head
        are named ``head.trained.weight`` and so on. With replicas: one of :mod:`driftline.learners.lockstep.modules`.
    at : int, optional
        Optimizer step after which the injection takes place.
    signal : callable, optional
        Instead: ``signal(model)`` is asked at times, and the first True is followed by the injection.
    every : int
        Optimizer steps from one question to the next.
    head : str, optional
        Name of the part that starts again; default: the last linear or convolutional layer.
    seed : int or sequence of int
        Decides new weights; one for each replica.
    replicas : int, optional
        Number of replicas; default: the model's.

    Attributes
    ----------
    module : Injected
        The head.
    step : int
        Steps made.

    Raises
    ------
    ConfigError
        For a number out of range, neither or both of ``at`` and ``signal``, a signal for replicas (which would need
        the injection at different steps), and a head that the model does not have, that behaves otherwise in
        evaluation, or whose weights cannot be made anew; see :class:`~driftline.learners.renewers.LayerReset`.

    Notes
    -----
    New weights come from the distribution that PyTorch's layers begin with. After the injection, the head is
    computed three times. Renewers that reset hidden units silence them in the trained part only, so they are better
    made for layers that the head does not hear, with ``find_unit_groups(model, skip=...)``.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> injection = PlasticityInjection(model, at=10)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> for x in torch.rand(10, 8, 4):
    ...     optimizer.zero_grad()
    ...     model(x).square().sum().backward()
    ...     optimizer.step()
    ...     injection.renew(model, optimizer)
    >>> injection.module.injected
    True
    """

    purpose = "plasticity injection"

    def __init__(
        self,
        model: nn.Module,
        at: int | None = None,
        signal: Signal | None = None,
        every: int = 1000,
        head: str | None = None,
        seed: Seeds = 0,
        replicas: int | None = None,
    ) -> None:
        self.replicas = replicas_of(model, replicas)
        if (at is None) == (signal is None):
            raise ConfigError("give either at=, the step of the injection, or signal=, which decides when it is due")
        if at is not None:
            check_whole("at", at)
        if signal is not None and self.replicas is not None:
            raise ConfigError("signal= would make replicas inject at different steps; give at=")
        check_whole("every", every)
        self.draws = Draws(seed, self.purpose, self.replicas)
        self.model, self.at, self.signal, self.every, self.seed = model, at, signal, every, seed
        self.head, self.module = _injected(model, head)
        self.step = 0

    def renew(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Follow up one optimizer step: inject when it is time.

        Parameters
        ----------
        model : nn.Module
            The model that the renewer was made for.
        optimizer : Optimizer
            What it remembers of the head is forgotten.

        Raises
        ------
        ConfigError
            When the signal is NaN; nothing has been changed then.
        """
        due = not self.module.injected and self._due(self.step + 1, model)
        self.step += 1
        if due:
            self.module.inject(self._start_again)
            forget_parameters(optimizer, self.module.trained.parameters())

    def _due(self, step: int, model: nn.Module) -> bool:
        if self.signal is None:
            return step == self.at
        if step % self.every:
            return False
        answer = self.signal(model)
        if answer != answer:
            raise ConfigError(f"plasticity injection: the signal is NaN at step {step}; it has to say yes or no")
        return bool(answer)

    def _start_again(self, head: nn.Module) -> None:
        for number, module in enumerate(last_layers(head, "all").values()):
            start_layer_again(module, self.draws, self.step, number)

    def state_dict(self) -> State:
        """Return step and seed; whether there was an injection is in the model's state."""
        seed = list(self.seed) if isinstance(self.seed, Sequence) else self.seed
        return {"step": self.step, "seed": seed}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When the state is that of another renewer; nothing has been changed then.
        """
        check_keys(state, self.state_dict(), self.purpose)
        self.step = cast(int, state["step"])
        if state["seed"] != self.seed:
            self.seed = cast(Seeds, state["seed"])
            self.draws = Draws(self.seed, self.purpose, self.replicas)


def _injected(model: nn.Module, name: str | None) -> tuple[str, Injected]:
    """Return name and module of a model's head that can be injected, putting it there if there is none yet."""
    known = dict(model.named_modules())
    if name is None:
        ready = [n for n, module in known.items() if isinstance(module, Injected)]
        weighted = [n for n, module in known.items() if kind_of(module) in WEIGHTED]
        name = next(iter(ready), weighted[-1] if weighted else "")
    if name not in known:
        raise unknown("head", name, [n for n in known if n])
    if not name:
        raise ConfigError("the head has to be a part of the model: the model has no layers, or is one itself")
    head = known[name]
    if isinstance(head, Injected):
        head.unshared()
        return name, head
    if depends_on_mode(head):
        raise ConfigError(f"head {name!r} has dropout or batch normalisation; name a part without")
    last_layers(model, [name])
    parent, _, leaf = name.rpartition(".")
    # With parameters of the head in place, whoever holds them (an optimizer, a penalty) goes on holding them.
    made = Injected(head).train(head.training)
    model.get_submodule(parent).register_module(leaf, made)
    return name, made
