"""What happens beside the loop, in the threads of source and receiver: drops, failures, silence."""

from __future__ import annotations

from collections.abc import Callable

from driftline.stream.edge.intake import Intake
from driftline.stream.edge.journal import Journal
from driftline.stream.edge.sink import Sink


class Watch:
    """Takes over what the threads beside have counted, and tells when the source gives nothing for long.

    Parameters
    ----------
    intake : Intake
        Of the source.
    sink : Sink or None
        Of the receiver.
    journal : Journal
        Told of it.
    stall_after : float
        Seconds without an item.
    clock : callable
        Returns seconds.
    """

    def __init__(
        self, intake: Intake, sink: Sink | None, journal: Journal, stall_after: float, clock: Callable[[], float]
    ) -> None:
        self.intake, self.sink, self.journal, self.stall_after, self.clock = intake, sink, journal, stall_after, clock
        self.heard_at = clock()
        self._stalled = False
        self._before = [0, 0, 0, 0]

    def heard(self) -> None:
        """Note that an item came."""
        self.heard_at, self._stalled = self.clock(), False

    def nothing_came(self, position: int) -> None:
        """Tell of a stall, once, if it is one by now."""
        silent = self.clock() - self.heard_at
        if not self._stalled and not 0 <= silent < self.stall_after:
            self._stalled = True
            self.journal.health.count("stalls")
            self.journal.say("stalled", position=position, seconds=round(max(0.0, silent), 3))

    def look(self) -> None:
        """Take over the counts."""
        sink = (0, 0) if self.sink is None else (self.sink.dropped, self.sink.failed)
        now = [self.intake.dropped, self.intake.failures, *sink]
        dropped, failed, unseen, raised = (count - before for count, before in zip(now, self._before))
        self._before = now
        health = self.journal.health
        if dropped:
            health.count("dropped", dropped)
            self.journal.say("dropped", items=dropped, policy=self.intake.overload)
        if failed:
            health.count("source_failures", failed)
            self.journal.say("source_failed", error=self.intake.error)
        if self.sink is not None and (unseen or raised):
            health.count("sink_dropped", unseen)
            health.count("sink_failures", raised)
            self.journal.say("sink", dropped=unseen, failed=raised, error=self.sink.error)
