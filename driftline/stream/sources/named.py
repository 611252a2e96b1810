"""Live sources that a command line can name, such as ``csv:readings.csv``, with plain values as settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from driftline.errors import ConfigError, InputError, MissingDataError, unknown
from driftline.stream.events import Label, Sample
from driftline.stream.sources.base import Bad, Decode, RecordSource
from driftline.stream.sources.columns import Columns
from driftline.stream.sources.folder import ImageFolderSource
from driftline.stream.sources.kafka import KafkaSource
from driftline.stream.sources.lines import JSONLinesSource
from driftline.stream.sources.tables import CSVSource, ParquetSource

Names = str | int | Sequence[object]
"""``"off,on"`` or ``["off", "on"]``; a number n of classes: 0 to n - 1."""


@dataclass(frozen=True)
class NamedSource:
    """A source, and what has to be known of it before it is read.

    Attributes
    ----------
    source : RecordSource
        Not opened yet.
    classes : tuple of str
        Their names; empty for numbers to predict, or no labels.
    shape : tuple of int, optional
        Of a sample, where it is known.
    labelled : bool
        Whether labels can come at all.
    dtype : torch.dtype
        Of a sample: uint8 for images.
    """

    source: RecordSource
    classes: tuple[str, ...]
    shape: tuple[int, ...] | None
    labelled: bool
    dtype: torch.dtype = torch.float32


class Described:
    """Makes samples of values that say themselves what they are: ``[numbers]``, or ``{"x": ..., "y": ..., "id": ...}``.

    Without x it is a label for an id. Numbers in x are floating ones, also those that JSON writes as ``1``.

    Parameters
    ----------
    classes : sequence of str
        Names that y may have; one that is an integer is taken as the index.

    Raises
    ------
    InputError
        For anything else.

    Examples
    --------
    >>> decode = Described(["off", "on"])
    >>> decode({"x": [1, 2], "y": "on"}), decode({"id": 7, "y": 0}), decode([3, 4]).y
    (Sample(x=array([1., 2.]), y=1, id=None), Label(id=7, y=0), None)
    """

    def __init__(self, classes: Sequence[str] = ()) -> None:
        self.classes = {name: index for index, name in enumerate(classes)}

    def __call__(self, said: object) -> Sample | Label:
        """Return what a value is."""
        if isinstance(said, list):
            return Sample(_numbers(said))
        if isinstance(said, Mapping) and "x" in said:
            return Sample(_numbers(said["x"]), self._truth(said.get("y")), said.get("id"))
        if isinstance(said, Mapping) and "id" in said and "y" in said:
            return Label(said["id"], self._truth(said["y"]))
        raise InputError('expected [numbers], {"x": ...} or {"id": ..., "y": ...}; name other fields in features=')

    def _truth(self, y: object) -> object:
        if not isinstance(y, str):
            return y
        if y not in self.classes:
            raise InputError(f"unknown class {y!r}; there are: {', '.join(self.classes) or 'none'}")
        return self.classes[y]


def csv(
    place: str,
    features: Names | None = None,
    label: str | None = None,
    classes: Names = (),
    id: str | None = None,
    delimiter: str = ",",
    bad: Bad = "raise",
) -> NamedSource:
    """csv:PATH - rows of a CSV file with a header; features: all other columns, unless they are named."""
    _check_there(place)
    columns = _of_table(CSVSource(place, dict, delimiter=delimiter).columns(), features, label, classes, id)
    return _of_columns(CSVSource(place, columns, bad, delimiter), columns)


def parquet(
    place: str,
    features: Names | None = None,
    label: str | None = None,
    classes: Names = (),
    id: str | None = None,
    rows: int = 4096,
    bad: Bad = "raise",
) -> NamedSource:
    """parquet:PATH - rows of a Parquet file, so many at once; features: all other columns, unless they are named."""
    _check_there(place)
    columns = _of_table(ParquetSource(place, dict).columns(), features, label, classes, id)
    return _of_columns(ParquetSource(place, columns, bad, rows), columns)


def jsonl(
    place: str,
    features: Names | None = None,
    label: str | None = None,
    classes: Names = (),
    id: str | None = None,
    shape: int | Sequence[int] | None = None,
    replayed: bool = False,
    bad: Bad = "raise",
) -> NamedSource:
    """jsonl:PATH - lines of [numbers], {"x": ..., "y": ..., "id": ...} or named features; jsonl:- is standard input."""
    if place != "-":
        _check_there(place)
    return _of_json(features, label, classes, id, shape, lambda decode: JSONLinesSource(place, decode, bad, replayed))


def kafka(
    place: str,
    features: Names | None = None,
    label: str | None = None,
    classes: Names = (),
    id: str | None = None,
    shape: int | Sequence[int] | None = None,
    start: str = "earliest",
    until_end: bool = False,
    idle: float | None = None,
    timeout: float = 30.0,
    config: str = "",
    bad: Bad = "raise",
) -> NamedSource:
    """kafka://HOST:PORT/TOPIC - messages of JSON as for jsonl; config: a JSON file of librdkafka's settings."""
    servers, _, topic = place.rpartition("/")
    if not servers or not topic or "/" in servers:
        raise ConfigError(f"kafka://{place}: expected kafka://host:port/topic, with commas between several hosts")

    def make(decode: Decode) -> RecordSource:
        options = {"bad": bad, "start": start, "until_end": until_end, "idle": _seconds(idle), "timeout": timeout}
        parse: Decode = lambda message: decode(json.loads(message))  # noqa: E731
        return KafkaSource(topic, servers, parse, config=_settings(config), **options)  # type: ignore[arg-type]

    return _of_json(features, label, classes, id, shape, make)


def folder(
    place: str,
    size: int | Sequence[int] = (32, 32),
    classes: Names = (),
    channels: int = 3,
    settle: float = 1.0,
    poll: float = 0.5,
    idle: float | None = None,
    bad: Bad = "raise",
) -> NamedSource:
    """folder:PATH - images as they appear in a folder; with classes, an image's own folder is its label."""
    _check_there(place)
    sides = _whole(size, "size")
    names = _names(classes, "classes", numbered=True)
    if len(sides) > 2 or (len(names) == 1):
        raise ConfigError(
            f"size={size!r}, classes={classes!r}: give one number or height and width; no class or several"
        )

    def label(file: Path) -> int:
        if file.parent.name not in names:
            raise InputError(f"its folder {file.parent.name!r} is no class; there are: {', '.join(names)}")
        return names.index(file.parent.name)

    height, width = (*sides, *sides)[:2]
    options = {"channels": channels, "bad": bad, "settle": settle, "poll": poll, "idle": _seconds(idle)}
    images = ImageFolderSource(place, (height, width), label if names else None, **options)  # type: ignore[arg-type]
    return NamedSource(images, names, (channels, height, width), bool(names), torch.uint8)


SOURCES: dict[str, Callable[..., NamedSource]] = {
    "kafka": kafka,
    "jsonl": jsonl,
    "csv": csv,
    "parquet": parquet,
    "folder": folder,
}


def _check_there(place: str) -> None:
    if not Path(place).exists():
        raise MissingDataError(f"there is no {place} (looked for it from {Path.cwd()})")


def _of_json(
    features: Names | None,
    label: str | None,
    classes: Names,
    id: str | None,
    shape: int | Sequence[int] | None,
    make: Callable[[Decode], RecordSource],
) -> NamedSource:
    if features is not None:
        if shape is not None:
            raise ConfigError(f"shape={shape!r}: named features are samples of their own shape; leave it out")
        columns = _columns(features, label, classes, id)
        return _of_columns(make(columns), columns)
    if label is not None or id is not None:
        raise ConfigError(f"label={label!r}, id={id!r}: fields have names only where features= names those of a sample")
    names = _names(classes, "classes", numbered=True)
    sides = None if shape is None else _whole(shape, "shape")
    return NamedSource(make(Described(names)), names, sides, True)


def _of_columns(source: RecordSource, columns: Columns) -> NamedSource:
    return NamedSource(source, tuple(columns.classes), (len(columns.features),), columns.label is not None)


def _columns(features: Names, label: str | None, classes: Names, id: str | None) -> Columns:
    names, known = _names(features, "features"), _names(classes, "classes", numbered=True)
    if known and label is None:
        raise ConfigError(f"classes={classes!r}, but no field is the label; name it in label=")
    for what, field in (("label", label), ("id", id)):
        if field is not None and str(field) in names:
            raise ConfigError(f"{what}={field!r} is among the features too")
    return Columns(names, None if label is None else str(label), known, None if id is None else str(id))


def _of_table(
    found: Sequence[str], features: Names | None, label: str | None, classes: Names, id: str | None
) -> Columns:
    """Return what makes samples of a table's rows; every column that is named has to be there."""
    own = [str(name) for name in (label, id) if name is not None]
    named = [name for name in found if name not in own] if features is None else _names(features, "features")
    for name in (*named, *own):
        if name not in found:
            raise unknown("column", name, found)
    return _columns(named, label, classes, id)


def _names(given: Names, what: str, numbered: bool = False) -> tuple[str, ...]:
    if isinstance(given, str):
        given = [name.strip() for name in given.split(",") if name.strip()]
    elif numbered and isinstance(given, int) and not isinstance(given, bool) and given > 0:
        given = range(given)
    if isinstance(given, Mapping) or not isinstance(given, Sequence):
        raise ConfigError(f"{what}={given!r}: give names with commas between")
    names = tuple(str(name) for name in given)
    if len(set(names)) < len(names):
        raise ConfigError(f"{what}={given!r}: a name is there twice")
    return names


def _whole(given: int | Sequence[int], what: str) -> tuple[int, ...]:
    sides = given if isinstance(given, (list, tuple)) else [given]
    if not sides or any(not isinstance(side, int) or isinstance(side, bool) or side < 1 for side in sides):
        raise ConfigError(f"{what}={given!r}: give a whole number above 0, or a list of such, as in {what}=[3,32,32]")
    return tuple(sides)


def _seconds(idle: object) -> float | None:
    if idle is not None and (not isinstance(idle, (int, float)) or isinstance(idle, bool) or idle < 0):
        raise ConfigError(f"idle={idle!r}: give seconds, 0 or more")
    return idle


def _numbers(x: object) -> object:
    try:
        return np.asarray(x, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"x={x!r} is no array of numbers: {error}") from None


def _settings(path: str) -> dict[str, object]:
    """Read librdkafka's settings from a file: passwords are then neither in the record nor in a list of processes."""
    if not path:
        return {}
    try:
        said = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"config={path!r}: cannot read librdkafka's settings as JSON: {error}") from None
    if not isinstance(said, dict):
        raise ConfigError(f"config={path!r}: expected an object of settings, found {type(said).__name__}")
    return said
