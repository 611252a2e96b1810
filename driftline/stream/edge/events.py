"""What happened on the device: one line of JSON for each event, in files that do not grow for ever."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path

from driftline.adapters.settings import at_least


class EventLog:
    """Appends events to a file; when it is full it becomes ``.1``, and what was ``.1`` becomes ``.2``.

    Writing never raises, since a full disk must not stop what is logged: lines that could not be written are counted,
    and the next one that can be says how many are missing.

    Parameters
    ----------
    path : path
        Of the newest file.
    max_bytes : int
        Size at which a file is full, at least 1 000.
    backups : int
        Older files kept, at least 1.
    wall : callable
        Returns seconds since 1970, as the owner reads them; nothing is decided by them.

    Attributes
    ----------
    lost : int
        Lines that could not be written.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "events.jsonl"
    >>> log = EventLog(path, wall=lambda: 1.5)
    >>> log.write("resumed", generation=3)
    >>> list(read_events(path))
    [{'time': 1.5, 'event': 'resumed', 'generation': 3}]
    """

    def __init__(
        self, path: str | Path, max_bytes: int = 1_000_000, backups: int = 2, wall: Callable[[], float] = time.time
    ) -> None:
        at_least("max_bytes", max_bytes, 1000)
        at_least("backups", backups, 1)
        self.path, self.max_bytes, self.backups, self.wall = Path(path), max_bytes, backups, wall
        self.lost = 0
        self._missing = 0
        self._file: TextIOWrapper | None = None

    def write(self, event: str, **values: object) -> None:
        """Append an event with its values (JSON)."""
        said: dict[str, object] = {"time": round(self.wall(), 3), "event": event, **values}
        if self._missing:
            said["lines_lost_before"] = self._missing
        try:
            start = ""
            if self._file is None:
                self._file = self.path.open("a")
                # The last line may have been cut off; an empty one does no harm.
                start = "\n" if self._file.tell() else ""
            if self._file.tell() > self.max_bytes:
                self._turn_over()
            self._file.write(f"{start}{json.dumps(said)}\n")
            self._file.flush()
            self._missing = 0
        except OSError:
            self.lost += 1
            self._missing += 1
            self._drop()

    def _turn_over(self) -> None:
        self.close()
        for number in range(self.backups, 0, -1):
            older = _numbered(self.path, number - 1)
            if older.exists():
                older.replace(_numbered(self.path, number))
        self._file = self.path.open("a")

    def _drop(self) -> None:
        """Let go of a file that cannot be written, together with what it holds back."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                return

    def close(self) -> None:
        """Close the file; the next event opens it again."""
        self._drop()


def read_events(path: str | Path) -> Iterator[dict[str, object]]:
    """Yield the events of a log, oldest first, those of older files included; lines that were cut off are left out."""
    path = Path(path)
    older = [p for p in path.parent.glob(f"{path.name}.*") if p.suffix[1:].isdigit()]
    for file in [*sorted(older, key=lambda p: -int(p.suffix[1:])), path]:
        if file.exists():
            with file.open(errors="replace") as lines:
                for line in lines:
                    try:
                        event = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(event, dict):
                        yield event


def _numbered(path: Path, number: int) -> Path:
    return path if number == 0 else path.with_name(f"{path.name}.{number}")
