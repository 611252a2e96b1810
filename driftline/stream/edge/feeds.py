"""Sources that the command line can name beside those of records: a dataset, or a function in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

from driftline import data
from driftline.errors import ConfigError
from driftline.scenarios.own import from_file
from driftline.stream.dataset import Dataset
from driftline.stream.live import Source


class Played:
    """The samples of a dataset in their order, from any position on, with their labels or without.

    Examples
    --------
    >>> feed = Played(data.load("digits"), labels=True)
    >>> feed.seek(1436)
    >>> [(tuple(x.shape), y) for x, y in feed]
    [((1, 8, 8), 9), ((1, 8, 8), 8)]
    """

    def __init__(self, dataset: Dataset, labels: bool = False) -> None:
        self.dataset, self.labels = dataset, labels
        self._start = 0

    def seek(self, position: int) -> None:
        """Begin there next time."""
        self._start = position

    def __iter__(self) -> Iterator[object]:
        y = self.dataset.y if self.labels else None
        for i in range(self._start, len(self.dataset)):
            yield self.dataset.x[i] if y is None else (self.dataset.x[i], int(y[i]))


def feed(name: str, root: Path | None = None, labels: bool = False) -> Source:
    """Return the source of a name.

    Parameters
    ----------
    name : str
        ``file.py:function``, a function that returns an iterable; or what :func:`driftline.load` takes.
    root : Path, optional
        Folder of the data files.
    labels : bool
        Give a dataset's labels with its samples.
    """
    if ".py:" in name:
        return cast("Callable[[], Iterable[object]]", function(name))
    return Played(data.load(name, root), labels)


def function(address: str) -> Callable[[], object]:
    """Return the function at ``file.py:name``.

    Raises
    ------
    ConfigError
        When it is not there.
    """
    place, _, name = address.rpartition(":")
    found = getattr(from_file(Path(place).expanduser()), name, None)
    if not callable(found):
        raise ConfigError(f"{place} has no function {name!r}")
    return cast("Callable[[], object]", found)
