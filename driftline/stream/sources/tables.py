"""CSV and Parquet files, read in parts."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from driftline.errors import ConfigError, SourceError
from driftline.stream.sources.base import Bad, Decode, RecordSource


class CSVSource(RecordSource):
    r"""Rows of a CSV file with a header, as dictionaries of text; never more than one in memory.

    Parameters
    ----------
    path : path
        The file.
    decode, bad
        See :class:`RecordSource`, such as :class:`Columns`.
    delimiter : str
        Between values.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from driftline.stream.sources import Columns
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "readings.csv"
    >>> _ = file.write_text("a,b,kind\n1,2,on\n3,4,off\n")
    >>> [sample.y for sample in CSVSource(file, Columns(["a", "b"], "kind", ["off", "on"]))]
    [1, 0]
    """

    def __init__(self, path: str | Path, decode: Decode, bad: Bad = "raise", delimiter: str = ",") -> None:
        super().__init__(decode, bad)
        if len(delimiter) != 1:
            raise ConfigError(f"delimiter={delimiter!r}: must be one character")
        self.path, self.delimiter = Path(path), delimiter
        self._rows = 0

    def columns(self) -> list[str]:
        """Return the names in the header.

        Raises
        ------
        SourceError
            When the file cannot be read or is empty.
        """
        with self._open() as reader:
            if not reader.fieldnames:
                raise SourceError(f"{self.path} has no header")
            return list(reader.fieldnames)

    def _records(self) -> Iterator[tuple[str, dict[str, str]]]:
        with self._open() as reader:
            for row in itertools.islice(reader, self._rows, None):
                self._rows += 1
                yield f"{self.path}, row {self._rows}", row

    @contextmanager
    def _open(self) -> Iterator[csv.DictReader[str]]:
        try:
            with self.path.open(newline="") as file:
                yield csv.DictReader(file, delimiter=self.delimiter, strict=True)
        except (OSError, csv.Error, UnicodeDecodeError) as error:
            raise SourceError(f"cannot read {self.path} behind row {self._rows}: {error}") from error

    def _place(self) -> object:
        return self._rows

    def _go_to(self, place: int) -> None:
        self._rows = place


class ParquetSource(RecordSource):
    """Rows of a Parquet file as dictionaries, a part of a row group in memory at a time (needs the 'parquet' extra).

    Parameters
    ----------
    path : path
        The file.
    decode, bad
        See :class:`RecordSource`, such as :class:`Columns`.
    rows : int
        Rows that are read at once.
    """

    def __init__(self, path: str | Path, decode: Decode, bad: Bad = "raise", rows: int = 4096) -> None:
        super().__init__(decode, bad)
        if rows < 1:
            raise ConfigError(f"rows={rows}: must be at least 1")
        self.path, self.rows = Path(path), rows
        self._row = 0

    def columns(self) -> list[str]:
        """Return the names of the columns.

        Raises
        ------
        SourceError
            When the file cannot be read.
        """
        with self._open() as file:
            return list(file.schema_arrow.names)

    def _records(self) -> Iterator[tuple[str, dict[str, object]]]:
        with self._open() as file:
            first = 0
            groups: list[int] = []
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if groups or first + count > self._row:
                    groups.append(group)
                else:
                    first += count
            parts = file.iter_batches(self.rows, row_groups=groups) if groups else ()
            rows = (row for part in parts for row in part.to_pylist())
            for row in itertools.islice(rows, self._row - first, None):
                self._row += 1
                yield f"{self.path}, row {self._row}", row

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise ConfigError("Parquet files need pyarrow; pip install 'driftline[parquet]'") from None
        try:
            with parquet.ParquetFile(self.path) as file:
                yield file
        except (OSError, ArrowException) as error:
            raise SourceError(f"cannot read {self.path} behind row {self._row}: {error}") from error

    def _place(self) -> object:
        return self._row

    def _go_to(self, place: int) -> None:
        self._row = place
