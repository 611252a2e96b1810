"""Tables in text files, one sample a line -> Dataset: classes or numbers to be predicted from the other columns."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from driftline.data.arrays import build, with_source
from driftline.errors import ConfigError, DataError, MissingDataError, unknown
from driftline.stream.dataset import Dataset

KINDS = ("classes", "numbers")
Column = str | int


def from_csv(
    path: str | os.PathLike[str],
    target: Column = -1,
    kind: str | None = None,
    columns: Sequence[Column] | None = None,
    delimiter: str = ",",
) -> Dataset:
    r"""Read a table from a text file, in its order.

    Parameters
    ----------
    path : path
        The file: one sample a line, after an optional line of names.
    target : str or int
        Name or number (from 0; -1: the last) of the column to predict.
    kind : "classes" or "numbers", optional
        What that column holds. Default: numbers when one of them has a fraction, else classes, which are the column's
        distinct values in sorted order.
    columns : sequence of str or int, optional
        The columns to predict it from, which hold numbers. Default: all others.
    delimiter : str
        What stands between two columns.

    Returns
    -------
    Dataset
        x is (N, columns) float32; y class indices, or (N,) float32. Named like the file.

    Raises
    ------
    MissingDataError
        There is no such file.
    DataError
        A line is too short or too long, or something in it is not a number; the message says where.
    ConfigError
        For a column that is not there, or an unknown kind.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "tides.csv")
    ...     _ = file.write_text("hour,moon,height\n0,0.1,2.5\n1,0.1,3.25\n")
    ...     data = from_csv(file, columns=["moon"])
    >>> data.x.shape, data.y.tolist(), data.classes
    (torch.Size([2, 1]), [2.5, 3.25], ())
    """
    file = Path(path).expanduser()
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"{file}: kind={kind!r}: must be one of {', '.join(map(repr, KINDS))}")
    names, lines, first = _read(file, delimiter)
    wanted = _place(target, names, file)
    chosen = [i for i in range(len(names)) if i != wanted]
    if columns is not None:
        chosen = [_place(column, names, file) for column in columns]
    if not chosen or wanted in chosen:
        named = [names[i] for i in chosen]
        raise ConfigError(f"{file}: columns={named}: give at least one column, and not the target {names[wanted]!r}")
    x = torch.stack([_numbers([line[i] for line in lines], names[i], file, first) for i in chosen], 1)
    y, classes = _targets([line[wanted] for line in lines], names[wanted], kind, file, first)
    given = {"target": target, "kind": kind, "columns": columns and list(columns), "delimiter": delimiter}
    defaults = {"target": -1, "kind": None, "columns": None, "delimiter": ","}
    options = {key: value for key, value in given.items() if value != defaults[key]}
    return with_source(build(file.stem, {"train": (x, y)}, classes), {"name": str(path), **options})


def _read(file: Path, delimiter: str) -> tuple[list[str], list[list[str]], int]:
    """Return the columns' names, the lines below, and the number of the first of these in the file."""
    if not file.is_file():
        raise MissingDataError(f"{file}: no such file; give the path of a table with one sample a line")
    if len(delimiter) != 1:
        raise ConfigError(f"{file}: delimiter={delimiter!r}: must be one character")
    try:
        with file.open(newline="", encoding="utf-8-sig") as content:
            lines = [[cell.strip() for cell in line] for line in csv.reader(content, delimiter=delimiter)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a table in text: {error}") from error
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{file}: no line in it; expected one sample a line")
    named = not any(_is_number(cell) for cell in lines[0])
    names = lines[0] if named else [str(i) for i in range(len(lines[0]))]
    for number, line in enumerate(lines, 1):
        if len(line) != len(names):
            raise DataError(f"{file}, line {number}: {len(line)} columns, but the first line has {len(names)}")
    if len(lines) == named:
        raise DataError(f"{file}: only a line of names; expected one sample a line below")
    return names, lines[named:], 1 + named


def _place(column: Column, names: list[str], file: Path) -> int:
    if isinstance(column, int) and not isinstance(column, bool):
        if -len(names) <= column < len(names):
            return column % len(names)
    elif column in names:
        return names.index(column)
    raise unknown(f"column in {file}:", str(column), names)


def _numbers(cells: list[str], name: str, file: Path, first: int) -> Tensor:
    """Read a column of numbers."""
    try:
        return torch.tensor([float(cell) for cell in cells], dtype=torch.float32)
    except ValueError:
        row = next(i for i, cell in enumerate(cells) if not _is_number(cell))
        found = repr(cells[row]) if cells[row] else "nothing"
        raise DataError(
            f"{file}, line {first + row}, column {name}: expected a number, found {found}; mend it, or leave the "
            "column out with columns=[...]"
        ) from None


def _targets(cells: list[str], name: str, kind: str | None, file: Path, first: int) -> tuple[Tensor, list[str]]:
    """Return labels and class names, or targets and none."""
    numeric = all(_is_number(cell) for cell in cells)
    if kind == "numbers" or (kind is None and numeric and any(not float(cell).is_integer() for cell in cells)):
        return _numbers(cells, name, file, first), []
    if "" in cells:
        line = first + cells.index("")
        raise DataError(f"{file}, line {line}, column {name}: no class; fill it in, or drop the line")
    if numeric and all(float(cell).is_integer() for cell in cells):
        cells = [str(int(float(cell))) for cell in cells]
    classes = sorted(set(cells), key=float) if numeric else sorted(set(cells))
    index = {text: i for i, text in enumerate(classes)}
    return torch.tensor([index[cell] for cell in cells]), classes


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
