"""Replicas one after the other: for learners whose steps cannot be batched. Right for every learner, and no faster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from driftline.errors import CheckpointError
from driftline.learners.base import Learner, State
from driftline.stream.seeds import derive_seed, generator


class SideBySide(Learner):
    """R learners as one, each stepped in turn; each draws from a global generator state of its own (dropout).

    Parameters
    ----------
    learners : sequence of Learner
        One for each replica.
    seeds : sequence of int
        What :func:`driftline.run` would be given for each.

    Examples
    --------
    >>> from driftline.learners import NearestClassMean
    >>> both = SideBySide([NearestClassMean(classes=3), NearestClassMean(classes=3)], [0, 1])
    >>> both.observe(torch.rand(2, 5, 4), torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 3])
    """

    def __init__(self, learners: Sequence[Learner], seeds: Sequence[int]) -> None:
        self.learners, self.seeds = tuple(learners), tuple(seeds)
        self.replicas = len(self.learners)
        self._random = [generator(derive_seed(seed, "run")).get_state() for seed in self.seeds]

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Raise if a batch cannot be used by any replica."""
        if self.trusted:
            return
        super().check(x)
        for i, learner in enumerate(self.learners):
            learner.check(x[i], None if y is None else y[i])
        self.num_classes, self.input_shape = self.learners[0].num_classes, self.learners[0].input_shape

    @property
    def task_aware(self) -> bool:
        """Whether the learners want to be told the task."""
        return any(learner.task_aware for learner in self.learners)

    def begin_task(self, task: int, classes: Tensor | None = None) -> None:
        """Tell every learner; ``classes`` has shape (R, C)."""
        for i, learner in enumerate(self.learners):
            learner.begin_task(task, None if classes is None else classes[i])

    def predict_task(self, x: Tensor, task: int) -> Tensor:
        """Return the scores (R, B, classes) of all replicas for samples of a task."""
        self.check(x)
        return _stack([learner.predict_task(x[i], task) for i, learner in enumerate(self._trusted())])

    def predict(self, x: Tensor) -> Tensor:
        """Return the scores (R, B, classes) of all replicas."""
        self.check(x)
        return _stack([learner.predict(x[i]) for i, learner in enumerate(self._trusted())])

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Let each replica learn from its samples."""
        self.check(x, y)
        for i, learner in enumerate(self._trusted()):
            with self._own_randomness(i):
                learner.learn(x[i], y[i])

    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        """Let each replica observe its samples."""
        self.check(x, y)
        return _stack([self._observe(i, learner, x[i], y[i]) for i, learner in enumerate(self._trusted())])

    def _observe(self, number: int, learner: Learner, x: Tensor, y: Tensor) -> Tensor:
        with self._own_randomness(number):
            return learner.observe(x, y)

    def _trusted(self) -> Iterator[Learner]:
        for learner in self.learners:
            before, learner.trusted = learner.trusted, True
            try:
                yield learner
            finally:
                learner.trusted = before

    @contextmanager
    def _own_randomness(self, number: int) -> Iterator[None]:
        before = torch.get_rng_state()
        torch.set_rng_state(self._random[number])
        try:
            yield
        finally:
            self._random[number] = torch.get_rng_state()
            torch.set_rng_state(before)

    def replica(self, number: int) -> Learner:
        """Return one of the learners."""
        return self.learners[number]

    def describe(self) -> dict[str, object]:
        """Return what the learners are."""
        return {
            "name": str(self.learners[0].describe()["name"]),
            "parameters": {"replicas": [learner.describe()["parameters"] for learner in self.learners]},
        }

    def to(self, device: torch.device | str) -> Self:
        """Move every learner."""
        self.learners = tuple(learner.to(device) for learner in self.learners)
        return self

    def state_dict(self) -> State:
        """Return the state of each."""
        states = [learner.state_dict() for learner in self.learners]
        return {"replicas": states, "random": [state.clone() for state in self._random]}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict` of as many learners of the same kind."""
        saved = cast(Sequence[Mapping[str, object]], state.get("replicas"))
        if not isinstance(saved, Sequence) or len(saved) != self.replicas or set(state) != {"replicas", "random"}:
            raise CheckpointError(f"the state is not that of {self.replicas} replicas side by side")
        before = [learner.state_dict() for learner in self.learners]
        for number, (learner, own) in enumerate(zip(self.learners, saved)):
            try:
                learner.load_state_dict(own)
            except CheckpointError:
                for done, old in zip(self.learners[:number], before):
                    done.load_state_dict(old)
                raise
        self._random = [r.clone() for r in cast(Sequence[Tensor], state["random"])]


def _stack(scores: Sequence[Tensor]) -> Tensor:
    """Return all scores as one tensor; classes that a replica has not met yet score -Inf there."""
    most = max(s.shape[-1] for s in scores)
    padded = [F.pad(s, (0, most - s.shape[-1]), value=float("-inf")) if s.shape[-1] < most else s for s in scores]
    return torch.stack(padded)
