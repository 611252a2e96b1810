"""When to adapt, to how much, and what to do when adapting fails."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor

from driftline.errors import InputError
from driftline.stream.edge.journal import Journal
from driftline.stream.edge.pace import SHARES, Pace
from driftline.stream.edge.serving import GUARDED, Serving, describe, guards_of, is_allocation

LONGEST_PAUSE = 3600.0
"""Seconds without adapting, after one failure upon another, at most."""


class Adapting:
    """Collects samples, and lets the player adapt to a batch of them when there is time and memory for it.

    Parameters
    ----------
    serving : Serving
        Who adapts.
    pace : Pace
        Says to how many samples there is time.
    batch_size : int
        Samples collected for one adaptation. Where memory is not to be had, it is halved, down to a quarter or 8, and
        doubled again when it has done for as long as a failure makes adapting rest.
    pause : float
        Seconds without adapting after a failure, and with a smaller batch when memory is short; doubled with each
        further one, up to an hour.
    journal : Journal
        Told what happens.
    clock : callable
        Returns seconds.
    """

    def __init__(
        self,
        serving: Serving,
        pace: Pace,
        batch_size: int,
        pause: float,
        journal: Journal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.serving, self.pace, self.batch_size, self.pause = serving, pace, batch_size, pause
        self.journal, self.clock = journal, clock
        self._fresh: deque[tuple[Tensor, Tensor | None]] = deque()
        self._full, self._smallest = batch_size, max(1, min(batch_size // SHARES[-1], GUARDED))
        self._shrunk_at, self._shrunk_for = 0.0, 0.0
        self._begun, self._samples = 0.0, 0
        self._rest_began, self._rest, self._failures = 0.0, 0.0, 0
        self._rollbacks = self._guards_rollbacks()

    def collect(self, x: Tensor, y: Tensor | None = None) -> None:
        """Put a sample (1, *input) beside those that wait to be adapted to."""
        self._fresh.append((x, y))
        if len(self._fresh) > self.batch_size:
            self._skip(1)

    def step(self, waiting: int) -> None:
        """Adapt if a batch is there, and time for it.

        Parameters
        ----------
        waiting : int
            Samples that have arrived and are not answered yet.
        """
        self._look()
        if len(self._fresh) < self.batch_size or self.serving.busy:
            return
        if self._resting():
            return self._skip(len(self._fresh))
        size = self.pace.choose(len(self._fresh), waiting)
        # The newest samples are those worth most.
        self._skip(len(self._fresh) - size)
        if size == 0:
            return
        x = torch.cat([x for x, _ in self._fresh])
        labels = [y for _, y in self._fresh if y is not None]
        y = torch.cat(labels) if labels else None
        self._fresh.clear()
        self._begun, self._samples = self.clock(), size
        if self.pace.when_late == "background":
            return self.serving.start(x, y)
        try:
            self.serving.learn(x, y)
        except Exception as error:
            self._failed(error)
        else:
            self._succeeded()

    def forget(self) -> None:
        """Drop what was collected."""
        self._fresh.clear()

    def recover(self, why: str) -> None:
        """Return to a good state."""
        self.went_back("failure", self.serving.recover(), why)

    def went_back(self, signal: str, to: str, why: str) -> None:
        """Tell of a return to an earlier state."""
        self.journal.health.count("rollbacks")
        self.journal.say("rollback", signal=signal, to=to, why=why)

    def _look(self) -> None:
        """See whether the other thread is done."""
        job = self.serving.finish()
        if job is not None and job.error is not None:
            self._failed(job.error)
        elif job is not None:
            self._succeeded()

    def _succeeded(self) -> None:
        health = self.journal.health
        # A guard at rest only predicts.
        if getattr(self.serving.player, "adapted", True):
            health.count("adaptations")
            health.count("adapted_samples", self._samples)
            self.pace.adapted(self._samples, max(0.0, self.clock() - self._begun))
        self._failures, self._rest = 0, 0.0
        if self.batch_size < self._full and not 0 <= self.clock() - self._shrunk_at < self._shrunk_for:
            self.batch_size, self._shrunk_at = min(2 * self.batch_size, self._full), self.clock()
        before, self._rollbacks = self._rollbacks, self._guards_rollbacks()
        for guard, then, now in zip(guards_of(self.serving.player), before, self._rollbacks, strict=True):
            if now > then:
                last = guard.events[-1]
                to = f"its state after {last['to']} batches" if last["to"] else "the shipped model"
                self.went_back(f"guard: {last['signal']}", to, str(last))

    def _failed(self, error: BaseException) -> None:
        health = self.journal.health
        health.count("adapt_failures")
        if is_allocation(error):
            health.count("out_of_memory")
            if self._samples // 2 >= self._smallest:
                self.batch_size = self._samples // 2
                self._shrunk_at = self.clock()
                self._shrunk_for = min(2 * self._shrunk_for or self.pause, LONGEST_PAUSE)
                self.journal.say("out_of_memory", batch_size=self.batch_size, error=describe(error))
                self._recover_quietly()
                return
        self._failures += 1
        self._rest_began = self.clock()
        self._rest = min(self.pause * 2 ** (self._failures - 1), LONGEST_PAUSE)
        self.journal.say("adapt_failed", error=describe(error), resting_for=self._rest)
        # What an adapter refuses has not changed it.
        if not isinstance(error, InputError):
            self._recover_quietly() if is_allocation(error) else self.recover(describe(error))

    def _recover_quietly(self) -> None:
        """Undo a step for which memory gave out half-way: it is no fault of the state."""
        self.serving.restore()

    def _resting(self) -> bool:
        return 0 <= self.clock() - self._rest_began < self._rest

    def _skip(self, samples: int) -> None:
        for _ in range(samples):
            self._fresh.popleft()
        self.journal.health.count("skipped_samples", samples)

    def _guards_rollbacks(self) -> list[int]:
        return [guard.rollbacks for guard in guards_of(self.serving.player)]

    def state_dict(self) -> dict[str, object]:
        """Return what was collected."""
        return {"fresh": list(self._fresh)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue with what was collected."""
        self._fresh = deque(cast("list[tuple[Tensor, Tensor | None]]", state["fresh"]))
