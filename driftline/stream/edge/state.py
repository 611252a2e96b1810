"""The state on the device's disk: the last few generations, each whole or not there, one owner at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from driftline.adapters.settings import at_least
from driftline.errors import CheckpointError, CheckpointVersionError, ConfigError, RecordError
from driftline.stream import checkpoint

DAY = 86_400.0
PREFIX = "state-"


class StateStore:
    """Keeps the last generations of a state in a folder, and falls back to an older one when the newest is damaged.

    Parameters
    ----------
    folder : path
        Made when it is not there. It is locked: a second owner is refused, and the lock ends with its process.
    generations : int
        How many are kept, at least 2.
    bytes_per_day : int, optional
        What may be written, to spare flash. An hour's worth may be saved up. A save beyond it is put off, unless it is
        forced; a forced one is paid back later.
    size_limit : int, optional
        Bytes that all generations together may take; older ones go first.
    clock : callable
        Returns seconds; only differences count, and a clock that goes back counts as standing still.

    Attributes
    ----------
    damaged : list of str
        What was wrong with the generations that could not be read by :meth:`newest`.
    writable : bool
        Whether the folder can be written to, as found at the beginning.
    written, postponed : int
        Bytes written, and saves put off.
    last_size : int
        Bytes of the last generation written or read.

    Raises
    ------
    ConfigError
        When another process owns the folder, or a setting is out of range.
    RecordError
        When the folder cannot be made.

    Examples
    --------
    >>> import tempfile
    >>> with StateStore(tempfile.mkdtemp()) as store:
    ...     for step in range(5):
    ...         saved = store.save({"step": step})
    ...     store.newest(), [file.name for file in store.files()]
    ((5, {'step': 4}), ['state-00000003', 'state-00000004', 'state-00000005'])
    """

    def __init__(
        self,
        folder: str | Path,
        generations: int = 3,
        bytes_per_day: int | None = None,
        size_limit: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        at_least("generations", generations, 2)
        for name, value in (("bytes_per_day", bytes_per_day), ("size_limit", size_limit)):
            if value is not None:
                at_least(name, value, 1)
        self.folder, self.generations, self.clock = Path(folder), generations, clock
        self.bytes_per_day, self.size_limit = bytes_per_day, size_limit
        self.damaged: list[str] = []
        self.written = self.postponed = self.last_size = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise checkpoint.cannot_write(self.folder, error) from error
        self._lock, self.writable = _own(self.folder)
        self.allowance = 0.0 if bytes_per_day is None else bytes_per_day / 24
        self._refilled = clock()
        for unfinished in self.folder.glob(f".{PREFIX}*.unfinished"):
            with contextlib.suppress(OSError):
                unfinished.unlink()

    def files(self) -> list[Path]:
        """Return the files of all generations, oldest first."""
        return files(self.folder)

    def newest(self) -> tuple[int, dict[str, object]] | None:
        """Return the number and the state of the newest generation that is whole.

        Damaged ones are removed; one that the disk did not give out may be whole, and stays.

        Raises
        ------
        CheckpointVersionError
            When another version of driftline wrote it in another format: it is neither damaged nor to be ignored.
        """
        for file in reversed(self.files()):
            try:
                state = checkpoint.load(file)
            except CheckpointVersionError:
                raise
            except CheckpointError as error:
                self.damaged.append(str(error))
                if not isinstance(error.__cause__, OSError):
                    # Else it would count as one of those to keep, in the place of a whole one.
                    with contextlib.suppress(OSError):
                        file.unlink()
                continue
            self.last_size = file.stat().st_size
            return number_of(file), state
        return None

    def save(self, state: dict[str, object], force: bool = False) -> int | None:
        """Write a new generation and remove those too many.

        Returns
        -------
        int or None
            Its number; None when it was put off.

        Raises
        ------
        RecordError
            When it cannot be written, or is larger than the limit; the older generations are still there.
        """
        self._refill()
        if self.bytes_per_day is not None and self.allowance < self.last_size and not force:
            self.postponed += 1
            return None
        kept = self.files()
        number = number_of(kept[-1]) + 1 if kept else 1
        self._make_room(kept)
        file = self.folder / f"{PREFIX}{number:08d}"
        checkpoint.save(file, state)
        self.last_size = file.stat().st_size
        self.written += self.last_size
        self.allowance -= self.last_size
        self._make_room(self.files()[:-1], keep=self.generations - 1)
        return number

    def _refill(self) -> None:
        now = self.clock()
        if self.bytes_per_day is not None:
            gained = max(0.0, now - self._refilled) * self.bytes_per_day / DAY
            self.allowance = min(self.allowance + gained, max(self.bytes_per_day / 24, float(self.last_size)))
        self._refilled = now

    def _make_room(self, kept: list[Path], keep: int | None = None) -> None:
        """Remove the oldest generations beyond the number to keep, and beyond the size that leaves room for one more.

        Of the older ones one is always left, should the new one turn out damaged.
        """
        sizes = [file.stat().st_size for file in kept]
        while len(kept) > 1 and (
            (keep is not None and len(kept) > keep)
            or (self.size_limit is not None and sum(sizes) + self.last_size > self.size_limit)
        ):
            kept.pop(0).unlink()
            sizes.pop(0)
        if self.size_limit is not None and sum(sizes) + self.last_size > self.size_limit:
            raise RecordError(
                f"{self.folder}: two states of {self.last_size} bytes do not fit size_limit={self.size_limit}; raise it"
            )

    def close(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def files(folder: str | Path) -> list[Path]:
    """Return the generations in a folder, oldest first, without owning it."""
    return sorted(path for path in Path(folder).glob(f"{PREFIX}*") if path.name[len(PREFIX) :].isdigit())


def read_state(folder: str | Path, generation: int | None = None) -> dict[str, object]:
    """Return the newest whole state in a folder, or that of one generation, without owning it.

    Raises
    ------
    CheckpointError
        When there is none, or the one asked for is missing or damaged.
    """
    kept = files(folder)
    if generation is not None:
        kept = [file for file in kept if number_of(file) == generation]
    reason = "no state" if generation is None else f"no generation {generation}"
    for file in reversed(kept):
        try:
            return checkpoint.load(file)
        except CheckpointError as error:
            reason = str(error)
    there = ", ".join(str(number_of(file)) for file in files(folder)) or "none"
    raise CheckpointError(f"{folder}: {reason} (generations there: {there})")


def innermost(player: object) -> object:
    """Return a player's state without those of a guard and other wrappers around the adapter.

    Examples
    --------
    >>> innermost({"inner": {"model": 1}, "rest": 0})
    {'model': 1}
    """
    while isinstance(player, Mapping) and "inner" in player:
        player = player["inner"]
    return player


def owner_of(folder: str | Path) -> str | None:
    """Return who owns a folder now, None when nobody does."""
    try:
        lock = os.open(Path(folder) / "lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return os.pread(lock, 100, 0).decode(errors="replace").strip() or "another process"
    finally:
        os.close(lock)
    return None


def number_of(file: Path) -> int:
    """Return the number of a generation."""
    return int(file.name[len(PREFIX) :])


def roll_back(folder: str | Path, shipped: bool = False, generation: int | None = None) -> str:
    """Take the model of a stopped loop back to an older generation, or to the shipped one.

    Where the loop is in its source, and what it has counted, stay. The rejected generations are removed.

    Parameters
    ----------
    folder : path
        Of the state.
    shipped : bool
        Take the shipped model.
    generation : int, optional
        The one to return to; those after it are rejected. Default: the one before the newest.

    Returns
    -------
    str
        What was done.

    Raises
    ------
    CheckpointError
        When there is no (older) generation to go back to, or it is damaged.
    ConfigError
        When a loop runs there, or both the shipped model and a generation are asked for.
    """
    if shipped and generation is not None:
        raise ConfigError(f"shipped=True, generation={generation}: choose one of them")
    kept = len(files(folder))
    if not kept:
        raise CheckpointError(f"{folder} holds no state")
    with StateStore(folder, generations=kept + 2) as store:
        found = store.newest()
        if found is None:
            raise CheckpointError(f"{folder}: no state there can be read: {'; '.join(store.damaged)}")
        newest, state = found
        numbers = [number_of(file) for file in store.files()]
        player, to, first = None, "the shipped model", newest
        if not shipped:
            older = [number for number in numbers if number < newest and generation in (None, number)]
            if not older and generation is not None:
                raise CheckpointError(f"{folder} holds no generation {generation} before the newest; it has {numbers}")
            if not older:
                raise CheckpointError(f"{folder} holds one state only; to take the shipped model, add --shipped")
            first = older[-1]
            player, to = read_state(folder, first)["player"], f"generation {first}"
        now = store.save({**state, "player": player, "floor": None, "adapting": None}, force=True)
        # The one that was returned to is the new one, too.
        for file in store.files():
            if now is not None and first <= number_of(file) < now:
                file.unlink(missing_ok=True)
    gone = [number for number in numbers if number > first or (shipped and number == first)]
    said = f"generation {gone[0]} is" if len(gone) == 1 else f"generations {gone[0]} to {gone[-1]} are"
    return f"{said} rejected; generation {now} has the model of {to}"


def _own(folder: Path) -> tuple[int | None, bool]:
    """Lock a folder; return the lock, if the disk allows one, and whether the folder can be written to."""
    path = folder / "lock"
    writable = True
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        writable = False
        try:
            lock = os.open(path, os.O_RDONLY)
        except OSError:
            return None, False
    if not _locked(lock):
        owner = os.pread(lock, 100, 0).decode(errors="replace").strip() or "another process"
        os.close(lock)
        raise ConfigError(
            f"{folder} belongs to {owner}, which is running; stop it, or give this loop a folder of its own"
        )
    if writable:
        with contextlib.suppress(OSError):
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()}".encode(), 0)
    return lock, writable


def _locked(lock: int) -> bool:
    """Lock a file; return whether it was free. Whoever only looks (:func:`owner_of`) holds it for a moment."""
    for patience in (0.05, 0.05, 0.0):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(patience)
        else:
            return True
    return False
