"""What is drawn of one curve: plotly's description of it as a line, and of the area around it."""

from __future__ import annotations

import colorsys
import html
import math

from driftline.report.replicas import Curve, band
from driftline.report.runs import Run
from driftline.report.table import ERRORS, is_share

PALETTE = (
    *("#3f7fd6", "#e07b28", "#2f9e73", "#c2529b", "#8468d4"),
    *("#b8941f", "#22a0b6", "#d64f4f", "#7d8f3c", "#9c6d4d"),
)
"""Legible on white and on black, and told apart by most colour-blind readers in this order."""
NEUTRAL = "#8b9099"
POINTS = 2000
"""Points drawn of a curve; of a longer one, the lowest and highest values of short stretches."""
CUMULATIVE = ("online_accuracy", "near_future_accuracy", *ERRORS)


def colours(count: int) -> list[str]:
    """Return a colour for each run."""
    more = (
        colorsys.hls_to_rgb((0.1 + i * 0.618) % 1.0, (0.68, 0.4)[i % 2], 0.7)
        for i in range(max(0, count - len(PALETTE)))
    )
    return [*PALETTE[:count], *("#" + "".join(f"{round(255 * part):02x}" for part in rgb) for rgb in more)]


def line(run: Run, name: str, label: str, colour: str, show: bool) -> dict[str, object]:
    """Return the curve of a run's metric as a line."""
    positions, values = _thin(run.series[name])
    form = ".1%" if is_share(name) else ".4g"
    kind = _kind(name)
    return {
        "type": "scatter",
        "x": positions,
        # Not finite: a gap.
        "y": [value if math.isfinite(value) else None for value in values],
        "customdata": [escaped(run.segment_at(position)) for position in positions],
        "name": escaped(short(label, 48)),
        "legendgroup": label,
        "showlegend": show,
        "marker": {"color": colour, "size": 6},
        "hovertemplate": f"<b>%{{fullData.name}}</b>{kind and ', ' + kind}<br>position %{{x:,d}}<br>"
        f"segment %{{customdata}}<br>%{{y:{form}}}<extra></extra>",
    }


def area_around(run: Run, name: str, label: str, colour: str) -> list[dict[str, object]]:
    """Return the area of the confidence interval of a mean over runs in lockstep, if there is one."""
    curves = run.each.get(name, {})
    if len(curves) < 2:
        return []
    positions, low, high = band(list(curves.values()))
    kept = range(0, len(positions), max(1, math.ceil(len(positions) / (POINTS / 2))))
    there, back = list(kept), list(kept)[::-1]
    return [
        {
            "type": "scatter",
            "x": [positions[i] for i in (*there, *back)],
            "y": [high[i] for i in there] + [low[i] for i in back],
            "name": escaped(short(label, 48)),
            "legendgroup": label,
            "showlegend": False,
            "hoverinfo": "skip",
            "mode": "lines",
            "line": {"color": colour, "width": 0},
            "fill": "toself",
            "fillcolor": f"rgba({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))}, 0.18)",
        }
    ]


def _kind(name: str) -> str:
    if name == "blind_accuracy":
        return "blind baseline"
    return "recent" if name.endswith("_window") else "since the start" if name in CUMULATIVE else ""


def dashed(trace: dict[str, object], colour: str) -> dict[str, object]:
    """Return a line as that of a baseline."""
    return {**trace, "mode": "lines", "line": {"color": colour, "dash": "dash", "width": 1.5}}


def _thin(curve: Curve) -> Curve:
    """Keep the lowest and the highest value of each of so many stretches: dips stay visible."""
    positions, values = curve
    if len(values) <= POINTS:
        return curve
    size = math.ceil(2 * len(values) / POINTS)
    kept = {0, len(values) - 1}
    for start in range(0, len(values), size):
        stretch = range(start, min(start + size, len(values)))
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    order = sorted(kept)
    return [positions[i] for i in order], [values[i] for i in order]


def short(text: str, length: int) -> str:
    """Return a text of at most so many characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def escaped(text: str) -> str:
    """Return a text that plotly, which reads a subset of HTML, shows as it is."""
    return html.escape(text, quote=False)
