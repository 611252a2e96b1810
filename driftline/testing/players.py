"""Laws that learners and adapters share: both predict, meet batches one after another, and carry a state."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor

from driftline.adapters.base import Adapter
from driftline.learners.base import Learner
from driftline.stream import checkpoint
from driftline.stream.dataset import Dataset
from driftline.stream.play import play
from driftline.stream.segment import Segment
from driftline.stream.stream import Stream
from driftline.testing.laws import (
    PLAY_SEED,
    Law,
    copied,
    demand,
    demand_close,
    demand_same,
    no_global_draws,
    seed_torch,
)
from driftline.testing.memory import growth

P = TypeVar("P", Learner, Adapter)
Batches = list[tuple[Tensor, Tensor]]

SIZE = 10
"""Samples in a batch of the laws."""
FEW = 6
"""Batches that are met before something is tried, and again after it."""
KEPT = 640
"""Samples of the stream that the laws use, over and over."""


@dataclass(frozen=True)
class Case(Generic[P]):
    """Who is tried, and on what.

    Parameters
    ----------
    build : callable
        Makes a new one.
    meet : callable
        ``meet(player, x, y) -> scores``: what happens at each step.
    x, y : Tensor
        Samples, and their labels (all 0 when an adapter's stream has none).
    classes : tuple of str
        Class names; empty for regression.
    device : torch.device
        Where it takes place.
    steps : int
        How many steps the law on memory takes.
    per_sample : bool
        Whether the scores of a sample do not depend on the batch it is in.
    """

    build: Callable[[], P]
    meet: Callable[[P, Tensor, Tensor], Tensor]
    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    device: torch.device
    steps: int
    per_sample: bool = True

    def fresh(self) -> P:
        """Return a new one, with torch's global generators where a run would set them."""
        seed_torch(PLAY_SEED - 1, self.device)
        player = self.build().to(self.device)
        seed_torch(PLAY_SEED, self.device)
        return player

    def warm(self) -> P:
        """Return one that has met a few batches."""
        player = self.fresh()
        self.trace(player, self.batches(FEW))
        return player

    def batches(self, count: int, first: int = 0, size: int = SIZE) -> Batches:
        """Return ``count`` batches from the ``first`` on, each in memory of its own."""
        return [self.batch(i, size) for i in range(first, first + count)]

    def batch(self, number: int, size: int = SIZE) -> tuple[Tensor, Tensor]:
        """Return one batch; the samples start over when they are at an end."""
        index = torch.arange(number * size, (number + 1) * size, device=self.device) % len(self.x)
        return self.x[index], self.y[index]

    def trace(self, player: P, batches: Batches) -> list[Tensor]:
        """Meet batches; return copies of the scores."""
        return [self.meet(player, x, y).clone() for x, y in batches]


def materialise(stream: Stream, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the first samples of a stream and their truth."""
    x, y = stream.read(0, min(KEPT, len(stream)))
    return x.to(device), None if y is None else y.to(device)


def modes(player: Learner | Adapter) -> list[bool]:
    """Return which of the player's modules are in training mode."""
    network = player.network()
    return [] if network is None else [module.training for module in network.modules()]


def scores_are_plain(case: Case[P]) -> None:
    """One row of floating scores per sample (-Inf: impossible), on the device, cut off from the autograd graph."""
    for player, age in ((case.fresh(), "new"), (case.warm(), "warm")):
        for what, scores in (
            ("predict", player.predict(case.batch(FEW)[0])),
            ("the step", case.meet(player, *case.batch(FEW))),
        ):
            where = f"{what} of a {age} one"
            demand(isinstance(scores, Tensor) and scores.is_floating_point(), f"{where} gave {scores!r}, not scores")
            demand(len(scores) == SIZE and scores.dim() > 1, f"{where}: shape {tuple(scores.shape)} for {SIZE} samples")
            demand(not scores.requires_grad, f"{where}: scores require grad, so whoever keeps them keeps the graph")
            demand(scores.device.type == case.device.type, f"{where}: scores are on {scores.device}")
            if player.num_classes is not None:
                demand(
                    scores.shape[1] == player.num_classes,
                    f"{where}: shape {tuple(scores.shape)}, but num_classes is {player.num_classes}",
                )
            useless = bool((torch.isnan(scores) | (scores == torch.inf)).any())
            demand(not useless, f"{where}: NaN or +Inf among the scores")


def predict_changes_nothing(case: Case[P]) -> None:
    """State, training mode and global randomness stay; and what follows is as if predict had not been called."""
    for player, age in ((case.fresh(), "new"), (case.warm(), "warm")):
        x, _ = case.batch(FEW)
        state, training = copied(player.state_dict()), modes(player)
        with no_global_draws(f"predict of a {age} one"):
            first = player.predict(x).clone()
            second = player.predict(x)
        demand_same(state, player.state_dict(), f"predict of a {age} one changed its state")
        demand(training == modes(player), f"predict of a {age} one changed modules between training and evaluation")
        demand_same(first, second, f"predict of a {age} one gave other scores the second time", "scores")
    quiet, asked = case.fresh(), case.fresh()
    batches = case.batches(2 * FEW)
    expected = case.trace(quiet, batches)
    seed_torch(PLAY_SEED, case.device)
    found = []
    for i, (x, y) in enumerate(batches):
        asked.predict(case.batch(i + FEW, SIZE // 2)[0])
        found += case.trace(asked, [(x, y)])
    demand_same(expected, found, "calls of predict in between changed what followed", "scores")
    demand_same(quiet.state_dict(), asked.state_dict(), "calls of predict in between changed what followed")


def same_seed_same_result(case: Case[P]) -> None:
    """Two new ones that meet the same batches give bit-identical scores and states."""
    batches = case.batches(2 * FEW)
    results = []
    for _ in range(2):
        with no_global_draws("building and playing", torch_may=True):
            player = case.fresh()
            results.append((case.trace(player, batches), copied(player.state_dict())))
    demand_same(results[0][0], results[1][0], "two new ones met the same data", "scores")
    demand_same(results[0][1], results[1][1], "two new ones met the same data")


def state_round_trip(case: Case[P]) -> None:
    """A new one that loads a state, also from a checkpoint on disk, goes on bit-identically."""
    batches = case.batches(FEW, first=FEW)
    for age, original in (("new", case.fresh()), ("warm", case.warm())):
        kept = copied(original.state_dict())
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "checkpoint"
            checkpoint.save(file, original.state_dict())
            saved = checkpoint.load(file)
        loaded = []
        for state in (kept, saved):
            player = case.build().to(case.device)
            player.load_state_dict(cast(Mapping[str, object], state))
            demand_same(original.state_dict(), player.state_dict(), f"the state of a {age} one was loaded")
            loaded.append(player)
        seed_torch(PLAY_SEED, case.device)
        expected = case.trace(original, batches)
        for player, way in zip(loaded, ("from memory", "from disk")):
            seed_torch(PLAY_SEED, case.device)
            when = f"one that loaded the state of a {age} one {way} went on otherwise"
            demand_same(expected, case.trace(player, batches), when, "scores")
            demand_same(original.state_dict(), player.state_dict(), when)


def loading_copies(case: Case[P]) -> None:
    """After ``b.load_state_dict(a.state_dict())`` a and b share nothing: what one learns does not reach the other."""
    giver, taker = case.warm(), case.fresh()
    taker.load_state_dict(giver.state_dict())
    state = copied(giver.state_dict())
    case.trace(taker, case.batches(FEW, first=FEW))
    demand_same(state, giver.state_dict(), "after b.load_state_dict(a.state_dict()), steps of b changed a")


def batches_of_one(case: Case[P]) -> None:
    """A batch of one is met like any other, from the start and in between; scores do not depend on the batch."""
    player = case.fresh()
    for i, size in enumerate((1, 1, SIZE, 1, 3)):
        x, y = case.batch(i, size)
        scores = case.meet(player, x, y)
        demand(len(scores) == size, f"a batch of {size} gave scores of shape {tuple(scores.shape)}")
        demand(not bool(torch.isnan(scores).any()), f"a batch of {size}, after one of 1, gave NaN scores")
    if case.per_sample:
        x, _ = case.batch(FEW)
        singly = torch.cat([player.predict(x[i : i + 1]) for i in range(SIZE)])
        demand_close(player.predict(x), singly, f"{SIZE} samples predicted together, and one by one")


def memory_is_flat(case: Case[P]) -> None:
    """Over a long stream neither state, tensors, autograd graphs nor Python objects grow."""
    player = case.fresh()

    def step(number: int) -> None:
        case.meet(player, *case.batch(number))

    found = growth(step, player.state_dict, case.steps)
    demand(found is None, f"{found}; a memory that is still filling up needs more steps=")


def input_is_left_alone(case: Case[P]) -> None:
    """Samples and labels are not written to, and writing to them afterwards changes nothing."""
    expected = case.fresh()
    scores = case.trace(expected, case.batches(2 * FEW))
    player = case.fresh()
    found = []
    for x, y in case.batches(2 * FEW):
        given = (x.clone(), y.clone())
        found += case.trace(player, [(x, y)])
        demand_same(given[0], x, "x was written to", "x")
        demand_same(given[1], y, "y was written to", "y")
        demand(not x.requires_grad and x.grad is None, "x was made part of an autograd graph")
        x.zero_()
        y.zero_()
    when = "the caller's tensors were overwritten after each step, and the result changed: keep copies, not views"
    demand_same(scores, found, when, "scores")
    demand_same(expected.state_dict(), player.state_dict(), when)


def scores_stay(case: Case[P]) -> None:
    """Scores that were returned are not written to by later steps (metrics look at them later)."""
    player = case.fresh()
    returned = []
    for x, y in case.batches(2 * FEW):
        scores = (player.predict(x), case.meet(player, x, y))
        returned.append((scores, copied(scores)))
    for i, (scores, were) in enumerate(returned):
        demand_same(were, list(scores), f"scores returned at step {i} were overwritten later", "scores")


def the_loop_gets_the_same(case: Case[P]) -> None:
    """:func:`driftline.play`, which trusts the data and skips the checks, gets what direct calls give."""
    batches = case.batches(FEW)
    x, y = (torch.cat(part) for part in zip(*batches))
    labelled = bool(case.classes) or y.is_floating_point()
    stream = Stream([Segment.of(Dataset(x, y if labelled else None, case.classes))])
    direct = case.fresh()
    if isinstance(direct, Learner) and direct.task_aware:
        direct.begin_task(0, stream.task_classes(0))
    scores = case.trace(direct, batches)
    played = case.fresh()
    found = []
    for step in play(stream, played, batch_size=SIZE):
        assert step.prediction is not None
        found.append(step.prediction.clone())
    demand_same(scores, found, "driftline.play got other scores than direct calls", "scores")
    demand_same(direct.state_dict(), played.state_dict(), "driftline.play left another state than direct calls")
    demand(not played.trusted, "trusted is still set after the loop")


def shared_laws() -> dict[str, Law[Case[P]]]:
    """Return the laws that hold for learners and adapters alike, by name."""
    return {
        "scores are plain": scores_are_plain,
        "predict changes nothing": predict_changes_nothing,
        "same seed, same result": same_seed_same_result,
        "the state round trip continues bit-identically": state_round_trip,
        "loading a state copies it": loading_copies,
        "a batch of one works": batches_of_one,
        "input is left alone, and copied where kept": input_is_left_alone,
        "returned scores stay as they are": scores_stay,
        "the loop gets what direct calls give": the_loop_gets_the_same,
        "memory is flat over a long stream": memory_is_flat,
    }
