"""The comparison of runs as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from driftline.errors import ConfigError, RecordError
from driftline.report.figures import Figure, figures
from driftline.report.runs import Run, by_settings, labels, printable
from driftline.report.table import TIMES, definition, summarize, title
from driftline.report.traces import colours


def write_html(runs: Sequence[Run], path: str | Path) -> Path:
    """Write the comparison of runs to one HTML page, with the table, interactive curves and the records.

    Parameters
    ----------
    runs : sequence of Run
        In the order of table, colours and legends.
    path : path
        The file; replaced at once when it exists, so that nobody reads half a page.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ConfigError
        When there are no runs, or plotly is not installed.
    RecordError
        When the file cannot be written.
    """
    path = Path(path)
    page = _page(runs, _plotly())
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RecordError(f"cannot write {path}: {error.strerror or error}; choose another file") from error
    return path


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigError('the HTML report needs plotly: pip install "driftline[report]"') from error
    # No script may end before its end.
    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _page(recorded: Sequence[Run], plotly: str) -> str:
    runs = by_settings(recorded)
    table = _table(runs)
    drawn = figures(runs)
    heading = f"Comparison of {len(runs)} runs" if len(runs) > 1 else runs[0].name
    names = ", ".join(dict.fromkeys(run.name for run in runs))
    data = json.dumps([{"data": f.data, "layout": f.layout} for f in drawn], allow_nan=False).replace("<", "\\u003c")
    style, script = _asset("page.css"), _asset("page.js")
    # Beyond escaping: the browser runs these two scripts and nothing else, and fetches nothing.
    allowed = " ".join(f"'sha256-{_digest(text)}'" for text in (plotly, script))
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(heading)} · driftline</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>{_text(heading)}</h1>
<p>{_text(names) if len(runs) > 1 else _text(_place(runs[0]))}</p>
</header>
<main>
{table}
<noscript><p class="note">The curves need JavaScript; the numbers are in each run's series.csv.</p></noscript>
{"".join(_figure(i, figure, runs) for i, figure in enumerate(drawn)) or '<p class="note">No curve was recorded.</p>'}
{_records(recorded)}
</main>
<footer>Written by driftline. Click a name in a legend to hide its curves, twice to see them alone;
drag to zoom, double-click to see everything again.</footer>
<script type="application/json" id="figures">{data}</script>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""


def _table(runs: Sequence[Run]) -> str:
    summary = summarize(runs)
    colour = dict(zip(runs, colours(len(runs))))
    metrics = [metric for metric in summary.metrics if metric and metric not in TIMES]
    head = []
    for heading, metric in zip(summary.titles, summary.metrics):
        explained = f'<abbr title="{_text(definition(metric, runs))}">{_text(heading)}</abbr>'
        head.append(f'<th scope="col"{_side(metric)}>{explained if metric in metrics else _text(heading)}</th>')
    body = []
    for row in summary.rows:
        swatch = f'<span class="swatch" style="background:{colour[row.run]}"></span>' if row.run else ""
        cells = [f"<td{_side(metric)}>{_cell(cell)}</td>" for cell, metric in zip(row.cells[1:], summary.metrics[1:])]
        kind = "" if row.run else ' class="mean"'
        body.append(f'<tr{kind}><th scope="row" class="text">{swatch}{_text(row.cells[0])}</th>{"".join(cells)}</tr>\n')
    notes = "".join(f'<p class="note">{_text(note)}</p>\n' for note in summary.notes)
    return f"""<section>
<h2>Results</h2>
<div class="scroll"><table>
<thead><tr>{"".join(head)}</tr></thead>
<tbody>
{"".join(body)}</tbody>
</table></div>
{notes}<details><summary>Definitions</summary>{_definitions({title(m): m for m in metrics}, runs)}</details>
</section>"""


def _cell(cell: str) -> str:
    """Put the interval under the mean."""
    mean, sign, interval = _text(cell).partition(" ± ")
    return f"{mean}<br><small>±&nbsp;{interval}</small>" if sign else mean


def _side(metric: str) -> str:
    return "" if metric else ' class="text"'


def _figure(number: int, figure: Figure, runs: Sequence[Run]) -> str:
    height = figure.layout["height"]
    # In this order "the same over the most recent samples" follows what it refers to.
    metrics = {_whole(metric): metric for metric in sorted(figure.metrics)}
    return f"""<figure>
<h2>{_text(figure.title)}</h2>
<p class="note">{_text(" ".join(figure.notes))}</p>
<div class="scroll"><div class="plot" id="figure-{number}" style="height:{height}px"></div></div>
<figcaption>{_definitions(metrics, runs)}</figcaption>
</figure>
"""


def _definitions(metrics: Mapping[str, str], runs: Sequence[Run]) -> str:
    """List definitions of metrics, given by the names they are shown under."""
    terms = (f"<dt>{_text(name)}</dt><dd>{_text(definition(m, runs))}</dd>" for name, m in metrics.items())
    return f"<dl>{''.join(terms)}</dl>"


def _whole(metric: str) -> str:
    """Return one name for a metric's values by segment."""
    metric = printable(metric)
    return f"{metric.split('/')[0]}/*" if "/" in metric else metric


def _records(runs: Sequence[Run]) -> str:
    folded = []
    for run, label in zip(runs, labels(runs)):
        content = json.dumps({"record": run.record, "timing": run.timing}, indent=2, ensure_ascii=False)
        summary = f"{_text(label)} <small>{_text(_place(run))}</small>"
        folded.append(f"<details><summary>{summary}</summary><pre>{_text(content)}</pre></details>\n")
    return f"<section>\n<h2>Records</h2>\n{''.join(folded)}</section>"


def _place(run: Run) -> str:
    return printable(str(run.path))


def _asset(name: str) -> str:
    return (resources.files("driftline.report") / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _text(text: str) -> str:
    return html.escape(text, quote=True)
