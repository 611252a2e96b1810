"""The run record on disk: what was run, and every number measured, in files that a killed run leaves readable."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy
import torch

from driftline.errors import CheckpointError, ConfigError, RecordError
from driftline.stream.checkpoint import cannot_write, write_atomic

if TYPE_CHECKING:
    from driftline.metrics.base import Point

FORMAT = 1
HEADER = b"position,metric,value\n"


class RunDirectory:
    """The files of one run: ``record.json``, ``series.csv``, ``timing.json`` and ``checkpoint``.

    All but ``timing.json`` are the same, byte for byte, whether a run was interrupted and resumed or not.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint"
        self._series: BinaryIO | None = None

    def exists(self) -> bool:
        """Whether a run was recorded here."""
        return (self.path / "record.json").is_file()

    def create(self, record: Mapping[str, object], overwrite: bool) -> None:
        """Begin a new record.

        Raises
        ------
        ConfigError
            When there is a record already, unless ``overwrite``.
        RecordError
            When the folder cannot be written to.
        """
        if self.exists() and not overwrite:
            raise ConfigError(f"{self.path} holds a run already; resume it, choose another folder, or overwrite it")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.checkpoint.unlink(missing_ok=True)
            self._series = (self.path / "series.csv").open("wb")
            self._series.write(HEADER)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self.write_record(record)

    def reopen(self, series_bytes: int) -> list[Point]:
        """Continue the series after its first ``series_bytes`` bytes; return the points in them.

        Raises
        ------
        CheckpointError
            When the series is shorter than it was at the checkpoint.
        """
        path = self.path / "series.csv"
        try:
            self._series = path.open("r+b")
            content = self._series.read(series_bytes)
            if len(content) < series_bytes:
                raise CheckpointError(f"{path} has {len(content)} bytes, but had {series_bytes} at the checkpoint")
            self._series.truncate(series_bytes)
            self._series.seek(series_bytes)
        except OSError as error:
            raise cannot_write(path, error) from error
        return parse_series(content.decode(), path)

    def append(self, points: Iterable[Point]) -> None:
        """Add points to the series.

        Raises
        ------
        RecordError
            When they cannot be written.
        """
        assert self._series is not None
        try:
            self._series.write("".join(f"{p},{name},{value!r}\n" for p, name, value in points).encode())
            self._series.flush()
        except OSError as error:
            raise cannot_write(self.path / "series.csv", error) from error

    def sync(self) -> int:
        """Make the series safe on disk; return its length in bytes."""
        assert self._series is not None
        try:
            self._series.flush()
            os.fsync(self._series.fileno())
        except OSError as error:
            raise cannot_write(self.path / "series.csv", error) from error
        return self._series.tell()

    def write_record(self, record: Mapping[str, object]) -> None:
        """Replace ``record.json``."""
        self._write_json("record.json", record)

    def write_timing(self, timing: Mapping[str, object]) -> None:
        """Replace ``timing.json``."""
        self._write_json("timing.json", timing)

    def _write_json(self, name: str, content: Mapping[str, object]) -> None:
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        write_atomic(self.path / name, text.encode())

    def read_record(self) -> dict[str, object]:
        """Return ``record.json``.

        Raises
        ------
        RecordError
            When there is none, or it is damaged.
        """
        return self._read_json("record.json")

    def read_timing(self) -> dict[str, object]:
        """Return ``timing.json``, empty when there is none yet."""
        return self._read_json("timing.json") if (self.path / "timing.json").exists() else {}

    def _read_json(self, name: str) -> dict[str, object]:
        path = self.path / name
        try:
            return cast(dict[str, object], json.loads(path.read_text()))
        except OSError as error:
            raise RecordError(f"no run in {self.path}: cannot read {path.name} ({error.strerror or error})") from error
        except ValueError as error:
            raise RecordError(f"{path} is damaged: {error}") from error

    def close(self) -> None:
        """Close the series."""
        if self._series is not None:
            self._series.close()
            self._series = None


def parse_series(text: str, path: Path) -> list[Point]:
    """Return the points of a series file.

    Raises
    ------
    RecordError
        When a line is not ``position,metric,value``.
    """
    points = []
    for number, line in enumerate(text.splitlines()[1:], 2):
        try:
            position, name, value = line.split(",")
            points.append((int(position), name, float(value)))
        except ValueError:
            raise RecordError(f"{path}, line {number}: expected position,metric,value, found {line!r}") from None
    return points


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    from driftline import __version__

    return {
        "driftline": __version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return values with None for NaN and infinities, which JSON does not have."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
