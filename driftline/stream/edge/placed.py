"""A source of records whose place behind each item is known until that item is dealt with."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping

from driftline.stream.sources.base import RecordSource

State = dict[str, object]


class Placed:
    r"""A source of records for the loop, which reads ahead: what was read and not dealt with is read again later.

    It is called to be read. When reading fails it is called again, and goes on where it was.

    Parameters
    ----------
    source : RecordSource
        With ``bad="give"`` or ``"skip"``.
    name : str
        Of this source among others; a place in another one is not taken up.

    Examples
    --------
    >>> import io
    >>> from driftline.stream.sources import JSONLinesSource
    >>> placed = Placed(JSONLinesSource(io.BytesIO(b"1\n2\n3\n"), lambda value: value), "lines")
    >>> placed.begin(0, None)
    True
    >>> list(placed()), placed.place(2)["place"]
    ([1, 2, 3], {'offset': 4, 'lines': 2})
    """

    def __init__(self, source: RecordSource, name: str) -> None:
        self.source, self.name = source, name
        self._lock = threading.Lock()
        self._next = 0
        self._places: deque[tuple[int, State]] = deque()

    def begin(self, position: int, place: Mapping[str, object] | None) -> bool:
        """Begin with the item of this number at a :meth:`place`; return False when it is in another source.

        Raises
        ------
        CheckpointError
            When the source cannot go there.
        """
        known = place is None or place["name"] == self.name
        if place is not None and known:
            self.source.load_state_dict(place)
        self._next = position
        self._places.append((position, self.source.state_dict()))
        return known

    def __call__(self) -> Iterator[object]:
        """Read on."""
        for item in self.source:
            self._next += 1
            with self._lock:
                self._places.append((self._next, self.source.state_dict()))
            yield item

    def place(self, position: int) -> State:
        """Return the place before the item of this number, and forget those before it."""
        with self._lock:
            while len(self._places) > 1 and self._places[1][0] <= position:
                self._places.popleft()
            return {"name": self.name, **self._places[0][1]}
