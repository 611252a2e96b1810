"""JSON lines, from a file or from standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from driftline.errors import SourceError
from driftline.stream.sources.base import Bad, Decode, RecordSource


class JSONLinesSource(RecordSource):
    r"""One JSON value per line.

    Parameters
    ----------
    path : path or binary file
        ``"-"``: standard input.
    decode, bad
        See :class:`RecordSource`; the record is the parsed line.
    replayed : bool
        For standard input: whether a resumed run gets the same lines from the beginning again (``cat file |``), so that
        those read before are passed over. Default: what comes is new.

    Examples
    --------
    >>> import io
    >>> lines = io.BytesIO(b'[0.5, 1.5]\nnonsense\n[2.5, 3.5]\n')
    >>> source = JSONLinesSource(lines, lambda values: values, bad="skip")
    >>> list(source), source.skipped
    ([[0.5, 1.5], [2.5, 3.5]], 1)
    """

    def __init__(self, path: str | Path | BinaryIO, decode: Decode, bad: Bad = "raise", replayed: bool = False) -> None:
        super().__init__(lambda line: decode(json.loads(line)), bad)
        self.path, self.replayed = path, replayed
        self._offset = self._lines = self._skip = 0

    def _records(self) -> Iterator[tuple[str, bytes]]:
        if not isinstance(self.path, (str, Path)):
            yield from self._read("the file", self.path)
        elif self.path == "-":
            yield from self._read("standard input", sys.stdin.buffer)
        else:
            try:
                with Path(self.path).open("rb") as file:
                    file.seek(self._offset)
                    yield from self._read(str(self.path), file)
            except OSError as error:
                raise SourceError(f"cannot read {self.path}: {error.strerror or error}") from error

    def _read(self, name: str, file: BinaryIO) -> Iterator[tuple[str, bytes]]:
        skip, self._skip = self._skip, 0
        for line in file:
            if skip:
                skip -= 1
                continue
            self._offset += len(line)
            self._lines += 1
            if line.strip():
                yield f"{name}, line {self._lines}", line

    def _place(self) -> object:
        return {"offset": self._offset, "lines": self._lines}

    def _go_to(self, place: dict[str, int]) -> None:
        self._offset, self._lines = place["offset"], place["lines"]
        self._skip = self._lines if self.replayed else 0
