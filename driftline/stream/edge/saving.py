"""Writing the state from time to time, in a thread of its own, since a disk may take its time."""

from __future__ import annotations

import time
from collections.abc import Callable

from driftline.stream.edge.journal import Journal
from driftline.stream.edge.serving import describe
from driftline.stream.edge.state import StateStore
from driftline.stream.edge.worker import Job, Worker


class Saving:
    """Saves a state when it is due; a save that fails is told and tried again when the next one is due.

    Parameters
    ----------
    store : StateStore
        Where to.
    every : float
        Seconds between two saves.
    journal : Journal
        Told of each save.
    clock : callable
        Returns seconds.

    Attributes
    ----------
    slowest : float
        Seconds that the slowest write since the start took.
    """

    def __init__(
        self, store: StateStore, every: float, journal: Journal, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.store, self.every, self.journal, self.clock = store, every, journal, clock
        self._worker = Worker("checkpoint")
        self._job: Job[int | None] | None = None
        self._began = self._saved = clock()
        self.slowest = 0.0

    @property
    def age(self) -> float:
        """Seconds since a state was written, or since the start."""
        return max(0.0, self.clock() - self._saved)

    @property
    def due(self) -> bool:
        """Whether to save now."""
        # A clock that went back must not put saving off.
        return self._job is None and not 0 <= self.clock() - self._began < self.every

    def start(self, state: dict[str, object], force: bool = False) -> None:
        """Begin to save a state, which must not change any more."""
        self._began = self.clock()

        def work() -> int | None:
            begun = self.clock()
            try:
                return self.store.save(state, force)
            finally:
                self.slowest = max(self.slowest, self.clock() - begun)

        self._job = self._worker.submit(work)

    def look(self) -> None:
        """See whether the save that was begun is over."""
        job = self._job
        if job is None or not job.done:
            return
        self._job = None
        if job.error is not None:
            self.journal.health.count("checkpoint_failures")
            self.journal.say("checkpoint_failed", error=describe(job.error), age=self.age)
        elif job.result is not None:
            self._saved = self.clock()
            self.journal.health.count("checkpoints")

    def finish(self, make: Callable[[], dict[str, object]], seconds: float) -> str:
        """Wait for what was begun, then save the last state; return what became of it."""
        if self._job is not None and not self._job.wait(seconds):
            return f"not saved: the disk has not answered for {seconds:.0f} s"
        self.look()
        self.start(make(), force=True)
        assert self._job is not None
        job = self._job
        if not job.wait(seconds):
            return f"not saved: the disk has not answered for {seconds:.0f} s"
        self.look()
        self._worker.close()
        return f"generation {job.result}" if job.error is None else f"not saved: {describe(job.error)}"
