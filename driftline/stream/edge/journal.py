"""What the loop says of itself: events, at most one of a kind in a while, and a regular line of health."""

from __future__ import annotations

from collections.abc import Callable

from driftline.stream.edge.events import EventLog
from driftline.stream.edge.health import Health


class Journal:
    """Writes events to a log; of those that come in floods one per period is written, and the counters tell the rest.

    Parameters
    ----------
    log : EventLog
        Where to.
    period : float
        Seconds between two lines of health, and between two events of the same kind.
    clock : callable
        Returns seconds.
    """

    def __init__(self, log: EventLog, period: float, clock: Callable[[], float]) -> None:
        self.log, self.period, self.clock = log, period, clock
        self.health = Health()
        self._said: dict[str, float] = {}
        self._reported = clock()

    def say(self, event: str, **values: object) -> None:
        """Write an event, unless one of its kind was written in this period."""
        now = self.clock()
        last = self._said.get(event)
        if last is None or not 0 <= now - last < self.period:
            self._said[event] = now
            self.log.write(event, **values)

    def report(self, **values: object) -> bool:
        """Write a line of health when one is due; return whether it was."""
        now = self.clock()
        if 0 <= now - self._reported < self.period:
            return False
        self._reported = now
        self.log.write("health", **values, **self.health.report())
        return True
