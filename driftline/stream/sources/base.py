"""What live sources share: records become samples, and those that do not are an error or are counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, cast

from driftline.errors import CheckpointError, ConfigError, InputError

Decode = Callable[[Any], object]
"""Makes of a record what :func:`driftline.from_iterable` takes: x, (x, y), a Sample or a Label."""
Bad = Literal["raise", "skip", "give"]
SHOWN = 5
"""Skipped records that are kept with their reason."""


class RecordSource(ABC):
    """A source of records, each of which has a place.

    A subclass writes :meth:`_records`, :meth:`_place` and :meth:`_go_to`.

    Parameters
    ----------
    decode : callable
        Makes a sample of a record, such as :class:`Columns`.
    bad : "raise", "skip" or "give"
        What happens to a record that cannot be decoded: the run stops with an error that names it; or it is counted,
        and the first ones are put into the run's record with the reason (under ``source``); or the error is given out
        in its place, for the loop on an edge device, which answers every record.

    Attributes
    ----------
    read, skipped : int
        Records so far, and those of them that could not be decoded.
    """

    def __init__(self, decode: Decode, bad: Bad = "raise") -> None:
        if bad not in ("raise", "skip", "give"):
            raise ConfigError(f"bad={bad!r}: must be 'raise', 'skip' or 'give'")
        self.decode, self.bad = decode, bad
        self.read = self.skipped = 0
        self._reasons: list[str] = []

    @abstractmethod
    def _records(self) -> Iterator[tuple[str, object]]:
        """Yield records with where they are, from the current place on; the place is behind each as it is yielded."""

    @abstractmethod
    def _place(self) -> object:
        """Return the current place: plain values."""

    @abstractmethod
    def _go_to(self, place: Any) -> None:
        """Go to a place."""

    def __iter__(self) -> Iterator[object]:
        for where, record in self._records():
            self.read += 1
            try:
                item = self.decode(record)
            except ConfigError:
                # No fault of the record: something is not installed, say.
                raise
            except Exception as error:
                reason = f"{where}: {type(error).__name__}: {error}"
                if self.bad == "give":
                    yield InputError(reason)
                    continue
                if self.bad == "raise":
                    raise InputError(f"{reason}; repair it, or let such records be skipped (bad='skip')") from error
                self.skipped += 1
                if len(self._reasons) < SHOWN:
                    self._reasons.append(reason)
                continue
            yield item

    def notes(self) -> dict[str, object]:
        """Return what the run's record says of the source."""
        return {"read": self.read, "skipped": self.skipped, "first_skipped": list(self._reasons)}

    def state_dict(self) -> dict[str, object]:
        """Return the place behind the last record given out, and the counts."""
        return {"kind": type(self).__name__, "place": self._place(), **self.notes()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When it belongs to another kind of source.
        """
        if state.get("kind") != type(self).__name__:
            raise CheckpointError(f"the run on disk was read from a {state.get('kind')}, not a {type(self).__name__}")
        self._go_to(state["place"])
        self.read, self.skipped = cast(int, state["read"]), cast(int, state["skipped"])
        self._reasons = list(cast("list[str]", state["first_skipped"]))
