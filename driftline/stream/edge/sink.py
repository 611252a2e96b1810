"""Handing predictions on, to a receiver that may block, be slow or raise, without waiting for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from driftline.adapters.settings import at_least
from driftline.stream.edge.samples import Prediction

Receiver = Callable[[Prediction], object]


class Sink:
    """Calls a receiver in a thread of its own; when it is behind by ``size`` predictions, the oldest is dropped.

    Parameters
    ----------
    receiver : callable
        ``receiver(prediction)``.
    size : int
        Predictions that may wait.

    Attributes
    ----------
    delivered, dropped, failed : int
        Predictions the receiver took, never saw, and raised for.
    error : str or None
        What it raised last.

    Examples
    --------
    >>> seen = []
    >>> sink = Sink(lambda prediction: seen.append(prediction.id))
    >>> sink.put(Prediction(1, 1, None, "none", 0.0))
    >>> sink.close(10), seen
    (True, [1])
    """

    def __init__(self, receiver: Receiver, size: int = 1000) -> None:
        at_least("size", size, 1)
        self.receiver, self.size = receiver, size
        self.delivered = self.dropped = self.failed = 0
        self.error: str | None = None
        self._waiting: deque[Prediction] = deque()
        self._taken: int | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="driftline sink", daemon=True)
        self._thread.start()

    def put(self, prediction: Prediction) -> None:
        """Hand a prediction on; returns at once."""
        with self._changed:
            if len(self._waiting) >= self.size:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(prediction)
            self._changed.notify()

    def close(self, seconds: float) -> bool:
        """Let the receiver take what waits, for so long at most; return whether it took all."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def first_undelivered(self) -> int | None:
        """Return the position of the oldest prediction that the receiver has not dealt with, if any."""
        with self._changed:
            if self._taken is not None:
                return self._taken
            return self._waiting[0].position if self._waiting else None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                prediction = self._waiting.popleft()
                self._taken = prediction.position
            try:
                self.receiver(prediction)
                self.delivered += 1
            except BaseException as error:
                self.failed += 1
                self.error = f"{type(error).__name__}: {error}"
            self._taken = None
