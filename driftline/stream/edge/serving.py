"""Two models behind one answer: the adapted one, and the shipped one for when the adapted one cannot be trusted."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from driftline.adapters import Adapter, CollapseGuard, DisagreementGuard
from driftline.adapters.model import frozen
from driftline.adapters.normalization import AdaptedNorm
from driftline.adapters.wrapper import Wrapper
from driftline.errors import ConfigError
from driftline.learners import Learner
from driftline.stream.edge.int8 import Int8, SeenInInt8
from driftline.stream.edge.samples import Served
from driftline.stream.edge.worker import Job, Worker
from driftline.stream.modules import evaluate

Player = Adapter | Learner

GUARDED = 8
"""Samples of one adaptation from which on a guard's averages mean something."""

NO_MEMORY = (
    *("allocate memory", "bad_alloc", "out of memory"),
    *("could not create a memory", "could not create a primitive"),
)
"""What torch and oneDNN say when memory is not to be had; the last two for steps that have worked before."""


class Answer(NamedTuple):
    """Scores (classes,), whose they are, and what was wrong with the adapted model if they are not its own."""

    scores: Tensor
    served: Served
    trouble: str | None = None
    memory: bool = False


class Serving:
    """Predicts and adapts; whatever the adapted model does, there is an answer and a way back.

    Parameters
    ----------
    player : Adapter or Learner
        Used, not copied.
    shipped : nn.Module
        Answers when the player cannot; never changed.
    background : bool
        Adapt in another thread, on a copy; a second copy takes over its state and then the player's place.
    load : dict, optional
        State of the player to begin with.
    int8 : Int8, optional
        Let the player predict in eight bits; it adapts in float, and the shipped model answers in float.

    Attributes
    ----------
    player : Adapter or Learner
        Who predicts now.
    good : dict
        The state to return to.
    """

    def __init__(
        self,
        player: Player,
        shipped: nn.Module,
        background: bool = False,
        load: object | None = None,
        int8: Int8 | None = None,
    ) -> None:
        self.player, self.shipped, self.int8 = player, shipped, int8
        # An adapter finds its own way back to the source.
        self._origin = copy.deepcopy(player.state_dict()) if isinstance(player, Learner) else None
        if load is not None:
            player.load_state_dict(cast(Mapping[str, object], load))
        self.good = self.snapshot()
        self._worker = Worker("adapting", niceness=10) if background else None
        self._trainer: Player | None = copy.deepcopy(player) if background else None
        self._standby: Player | None = copy.deepcopy(player) if background else None
        self._job: Job[None] | None = None
        self._moved = False
        self._failed_at_good = 0

    def predict(self, x: Tensor, shipped: bool = False) -> Answer:
        """Answer the last of the samples (B, *input); with the shipped model, if so asked or the adapted one fails."""
        if shipped:
            return Answer(self.by_shipped(x), "shipped")
        memory = False
        try:
            scores = predict(self.player, x, self.int8)[-1]
            if bool(torch.isfinite(scores).all()):
                self._failed_at_good = 0
                return Answer(scores, "adapted")
            trouble = "its scores are NaN or Inf"
        except Exception as error:
            trouble, memory = describe(error), is_allocation(error)
        return Answer(self.by_shipped(x), "shipped", trouble, memory)

    def by_shipped(self, x: Tensor) -> Tensor:
        """Return the shipped model's scores (classes,) for the last sample."""
        return evaluate(self.shipped, x[-1:])[0]

    def learn(self, x: Tensor, y: Tensor | None) -> None:
        """Adapt here and now; what the player raises goes through."""
        try:
            learn(self.player, x, y)
        finally:
            self._changed()

    def _changed(self) -> None:
        """Let what is served in eight bits follow the weights."""
        if self.int8 is not None:
            self.int8.refresh()

    # --- in the background

    @property
    def busy(self) -> bool:
        """Whether the other thread is adapting."""
        return self._job is not None

    def start(self, x: Tensor, y: Tensor | None) -> None:
        """Let the other thread adapt; only while it is not busy."""
        assert self._worker is not None and self._trainer is not None and self._standby is not None
        # A copy, since the player may be taken back to an earlier state while the other thread reads this one.
        trainer, standby, start_from = self._trainer, self._standby, self.snapshot() if self._moved else None
        self._moved = False

        def work() -> None:
            if start_from is not None:
                trainer.load_state_dict(start_from)
            learn(trainer, x, y)
            standby.load_state_dict(trainer.state_dict())

        self._job = self._worker.submit(work)

    def finish(self) -> Job[None] | None:
        """Return the other thread's job if it is over by now; what it adapted takes the player's place."""
        job = self._job
        if job is None or not job.done:
            return None
        self._job = None
        if job.error is not None:
            self._moved = True
        elif not self._moved:
            assert self._standby is not None
            self.player, self._standby = self._standby, self.player
            self._changed()
        return job

    # --- ways back

    def snapshot(self) -> dict[str, object]:
        """Return a copy of the player's state."""
        return copy.deepcopy(self.player.state_dict())

    def recover(self) -> str:
        """Return to the last good state; if that has failed too since its last good answer, to the shipped model."""
        self._failed_at_good += 1
        if self._failed_at_good == 1 and self.restore():
            return "the last good state"
        self.reset()
        return "the shipped model"

    def restore(self) -> bool:
        """Return to the last good state; return whether that was possible."""
        try:
            self.player.load_state_dict(self.good)
        except Exception:
            return False
        self._moved = True
        self._changed()
        return True

    def reset(self) -> None:
        """Return to the shipped model."""
        if self._origin is not None:
            self.player.load_state_dict(self._origin)
        else:
            self.player.reset()  # type: ignore[union-attr]
        self._moved = True
        self._changed()
        self.good = self.snapshot()

    def close(self, seconds: float) -> None:
        """Let the other thread end, and wait for so long for it."""
        if self._worker is not None:
            self._worker.close(seconds)


def learn(player: Player, x: Tensor, y: Tensor | None) -> None:
    """Let a learner learn from samples and labels, or an adapter adapt to the samples."""
    if isinstance(player, Learner):
        assert y is not None
        player.learn(x, y)
    else:
        player.adapt(x)


def predict(player: Player, x: Tensor, int8: Int8 | None = None) -> Tensor:
    """Return a player's scores, in eight bits if so asked."""
    if int8 is None:
        return player.predict(x)
    with torch.no_grad(), int8:
        return player.predict(x)


def shipped_model(player: Player, given: nn.Module | None) -> nn.Module:
    """Return a frozen copy of the model as it was shipped, or the one that a guard has already.

    Raises
    ------
    ConfigError
        When it must be given: the player has no network, or one that is not what was shipped.
    """
    if given is not None:
        return frozen(given)
    for guard in guards_of(player):
        if isinstance(guard, CollapseGuard):
            return guard.source
    network = player.network()
    name = type(player).__name__
    if network is None:
        raise ConfigError(f"{name} has no network to fall back on; give the model as shipped, shipped=...")
    if any(isinstance(module, AdaptedNorm) for module in network.modules()):
        raise ConfigError(
            f"{name} has put normalisation of its own into its copy of the model; give the model as it was shipped, "
            "shipped=..."
        )
    return frozen(network)


def guarded(player: Player, model: nn.Module, guard: bool | None, batch_size: int, int8: Int8 | None = None) -> Player:
    """Put guards around an adapter, if they are asked for or fit, and there is none yet.

    One watches for a collapse, beside the shipped model: by what is predicted (entropy and marginal), not by how far
    the adapted model is from the shipped one (drift and accuracy): under a strong corruption, where the shipped model
    is surely wrong, adapting that helps leads away from it, too. The averages are longer for small batches. What is
    served in eight bits is watched so, too. Another one bounds what training may do in the long run.

    Raises
    ------
    ConfigError
        When they are asked for around a learner.
    """
    if isinstance(player, Learner):
        if guard:
            raise ConfigError("guard=True: a guard goes around an adapter; a learner is judged by its labels")
        return player
    if guard is False or any(guards_of(player)):
        return player
    trains = bool(player.adapted_parameters())
    if guard or batch_size >= GUARDED:
        seen = player if int8 is None else SeenInInt8(player, int8)
        player = CollapseGuard(seen, drift=None, accuracy=None, momentum=min(0.3, batch_size / 100), source=model)
    return DisagreementGuard(player) if trains else player


def guards_of(player: Player) -> Iterator[CollapseGuard | DisagreementGuard]:
    """Return the guards around or inside a player, the outer one first."""
    inner: object = player
    while isinstance(inner, Wrapper):
        if isinstance(inner, (CollapseGuard, DisagreementGuard)):
            yield inner
        inner = inner.inner


def is_allocation(error: BaseException) -> bool:
    """Whether memory was not to be had.

    Examples
    --------
    >>> is_allocation(RuntimeError("could not create a primitive"))
    True
    >>> is_allocation(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."))
    True
    """
    text = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in NO_MEMORY)
    )


def describe(error: BaseException) -> str:
    """Return an error in one line for the log."""
    first = str(error).splitlines()
    return f"{type(error).__name__}: {first[0][:300] if first else ''}"
