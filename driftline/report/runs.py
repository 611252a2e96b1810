"""Recorded runs, read back and checked, so that what shows them need not check again."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from driftline.errors import RecordError
from driftline.report import replicas
from driftline.report.replicas import Curve
from driftline.stream.record import FORMAT, HEADER, RunDirectory, parse_series

if TYPE_CHECKING:
    from driftline.stream.run import Report

Span = tuple[str, int, int]
"""Name of a segment, its first position and the one after its last."""

PARTS: Mapping[str, type] = {
    "name": str,
    "status": str,
    "scenario": dict,
    "learner": dict,
    "protocol": dict,
    "results": dict,
    "definitions": dict,
}


@dataclass(frozen=True, eq=False)
class Run:
    """One run, as it was recorded.

    Attributes
    ----------
    path : Path
        Its folder.
    record : dict
        ``record.json``: what was run, and the results.
    series : dict of str to (positions, values)
        ``series.csv``: for each metric, the numbers of samples played and the values then (NaN: undefined).
    timing : dict
        ``timing.json``; empty when the run was killed before its first checkpoint.
    each : dict of str to dict of int to (positions, values)
        Of runs in lockstep: for each metric, the series of each replica. ``series`` then holds means.

    Examples
    --------
    >>> Run.load("no/such/run")
    Traceback (most recent call last):
    ...
    driftline.errors.RecordError: no run in no/such/run: there is no such folder
    """

    path: Path
    record: dict[str, object]
    series: dict[str, Curve]
    timing: dict[str, object]
    each: dict[str, dict[int, Curve]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read a run's folder.

        Raises
        ------
        RecordError
            When it holds no run, or a file in it is damaged or of another format.
        """
        path = Path(path)
        _check_place(path)
        folder = RunDirectory(path)
        record = folder.read_record()
        _check_record(record, path / "record.json")
        timing = folder.read_timing()
        if not isinstance(timing, dict):
            raise RecordError(f"{path / 'timing.json'} is damaged: expected an object, found {timing!r:.40}")
        series, each = replicas.apart(_read_series(path / "series.csv", record["status"] == "running"))
        return cls(path, record, series, timing, each)

    @classmethod
    def of(cls, report: Report) -> Run:
        """Return what :func:`driftline.run` gave, as if it had been read from disk."""
        series: dict[str, Curve] = {}
        for position, name, value in report.series:
            positions, values = series.setdefault(name, ([], []))
            positions.append(position)
            values.append(value)
        whole, each = replicas.apart(series)
        return cls(report.path or Path(), report.record, whole, report.timing, each)

    @property
    def name(self) -> str:
        """Label of the run."""
        return printable(str(self.record["name"]))

    @property
    def status(self) -> str:
        """``"finished"``, ``"stopped"``, ``"failed"``, or ``"running"`` (also when it was killed)."""
        return printable(str(self.record["status"]))

    @property
    def scenario(self) -> dict[str, object]:
        """The stream's description."""
        return cast(dict[str, object], self.record["scenario"])

    @property
    def learner(self) -> dict[str, object]:
        """The learner's description."""
        return cast(dict[str, object], self.record["learner"])

    @property
    def protocol(self) -> dict[str, object]:
        """How it was played and measured."""
        return cast(dict[str, object], self.record["protocol"])

    @cached_property
    def parts(self) -> list[Run]:
        """The run itself; of runs in lockstep with several settings, one for each combination of these."""
        groups = replicas.groups(self.record, self.each)
        if len(groups) < 2:
            return [self]
        return [self._of_some(title, numbers) for title, numbers in groups]

    def _of_some(self, title: str, numbers: list[int]) -> Run:
        """Return some of the replicas as a run of their own."""
        each: dict[str, dict[int, Curve]] = {}
        for metric, curves in self.each.items():
            if all(number in curves for number in numbers):
                each[metric] = {i: curves[number] for i, number in enumerate(numbers)}
        means = {metric: replicas.mean_curve(list(curves.values())) for metric, curves in each.items()}
        return Run(self.path, replicas.of_some(self.record, title, numbers), {**means}, self.timing, each)

    def values(self, metric: str) -> list[float | None]:
        """Return the final value of a metric; of runs in lockstep, that of each replica."""
        return list(self._of_replicas.get(metric) or [self.results.get(metric)])

    @cached_property
    def _of_replicas(self) -> dict[str, list[float | None]]:
        if self.status != "running":
            described = cast("dict[str, dict[str, list[float | None]]]", self.record.get("replicas") or {})
            return described.get("results", {})
        return {
            metric: [values[-1] if math.isfinite(values[-1]) else None for _, values in curves.values()]
            for metric, curves in self.each.items()
        }

    @property
    def seeds(self) -> list[int]:
        """Seeds of runs in lockstep, one for each; empty for a single run."""
        return cast("list[int]", cast("dict[str, object]", self.record.get("replicas") or {}).get("seeds") or [])

    @property
    def seed(self) -> str:
        """The stream's seed, and the run's own behind a slash where that is neither 0 nor the same.

        Of runs in lockstep: their seeds.
        """
        if self.seeds:
            return replicas.seed_text(self.seeds)
        stream, own = self.scenario.get("seed", "-"), self.protocol.get("seed")
        return printable(f"{stream}" if own in (None, 0, stream) else f"{stream}/{own}")

    @cached_property
    def position(self) -> int:
        """Samples played, as far as recorded."""
        recorded = cast(int, self.record.get("position", 0))
        return max([recorded, *(positions[-1] for positions, _ in self.series.values())])

    @property
    def samples(self) -> int:
        """Length of the stream; of a live one, what was played of it."""
        return cast(int, self.scenario.get("samples", self.position))

    @cached_property
    def results(self) -> dict[str, float | None]:
        """Final value of each metric (None: undefined); of a run that has not ended, the latest ones."""
        if self.status != "running":
            return cast(dict[str, "float | None"], self.record["results"])
        latest = {name: values[-1] for name, (_, values) in self.series.items()}
        return {name: value if math.isfinite(value) else None for name, value in latest.items()}

    @property
    def definitions(self) -> dict[str, str]:
        """Definition of each metric, as recorded."""
        return cast(dict[str, str], self.record["definitions"])

    @cached_property
    def segments(self) -> list[Span]:
        """The stream's segments in order; none of a live one."""
        listed = cast(list[dict[str, object]], self.scenario.get("segments", []))
        return [(printable(str(s["name"])), cast(int, s["start"]), cast(int, s["stop"])) for s in listed]

    @cached_property
    def _starts(self) -> list[int]:
        return [start for _, start, _ in self.segments]

    def segment_at(self, position: int) -> str:
        """Return the name of the segment that the ``position``-th sample played is in, or nothing."""
        index = bisect.bisect_left(self._starts, position) - 1
        return self.segments[max(index, 0)][0] if self.segments else ""

    def time(self, name: str) -> float | None:
        """Return an entry of the timing."""
        value = self.timing.get(name)
        return float(value) if isinstance(value, (int, float)) else None


def by_settings(runs: Sequence[Run]) -> list[Run]:
    """Return the runs, one for each combination of settings where several ran in lockstep."""
    return [part for run in runs for part in run.parts]


def labels(runs: Sequence[Run]) -> list[str]:
    """Return a label for each run that no other run has: its name, with seed, folder or number where needed."""
    names = [run.name for run in runs]
    seeds = [f"seed {run.seed}" for run in runs]
    paths = [printable(str(run.path)) for run in runs]
    numbers = [f"#{i + 1}" for i in range(len(runs))]
    for additions in (seeds, paths, numbers):
        often = {name for name, count in Counter(names).items() if count > 1}
        names = [f"{name}, {more}" if name in often else name for name, more in zip(names, additions)]
    return names


def printable(text: str) -> str:
    """Return one line of text without control characters, which would act on a terminal."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _check_place(path: Path) -> None:
    if not path.exists():
        raise RecordError(f"no run in {path}: there is no such folder")
    if not path.is_dir():
        raise RecordError(f"{path} is a file; give the folder of a run, which holds record.json and series.csv")
    if not (path / "record.json").is_file():
        inside = sorted(str(file.parent) for file in path.glob("*/record.json"))
        more = f"; its subfolders hold runs: {', '.join(inside[:5])}{', ...' if len(inside) > 5 else ''}"
        raise RecordError(f"no run in {path}: there is no record.json{more if inside else ''}")


def _check_record(record: object, path: Path) -> None:
    """Raise unless the parts that reports rely on are there, each of its type."""
    if not isinstance(record, dict):
        raise RecordError(f"{path} is no run record: expected an object, found {record!r:.40}")
    if record.get("format") != FORMAT:
        raise RecordError(
            f"{path} has format {record.get('format')!r}, this version of driftline reads {FORMAT}; "
            "use the version that wrote it"
        )
    for part, kind in PARTS.items():
        if not isinstance(record.get(part), kind):
            raise RecordError(
                f"{path} is no run record: {part} is {record.get(part)!r:.40}, expected a {kind.__name__}"
            )
    scenario = record["scenario"]
    fits = (
        isinstance(scenario.get("parameters", {}), dict)
        and _objects(scenario.get("data", []))
        and _objects(scenario.get("segments", []))
        and all("name" in s and _whole(s, "start", "stop") for s in scenario.get("segments", []))
        and _whole({"samples": 0, "position": 0, **scenario, **record}, "samples", "position")
        and all(v is None or isinstance(v, (int, float)) for v in record["results"].values())
        and all(isinstance(text, str) for text in record["definitions"].values())
        and replicas.fit(record.get("replicas"))
    )
    if not fits:
        raise RecordError(
            f"{path} is no run record: in it the scenario's parameters, data, segments or samples, "
            "the position, the results, the definitions or the replicas are malformed"
        )


def _objects(entries: object) -> bool:
    return isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)


def _whole(entries: Mapping[str, object], *keys: str) -> bool:
    return all(isinstance(entries.get(key), int) for key in keys)


def _read_series(path: Path, running: bool) -> dict[str, Curve]:
    """Read a series; that of a run which has not ended may break off anywhere."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is damaged: {error}") from error
    if running:
        text = text[: text.rfind("\n") + 1]
    elif not text.endswith("\n"):
        raise RecordError(
            f"{path} is damaged: it ends in the middle of a line ({text[-40:]!r}), though the run has ended"
        )
    if text and not text.startswith(HEADER.decode()):
        raise RecordError(f"{path}, line 1: expected {HEADER.decode().strip()}, found {text.splitlines()[0]!r:.60}")
    series: dict[str, Curve] = {}
    for position, name, value in parse_series(text, path):
        positions, values = series.setdefault(name, ([], []))
        positions.append(position)
        values.append(value)
    return series
