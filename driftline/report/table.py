"""The results of several runs as a table: one row for each, and one for the mean over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from driftline.errors import ConfigError
from driftline.report.replicas import half_interval
from driftline.report.runs import Run, by_settings, labels, printable

if TYPE_CHECKING:
    from rich.table import Table

TITLES: Mapping[str, str] = {
    "online_accuracy": "online",
    "near_future_accuracy": "near future",
    "near_future_shift": "S",
    "blind_accuracy": "blind",
    "held_out_accuracy": "held out",
    "a_auc": "A_AUC",
    "a_avg": "A_avg",
    "a_last": "A_last",
    "f_last": "F_last",
    "forgetting": "forgetting",
    "backward_transfer": "backward transfer",
    "forward_transfer": "forward transfer",
    "average_accuracy": "average accuracy",
    "online_squared_error": "squared error",
    "online_absolute_error": "absolute error",
}
"""Heading of each known metric, in the order of the table."""

ERRORS = ("online_squared_error", "online_absolute_error")
"""Metrics in the targets' unit, or in its square; lower is better."""
SHARES = (*("dormant_units", "dead_units", "rarely_active_units", "active_units"), "sample_plasticity")
"""Metrics that are shares, beside those whose names say so."""

TIMES: Mapping[str, tuple[str, str]] = {"wall_seconds": ("wall s", ",.1f"), "samples_per_second": ("samples/s", ",.0f")}

CAPTION = "Accuracy, forgetting, transfer and other shares in %; -: not measured or undefined."
LOWER = "Errors in the targets' unit, or in its square: lower is better."
TOGETHER = "Times of runs in lockstep are those of all of them together; samples/s counts the stream once."
INTERVAL = (
    "±: half of the 95 % confidence interval of the mean over seeds (Student t); - where a value is missing for a seed."
)


@dataclass(frozen=True)
class Row:
    """A run, or several in lockstep, or the mean over several (``run`` is None); one text per column."""

    run: Run | None
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """A table of results, not yet in any markup.

    Attributes
    ----------
    titles : tuple of str
        Headings of the columns.
    metrics : tuple of str
        The metric, timing or empty name behind each column; columns without one are text.
    rows : tuple of Row
    notes : tuple of str
        What a reader must know about the rows.
    """

    titles: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def summarize(runs: Sequence[Run]) -> Summary:
    """Put the results of runs side by side.

    Runs of one learner on one scenario that differ in nothing but seeds stand together, followed by their mean
    when at least two of them are finished. Runs in lockstep have one row for each combination of settings: the mean
    over their seeds.

    Raises
    ------
    ConfigError
        When there are no runs.
    """
    if not runs:
        raise ConfigError("no runs to report on; give at least one run's folder")
    runs = by_settings(runs)
    names = dict(zip(runs, labels(runs)))
    scenarios = dict(zip(runs, _scenarios(runs)))
    metrics = [*_metrics(runs), *(t for t in TIMES if any(run.time(t) is not None for run in runs))]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_apart_from_seeds(run), []).append(run)

    rows: list[Row] = []
    for group in groups.values():
        for run in group:
            values = [_shown(metric, _values(run, metric)) for metric in metrics]
            rows.append(Row(run, (_named(run, names[run]), scenarios[run], run.seed, f"{run.samples:,}", *values)))
        # The same seeds twice are one draw: counting it twice would narrow the interval.
        draws = list({_all_seeds(run): run for run in reversed(group) if run.status == "finished"}.values())
        if len(draws) > 1:
            means = [_shown(metric, [v for run in draws for v in _values(run, metric)]) for metric in metrics]
            seeds = sum(len(run.seeds) or 1 for run in draws)
            head = (f"{group[0].name}, mean", scenarios[group[0]], f"{seeds} seeds", f"{draws[0].samples:,}")
            rows.append(Row(None, (*head, *means)))
    notes = [
        CAPTION,
        *([LOWER] if any(metric in ERRORS for metric in metrics) else []),
        *([INTERVAL] if any("±" in cell for row in rows for cell in row.cells[4:]) else []),
        *([TOGETHER] if any(run.seeds for run in runs) and any(t in metrics for t in TIMES) else []),
        *_warnings(runs, names),
    ]
    titles = ("run", "scenario", "seed", "samples", *map(title, metrics))
    return Summary(titles, ("", "", "", "", *metrics), tuple(rows), tuple(notes))


def summary_table(runs: Sequence[Run]) -> Table:
    """Return the results of runs as a table for the terminal.

    Parameters
    ----------
    runs : sequence of Run
        In the order of the rows; runs that differ in nothing but seeds are put together, followed by their mean
        with a 95 % confidence interval (Student t). Runs in lockstep are shown by that alone.

    Returns
    -------
    rich.table.Table
        ``rich.print`` shows it; where the terminal is too narrow, in several blocks of columns.

    Raises
    ------
    ConfigError
        When there are no runs.
    """
    from driftline.report.terminal import ResultTable

    return ResultTable(summarize(runs))


def definitions(runs: Sequence[Run]) -> Table:
    """Return the definitions of the metrics in :func:`summary_table`, to be printed under it.

    Returns
    -------
    rich.table.Table
        One line for each metric: heading, definition.
    """
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for metric in _metrics(runs):
        grid.add_row(Text(title(metric)), Text(definition(metric, runs)))
    return grid


def title(metric: str) -> str:
    """Return the heading of a metric."""
    return TITLES.get(metric) or (TIMES[metric][0] if metric in TIMES else printable(metric))


def definition(metric: str, runs: Iterable[Run]) -> str:
    """Return what the runs' records say of a metric; all of it where they disagree."""
    found: list[str] = []
    for run in runs:
        known = run.definitions
        # In a recorded name * stands for any text.
        fitting = [text for name, text in known.items() if "*" in name and _fits(metric, name)]
        text = known.get(metric) or next(iter(fitting), "")
        if not text and "/" in metric and metric.split("/")[0] in known:
            text = f"{known[metric.split('/')[0]]}; here of one segment's samples alone"
        if text and printable(text) not in found:
            found.append(printable(text))
    return "; in other runs: ".join(found) or "no definition recorded"


def is_share(metric: str) -> bool:
    """Whether a metric is a share, or a difference of shares, shown in percent."""
    known = metric in TITLES and metric not in ("near_future_shift", *ERRORS)
    return known or "accuracy" in metric or metric.removesuffix("_mean") in SHARES


def _fits(metric: str, pattern: str) -> bool:
    before, _, after = pattern.partition("*")
    return metric.startswith(before) and metric.endswith(after) and len(metric) >= len(pattern) - 1


def _metrics(runs: Iterable[Run]) -> list[str]:
    """The metrics of the table: known ones first, without windows and parts."""
    measured = {
        name: None
        for run in runs
        for name in run.results
        if not name.endswith("_window") and "/" not in name and not (name == "held_out_accuracy" and _ended(run))
    }
    return [*(name for name in TITLES if name in measured), *(name for name in measured if name not in TITLES)]


def _ended(run: Run) -> bool:
    """Whether a segment has ended, so that A_last says what the latest held-out accuracy would."""
    return run.results.get("a_last") is not None


def _values(run: Run, metric: str) -> list[float | None]:
    """Return the value of a run, or of each of those in lockstep."""
    return [run.time(metric)] if metric in TIMES else run.values(metric)


def _shown(metric: str, values: Sequence[float | None]) -> str:
    """Write one value, or the mean of several with its interval."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    if metric == "near_future_shift":
        low, high = min(known), max(known)
        return f"{low:.0f}" if low == high else f"{low:.0f}-{high:.0f}"
    scale, form = (100.0, ".1f") if is_share(metric) else (1.0, TIMES[metric][1] if metric in TIMES else ".4g")
    mean = scale * statistics.fmean(known)
    if len(known) == 1:
        return f"{mean:{form}}"
    return f"{mean:{form}} ± {scale * half_interval(known):{form}}"


def _scenarios(runs: Sequence[Run]) -> list[str]:
    """Name each run's scenario, its data, and those of its parameters that differ among the runs."""
    parameters = [cast("dict[str, object]", run.scenario.get("parameters", {})) for run in runs]
    names = []
    for run, mine in zip(runs, parameters):
        here, others = run.scenario.get("scenario"), []
        for key, value in mine.items():
            alike = [p.get(key) for r, p in zip(runs, parameters) if r.scenario.get("scenario") == here]
            if any(value != other for other in alike) and len(str(value)) <= 24:
                others.append(f"{key}={value}")
        data = cast("list[dict[str, object]]", run.scenario.get("data", []))
        on = " + ".join(dict.fromkeys(str(d.get("name", "data")) for d in data))
        names.append(printable(" ".join(filter(None, [f"{here}", on and f"on {on}", ", ".join(others)]))))
    return names


def _apart_from_seeds(run: Run) -> str:
    """Everything about a run but seeds, what the seed made of the stream, where it ran and how often it recorded."""
    scenario = {k: v for k, v in run.scenario.items() if k not in ("segments", "domains")}
    protocol = [run.protocol.get("batch_size"), run.protocol.get("metrics")]
    return json.dumps([run.name, _split_seeds(run.learner)[0], _split_seeds(scenario)[0], protocol], sort_keys=True)


def _all_seeds(run: Run) -> str:
    own = run.seeds or run.seed
    return json.dumps([own, _split_seeds(run.learner)[1], _split_seeds(run.scenario)[1]])


def _split_seeds(part: object) -> tuple[object, list[object]]:
    """Return a description without the entries called seed, and these."""
    if isinstance(part, dict):
        inner = {k: _split_seeds(v) for k, v in part.items() if k != "seed"}
        own = [part["seed"]] if "seed" in part else []
        return {k: v for k, (v, _) in inner.items()}, own + [s for _, seeds in inner.values() for s in seeds]
    return part, []


def _named(run: Run, label: str) -> str:
    learner = printable(str(run.learner.get("name", run.name)))
    # The seed has its own column.
    name = run.name if label == f"{run.name}, seed {run.seed}" else label
    of = "" if f"{run.name}, ".startswith(f"{learner}, ") else f" ({learner})"
    return f"{name}{of}" if run.status == "finished" else f"{name}{of}, {run.status}"


def _warnings(runs: Iterable[Run], names: Mapping[Run, str]) -> list[str]:
    """Say which runs have not ended well."""
    notes = []
    for run in runs:
        if run.status != "finished":
            error = run.record.get("error")
            why = f": {error}" if error else ""
            notes.append(f"{names[run]}: {run.status} at {run.position:,} of {run.samples:,} samples{why}")
        warned = run.record.get("warnings")
        notes += [f"{names[run]}: {text}" for text in warned] if isinstance(warned, list) else []
    return [printable(note) for note in notes]
