"""Runs in lockstep, as a report shows them: one run for each combination of settings, with its spread over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

Curve = tuple[list[int], list[float]]
Values = Sequence["float | None"]
T = TypeVar("T")

SEPARATOR = "@"
"""Between a metric's name and a replica's number, in a series."""


def apart(series: Mapping[str, Curve]) -> tuple[dict[str, Curve], dict[str, dict[int, Curve]]]:
    """Return the series of the runs as a whole, and by metric those of each replica.

    Examples
    --------
    >>> apart({"error": ([1], [2.0]), "error@0": ([1], [1.0]), "error@1": ([1], [3.0])})[1]
    {'error': {0: ([1], [1.0]), 1: ([1], [3.0])}}
    """
    whole: dict[str, Curve] = {}
    each: dict[str, dict[int, Curve]] = {}
    for name, curve in series.items():
        metric, found, number = name.rpartition(SEPARATOR)
        if found and number.isdecimal():
            each.setdefault(metric, {})[int(number)] = curve
        else:
            whole[name] = curve
    return whole, each


def fit(described: object) -> bool:
    """Whether what a record says of runs in lockstep can be read: nothing, or one entry for each of them."""
    if described is None:
        return True
    if not isinstance(described, dict) or not isinstance(described.get("results", {}), dict):
        return False
    seeds, settings = (described.get(key) or [] for key in ("seeds", "settings"))
    results = described.get("results", {}).values()
    lists = [part for part in (seeds, settings, *results) if part]
    return (
        all(isinstance(part, list) and len(part) == len(lists[0]) for part in lists)
        and all(isinstance(seed, int) for seed in seeds)
        and all(isinstance(own, dict) for own in settings)
        and all(value is None or isinstance(value, (int, float)) for own in results for value in own)
    )


def groups(record: Mapping[str, object], each: Mapping[str, Mapping[int, Curve]]) -> list[tuple[str, list[int]]]:
    """Return the replicas of each combination of settings, under what these are called.

    Examples
    --------
    >>> settings = [{"lr": 0.1}, {"lr": 0.1}, {"lr": 0.2}, {"lr": 0.2}]
    >>> groups({"replicas": {"seeds": [0, 1, 0, 1], "settings": settings}}, {})
    [('lr=0.1', [0, 1]), ('lr=0.2', [2, 3])]
    """
    described = _part(record)
    count = max(
        [
            len(cast("list[object]", described.get("seeds") or [])),
            *(len(values) for values in cast("dict[str, list[object]]", described.get("results", {})).values()),
            *(1 + max(curves) for curves in each.values()),
        ]
    )
    settings = cast("list[dict[str, object]]", described.get("settings") or [{}] * count)
    found: dict[str, list[int]] = {}
    for number, own in enumerate(settings):
        found.setdefault(", ".join(f"{key}={_short(value)}" for key, value in own.items()), []).append(number)
    return list(found.items())


def of_some(record: Mapping[str, object], title: str, numbers: Sequence[int]) -> dict[str, object]:
    """Return the record as it would be of some of its replicas, called ``title`` after its name."""
    described = _part(record)
    results = cast("dict[str, Values]", described.get("results", {}))
    own = {metric: picked(values, numbers) for metric, values in results.items()}
    lists = {key: cast("list[object]", described.get(key)) for key in ("seeds", "settings")}
    part = {key: picked(values, numbers) for key, values in lists.items() if values}
    name = f"{record['name']}, {title}" if title else record["name"]
    means = {metric: mean(values) for metric, values in own.items()}
    whole = cast("dict[str, object]", record["results"])
    return {**record, "name": name, "results": {**whole, **means}, "replicas": {**part, "results": own}}


def picked(values: Sequence[T], numbers: Sequence[int]) -> list[T]:
    """Return the values at these places."""
    return [values[number] for number in numbers]


def mean(values: Values) -> float | None:
    """Return the mean, or None where a value is missing or not finite."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean of curves, where all of them have a value."""
    positions, columns = _together(curves)
    return positions, [sum(column) / len(column) for column in columns]


def band(curves: Sequence[Curve]) -> tuple[list[int], list[float], list[float]]:
    """Return positions, and the ends of the 95 % confidence interval of the mean there, where it is finite.

    Examples
    --------
    >>> band([([1, 2], [1.0, 5.0]), ([1, 2], [3.0, 5.0])])
    ([1, 2], [-10.706..., 5.0], [14.706..., 5.0])
    """
    positions, columns = _together(curves)
    places, low, high = [], [], []
    for position, column in zip(positions, columns):
        middle = sum(column) / len(column)
        half = half_interval(column)
        if math.isfinite(middle) and math.isfinite(half):
            places.append(position)
            low.append(middle - half)
            high.append(middle + half)
    return places, low, high


def half_interval(values: Sequence[float]) -> float:
    """Return half of the 95 % confidence interval of the mean of independent values, by Student's t; NaN of one.

    Examples
    --------
    >>> round(half_interval([1.0, 2.0, 3.0]), 4)
    2.4841
    """
    import numpy as np
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    n = len(values)
    if n < 2:
        return math.nan
    with np.errstate(invalid="ignore"):
        return float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n))


def seed_text(seeds: Sequence[int]) -> str:
    """Return seeds in few words.

    Examples
    --------
    >>> seed_text([0, 1, 2, 3, 7]), seed_text([5])
    ('0-3, 7', '5')
    """
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return ", ".join(parts) if len(parts) <= 3 else f"{len(seeds)} seeds"


def _together(curves: Sequence[Curve]) -> tuple[list[int], list[list[float]]]:
    """Return the positions that all curves have, and each one's values there."""
    tables = [dict(zip(*curve)) for curve in curves]
    positions = [p for p in curves[0][0] if all(p in table for table in tables)]
    return positions, [[table[p] for table in tables] for p in positions]


def _part(record: Mapping[str, object]) -> Mapping[str, object]:
    return cast("Mapping[str, object]", record.get("replicas") or {})


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:23]}…"
