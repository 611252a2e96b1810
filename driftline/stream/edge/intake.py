"""Reading a live source in a thread of its own, into a bounded queue with a stated policy for when it is full."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, cast

from driftline.adapters.settings import at_least, one_of
from driftline.errors import ConfigError
from driftline.stream.live import Source

Overload = Literal["block", "drop-oldest", "drop-newest"]


class Arrival(NamedTuple):
    """An item of the source: which one it was, from 0, and when it came."""

    position: int
    item: object
    at: float


class Intake:
    """Takes items from a source as they come, and keeps at most ``size`` of them until they are asked for.

    Parameters
    ----------
    source : iterable or callable
        An iterable of items, or a function that returns one, which is called again when reading fails. If it has a
        method ``seek(position)``, that is called before each time it is opened.
    size : int
        Items that may wait.
    overload : "block", "drop-oldest" or "drop-newest"
        What happens when one more comes: the source waits; the item that waits longest, or the new one, is dropped.
    start : int
        Position of the source's first item.
    clock : callable
        Returns seconds.
    reconnect : (float, float)
        Seconds before a failed source is opened again: at first, doubled each time, and at most.

    Attributes
    ----------
    dropped, failures : int
        Items dropped; times that the source raised.
    error : str or None
        What it raised last.

    Examples
    --------
    >>> intake = Intake([10, 20])
    >>> [intake.get(10).item, intake.get(10).item, intake.get(10), intake.ended]
    [10, 20, None, True]
    """

    def __init__(
        self,
        source: Source,
        size: int = 64,
        overload: Overload = "block",
        start: int = 0,
        clock: Callable[[], float] = time.monotonic,
        reconnect: tuple[float, float] = (1.0, 60.0),
    ) -> None:
        at_least("queue", size, 1)
        one_of("overload", overload, ("block", "drop-oldest", "drop-newest"))
        if not (callable(source) or isinstance(source, Iterable)):
            raise ConfigError(f"source is {type(source).__name__}; give an iterable, or a function that returns one")
        self.source, self.size, self.overload, self.clock, self.reconnect = source, size, overload, clock, reconnect
        self.dropped = self.failures = 0
        self.error: str | None = None
        self._next = start
        self._waiting: deque[Arrival] = deque()
        self._changed = threading.Condition()
        self._over = self._closed = False
        self._thread = threading.Thread(target=self._read, name="driftline intake", daemon=True)
        self._thread.start()

    def get(self, seconds: float) -> Arrival | None:
        """Return the item that has waited longest; None when none came for so long, or there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._over, seconds)
            if not self._waiting:
                return None
            arrival = self._waiting.popleft()
            self._changed.notify_all()
        # A source that waits for us has no sample that is late.
        return arrival._replace(at=self.clock()) if self.overload == "block" else arrival

    @property
    def waiting(self) -> int:
        """Samples that grow late while they wait: none when the source itself waits."""
        return 0 if self.overload == "block" else len(self._waiting)

    @property
    def ended(self) -> bool:
        """Whether there is nothing left and nothing will come."""
        with self._changed:
            return self._over and not self._waiting

    def close(self, seconds: float = 0.0) -> None:
        """Read no more; what waits is not given out. The source is given so long to be done with its item.

        A thread that still computes when Python ends takes the process down with it.
        """
        with self._changed:
            self._closed = self._over = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(seconds)

    def _read(self) -> None:
        pause = self.reconnect[0]
        try:
            while True:
                before = self._next
                try:
                    for item in self._open():
                        if not self._put(item):
                            return
                    return
                except BaseException as error:
                    # A thread must not die without a word, whatever the reason.
                    self.error = f"{type(error).__name__}: {error}"
                    self.failures += 1
                    if not callable(self.source):
                        return
                if self._next > before:
                    pause = self.reconnect[0]
                with self._changed:
                    if self._changed.wait_for(lambda: self._closed, pause):
                        return
                pause = min(2 * pause, self.reconnect[1])
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _open(self) -> Iterator[object]:
        if hasattr(self.source, "seek"):
            cast("Callable[[int], object]", self.source.seek)(self._next)
        return iter(self.source() if callable(self.source) else self.source)

    def _put(self, item: object) -> bool:
        """Let an item in, as the policy says; return whether to go on."""
        with self._changed:
            if self.overload == "block":
                self._changed.wait_for(lambda: len(self._waiting) < self.size or self._closed)
            if self._closed:
                return False
            arrival = Arrival(self._next, item, self.clock())
            self._next += 1
            full = len(self._waiting) >= self.size
            self.dropped += full
            if full and self.overload == "drop-oldest":
                self._waiting.popleft()
            if not (full and self.overload == "drop-newest"):
                self._waiting.append(arrival)
            self._changed.notify_all()
            return True
