"""A thread that works on one job after another; whatever a job raises is kept for the one who asks."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """A piece of work: ``result`` or ``error`` is there once it is ``done``."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._over = threading.Event()
        self.result: T | None = None
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether it is over, well or not."""
        return self._over.is_set()

    def run(self) -> None:
        """Do it."""
        try:
            self.result = self._work()
        except BaseException as error:
            self.error = error
        finally:
            self._over.set()

    def wait(self, seconds: float) -> bool:
        """Wait until it is over; return whether it is."""
        return self._over.wait(seconds)


class Worker:
    """Does jobs in a daemon thread, which a hanging job cannot make the process wait for.

    Parameters
    ----------
    name : str
        Of the thread.
    niceness : int
        Added to the thread's priority number where the system allows it (Linux): 0 to 19.

    Examples
    --------
    >>> worker = Worker("adding")
    >>> job = worker.submit(lambda: 1 + 1)
    >>> job.wait(10), job.result
    (True, 2)
    >>> worker.close()
    """

    def __init__(self, name: str, niceness: int = 0) -> None:
        self.name, self.niceness = name, niceness
        self._jobs: SimpleQueue[Job[object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, work: Callable[[], T]) -> Job[T]:
        """Put a job behind those that wait; a thread that is gone is replaced."""
        job = Job(work)
        self._jobs.put(job)  # type: ignore[arg-type]
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name=f"driftline {self.name}", daemon=True)
            self._thread.start()
        return job

    def close(self, seconds: float = 0.0) -> None:
        """Let the thread end after the jobs that wait, and wait for so long for it."""
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        if self.niceness:
            # On Linux a thread has a priority of its own, under its own number.
            with contextlib.suppress(OSError, AttributeError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self.niceness)
        while (job := self._jobs.get()) is not None:
            job.run()
