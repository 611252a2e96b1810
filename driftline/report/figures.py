"""The curves of several runs as plotly figures: plain dictionaries, drawn by the page that holds them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from driftline.report.runs import Run, Span, by_settings, labels, printable
from driftline.report.table import ERRORS, is_share, title
from driftline.report.traces import CUMULATIVE, NEUTRAL, area_around, colours, dashed, escaped, line, short

NAMED_SEGMENTS = 30
PANELS = 24
WIDTH = 820
"""Pixels of plot that labels are laid out for."""


@dataclass(frozen=True)
class Figure:
    """One figure: what it is called, what must be said of it, which metrics it shows, and plotly's description."""

    title: str
    notes: tuple[str, ...]
    metrics: tuple[str, ...]
    data: list[dict[str, object]]
    layout: dict[str, object]


def figures(runs: Sequence[Run]) -> list[Figure]:
    """Return a figure for each family of metrics that at least one run has recorded."""
    runs = by_settings(runs)
    measured = {name: None for run in runs for name in run.series}
    near = [*_with_window("near_future_accuracy"), "blind_accuracy"]
    if "near_future_accuracy" not in measured:
        near.remove("blind_accuracy")
    online = [*_with_window("online_accuracy"), *(["blind_accuracy"] if "blind_accuracy" not in near else [])]
    families = {
        "Online accuracy": online,
        "Online squared error": _with_window("online_squared_error"),
        "Online absolute error": _with_window("online_absolute_error"),
        "Near-future accuracy": near,
        "Held-out accuracy": ["held_out_accuracy"],
        "Held-out accuracy by segment": [name for name in measured if name.startswith("held_out_accuracy/")],
    }
    placed = {"near_future_shift", *chain(*families.values())}
    for name in measured:
        if name not in placed:
            families.setdefault(title(_family(name)), []).append(name)
    drawn = []
    for heading, names in families.items():
        shown = [name for name in names if name in measured]
        if shown:
            panels = heading == "Held-out accuracy by segment"
            drawn.append(_panels(heading, shown, runs) if panels else _curves(heading, shown, runs))
    return drawn


def _with_window(name: str) -> list[str]:
    return [f"{name}_window", name]


def _family(name: str) -> str:
    return name.split("/")[0].removesuffix("_window")


def _curves(heading: str, names: list[str], runs: Sequence[Run]) -> Figure:
    """One pair of axes: a curve for each run and metric, the first metric solid."""
    traces = []
    baselines = _baselines(runs) if "blind_accuracy" in names else []
    for run, label, colour in zip(runs, labels(runs), colours(len(runs))):
        mine = [name for name in names if name in run.series and name != "blind_accuracy"]
        for i, name in enumerate(mine):
            trace = line(run, name, label, colour, show=i == 0)
            trace["line"] = {"color": colour, "dash": "dot" if i else "solid", "width": 1.5 if i else 2}
            trace["mode"] = "lines+markers" if heading == "Held-out accuracy" else "lines"
            traces += [trace, *(area_around(run, name, label, colour) if i == 0 else [])]
        if len(baselines) > 1 and [run] in baselines:
            traces.append(dashed(line(run, "blind_accuracy", label, colour, show=not mine), colour))
    for owners in baselines:
        if len(owners) > 1 or len(baselines) == 1:
            of = f" of {labels(runs)[list(runs).index(owners[0])]} and {len(owners) - 1} more"
            label = "blind baseline" + (of if len(baselines) > 1 else "")
            traces.append(dashed(line(owners[0], "blind_accuracy", label, NEUTRAL, show=True), NEUTRAL))
    marks, (top, right), notes = _marks(runs)
    bottom = 62 + 22 * _legend_rows(traces)
    layout: dict[str, object] = {
        "height": 330 + top + bottom,
        "margin": {"l": 58, "r": right, "t": top, "b": bottom},
        "xaxis": {
            "title": {"text": "samples played"},
            "tickformat": ",d",
            "range": _positions(runs),
            "showgrid": False,
        },
        "yaxis": _value_axis(names),
        "legend": {"orientation": "h", "x": 0, "y": -56 / 330, "yanchor": "top"},
        **marks,
    }
    notes = [*_strokes_note(names, runs, baselines), *_band_note(traces), *notes]
    return Figure(heading, tuple(notes), tuple(names), traces, layout)


def _panels(heading: str, names: list[str], runs: Sequence[Run]) -> Figure:
    """A small pair of axes for each segment, the stretch in which it is played shaded."""
    names = sorted(names, key=lambda name: (len(name), name))
    differ = any(run.segments != runs[0].segments for run in runs)
    notes = [f"Shaded: while the segment itself is played{' (first run that has it)' if differ else ''}."]
    if len(names) > PANELS:
        notes.append(f"{PANELS} of {len(names)} segments, evenly spread; all of them are in series.csv.")
        names = [names[round(i * (len(names) - 1) / (PANELS - 1))] for i in range(PANELS)]
    rows = math.ceil(len(names) / 4)
    columns = math.ceil(len(names) / rows)
    traces: list[dict[str, object]] = []
    titles, shades, axes = [], [], {}
    for i, name in enumerate(names):
        number = str(i + 1) if i else ""
        for run, label, colour in zip(runs, labels(runs), colours(len(runs))):
            if name in run.series:
                shown = all(trace["legendgroup"] != label for trace in traces)
                trace = line(run, name, label, colour, show=shown)
                place: dict[str, object] = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
                look = {"mode": "lines+markers", "line": {"color": colour, "width": 1.5}, "marker": {"size": 5}}
                traces.append({**trace, **place, **look})
                traces += [{**area, **place} for area in area_around(run, name, label, colour)]
        segment, span = _segment_of(name, runs)
        titles.append(_title(segment, f"x{number} domain", f"y{number} domain"))
        if span:
            shades.append(_shade(span, f"x{number}", f"y{number} domain"))
        axes[f"xaxis{number}"] = {"matches": "x", "nticks": 4, "tickformat": "~s", "range": _positions(runs)}
        axes[f"yaxis{number}"] = {**_value_axis(names), "matches": "y", "nticks": 4}
    bottom = 40 + 22 * _legend_rows(traces)
    layout: dict[str, object] = {
        "height": 48 + 185 * rows + bottom,
        "margin": {"l": 50, "r": 16, "t": 48, "b": bottom},
        "grid": {"rows": rows, "columns": columns, "pattern": "independent", "xgap": 0.16, "ygap": 0.34},
        "annotations": titles,
        "shapes": shades,
        "legend": {"orientation": "h", "x": 0, "y": -36 / (185 * rows), "yanchor": "top"},
        **axes,
    }
    return Figure(heading, (*notes, *_band_note(traces)), tuple(names), traces, layout)


def _band_note(traces: Iterable[dict[str, object]]) -> list[str]:
    if not any(trace.get("fill") for trace in traces):
        return []
    return ["Line: mean over seeds; area: 95 % confidence interval of the mean (Student t)."]


def _baselines(runs: Sequence[Run]) -> list[list[Run]]:
    """Put runs together that have the same blind baseline: it depends on the stream alone."""
    shared: dict[str, list[Run]] = {}
    for run in runs:
        if "blind_accuracy" in run.series:
            # As text, in which NaN equals NaN.
            shared.setdefault(repr(run.series["blind_accuracy"]), []).append(run)
    return list(shared.values())


def _strokes_note(names: Sequence[str], runs: Sequence[Run], baselines: Sequence[Sequence[Run]]) -> list[str]:
    """Say what the strokes mean."""
    notes = []
    if names[0].endswith("_window"):
        windows = _settings("window", names[0].removesuffix("_window"), runs)
        notes.append(f"Solid: over the most recent {windows or 'samples'}.")
        notes += ["Dotted: since the start."] if len(names) > 1 and names[1] in CUMULATIVE else []
    if names[-1] in ERRORS:
        notes.append("Lower is better.")
    if baselines:
        whose = ", in the colour of its run or, where runs share it, grey" if len(baselines) > 1 else ""
        notes.append(f"Dashed: the blind baseline, which never sees an input{whose}.")
    shifts = {v for r in runs if (v := r.results.get("near_future_shift")) is not None}
    if "near_future_accuracy" in names and shifts:
        notes.append(f"Judged S = {', '.join(f'{shift:,.0f}' for shift in sorted(shifts))} samples ahead.")
    return notes


def _settings(key: str, family: str, runs: Iterable[Run]) -> str:
    """Return the settings of a metric as recorded in the protocols, such as ``"1,000 samples"``."""
    kind = "OnlineError" if family in ERRORS else family.title().replace("_", "")
    found = set()
    for run in runs:
        described = run.protocol.get("metrics")
        for metric in described if isinstance(described, list) else []:
            named = isinstance(metric, dict) and str(metric.get("name")) == kind
            if named and isinstance(metric.get(key), int):
                found.add(metric[key])
    return f"{' or '.join(f'{value:,}' for value in sorted(found))} samples" if found else ""


def _positions(runs: Iterable[Run]) -> list[float]:
    return [0, 1.01 * max(run.position for run in runs)]


def _marks(runs: Sequence[Run]) -> tuple[dict[str, object], tuple[int, int], list[str]]:
    """Return segment boundaries and names as layout, the margins they need (top, right), and what to say of them."""
    first = next((run for run in runs if len(run.segments) > 1), None)
    if first is None:
        return {}, (30, 20), []
    segments = first.segments
    # One path for all lines: thousands of shapes would make the page slow.
    path = "".join(f"M{start},0V1" for _, start, _ in segments[1:])
    line = {"type": "path", "path": path, "xref": "x", "yref": "paper", "layer": "below"}
    notes = []
    if any(run.segments != segments for run in runs):
        label = labels(runs)[list(runs).index(first)]
        notes.append(f"Vertical lines: the segments of {label}; those of other runs differ.")
    if len(segments) > NAMED_SEGMENTS:
        notes.append(f"{len(segments):,} segments; hover for their names.")
        return {"shapes": [{**line, "opacity": 0.4, "line": {"width": 1}}]}, (30, 20), notes
    names = [short(name, 20) for name, _, _ in segments]
    pixel = WIDTH / max(1, _positions(runs)[1])
    flat = all(7 * len(name) < pixel * (stop - start) for name, (_, start, stop) in zip(names, segments))
    texts = []
    for name, (_, start, stop) in zip(names, segments):
        at = (
            {"x": (start + stop) / 2, "xanchor": "center"}
            if flat
            else {"x": start, "xanchor": "left", "textangle": -35}
        )
        place = {"xref": "x", "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
        texts.append({"text": escaped(name), **at, **place, "font": {"size": 11}})
    longest = 6.5 * max(map(len, names))
    top = 48 if flat else 40 + round(0.6 * longest)
    right = 20 if flat else max(20, round(0.85 * 6.5 * len(names[-1]) - pixel * (segments[-1][2] - segments[-1][1])))
    return {"shapes": [{**line, "line": {"width": 1}}], "annotations": texts}, (top, right), notes


def _segment_of(metric: str, runs: Sequence[Run]) -> tuple[str, Span | None]:
    """Return the name and place of the segment that ``held_out_accuracy/3`` is about."""
    number = metric.split("/", 1)[1]
    for run in runs:
        if metric in run.series and number.isdecimal() and int(number) < len(run.segments):
            span = run.segments[int(number)]
            return span[0], span
    return printable(number), None


def _title(text: str, xref: str, yref: str) -> dict[str, object]:
    place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "showarrow": False}
    return {"text": escaped(short(text, 32)), "xref": xref, "yref": yref, **place, "font": {"size": 12}}


def _shade(span: Span, xref: str, yref: str) -> dict[str, object]:
    ends = {"x0": span[1], "x1": span[2], "y0": 0, "y1": 1}
    return {"type": "rect", "xref": xref, "yref": yref, **ends, "layer": "below", "line": {"width": 0}}


def _value_axis(names: Sequence[str]) -> dict[str, object]:
    if all(is_share(name) for name in names):
        return {"tickformat": ".0%", "range": [-0.02, 1.02]}
    return {"rangemode": "tozero" if names[-1] in ERRORS else "normal"}


def _legend_rows(traces: Iterable[dict[str, object]]) -> int:
    widths = [60 + 7 * len(str(trace["name"])) for trace in traces if trace["showlegend"]]
    return max(1, math.ceil(sum(widths) / WIDTH))
