"""What is written behind an option, read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from driftline.errors import ConfigError

UNITS = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "": 1.0}
Root = Annotated[
    Path | None,
    typer.Option("--data-root", help="Folder of the data files.  [default: $DRIFTLINE_DATA, else ~/.cache/driftline]"),
]


def values(settings: list[str] | None) -> dict[str, object]:
    """Read ``key=value`` settings; a value that is JSON is taken as such, anything else as text.

    Raises
    ------
    ConfigError
        For a setting without a key or value.

    Examples
    --------
    >>> values(["lr=0.1", "optimizer=sgd"])
    {'lr': 0.1, 'optimizer': 'sgd'}
    """
    found: dict[str, object] = {}
    for setting in settings or []:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"{setting!r}: expected key=value, such as tasks=5")
        try:
            found[key.strip().replace("-", "_")] = json.loads(text)
        except ValueError:
            found[key.strip().replace("-", "_")] = text
    return found


def size(text: str) -> int | None:
    """Read a size such as ``600MB``; None when there is none.

    Raises
    ------
    ConfigError
        When it is no size.

    Examples
    --------
    >>> size("1.5MB"), size("2000"), size("")
    (1500000, 2000, None)
    """
    if not text:
        return None
    number = text.strip().lower().rstrip("kmgb")
    try:
        return int(float(number) * UNITS[text.strip().lower()[len(number) :]])
    except (ValueError, KeyError):
        raise ConfigError(f"{text!r} is no size; give such as 600MB") from None


def shape_of(text: str) -> list[int]:
    """Read a sample's shape, such as ``3,32,32``."""
    sides = text.split(",")
    if not all(side.strip().isdecimal() and int(side) for side in sides):
        raise ConfigError(f"--shape {text!r}: give whole numbers with commas, such as 3,32,32")
    return [int(side) for side in sides]


def whole_numbers(text: str, option: str = "--seeds", what: str = "seed") -> tuple[int, ...]:
    """Read whole numbers such as ``0-29`` or ``1,4,7-9``."""
    seeds: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ConfigError(f"{option} {text!r}: {part!r} is no {what}; give such as 0-29 or 1,4,7")
        seeds += range(int(first), int(last or first) + 1)
    return tuple(seeds)


def number_range(text: str) -> tuple[float, float] | None:
    """Read a range such as ``-1,1``."""
    if not text:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--input-range {text!r}: give two numbers with a comma, such as -1,1") from None
    return low, high


def adapting_cost(text: str) -> str | float | None:
    """Read what adapting costs: a number of predictions, or ``measured``."""
    try:
        return float(text) if text else None
    except ValueError:
        return text
