import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console

from driftline.errors import ConfigError, RecordError
from driftline.report import Run, definitions, summary_table, write_html
from driftline.report.figures import figures
from driftline.report.runs import labels
from driftline.report.traces import POINTS, colours

HOSTILE = "<script>document.title='owned'</script><b>bold</b> & \"co\" [red]x[/red] %{x} <img src=x onerror=alert(1)>"
SHORT = HOSTILE[:47] + "…"
SEGMENTS = ("day", "dusk & <i>dawn</i>", "night")
DEFINITIONS = {
    "online_accuracy": "right before being learned from, since the start",
    "online_accuracy_window": "the same over the most recent samples",
    "near_future_accuracy": "right S samples later",
    "held_out_accuracy": "right on held-out samples",
    "a_auc": "mean of <periodic> evaluations",
}


def points(segments, size, skill):
    """A curve that recovers within each segment, as learners do."""
    for position in range(50, segments * size + 1, 50):
        recovered = skill * (1 - math.exp(-((position - 1) % size) / 200))
        yield position, "online_accuracy", skill * (1 - 50 / position)
        yield position, "online_accuracy_window", recovered
        yield position, "near_future_accuracy", 0.8 * recovered if position > 100 else math.nan
        yield position, "near_future_accuracy_window", 0.8 * recovered if position > 100 else math.nan
        yield position, "near_future_shift", 128.0
        yield position, "blind_accuracy", 0.25 if position > 100 else math.nan
        if position % size == 0:
            yield position, "held_out_accuracy", skill * (1 - 0.1 * position / size)
            for segment in range(position // size):
                yield position, f"held_out_accuracy/{segment}", skill / (position // size - segment)


def write_run(folder, name="replay", seed=1, skill=0.8, segments=SEGMENTS, size=500, results=None, **changes):
    """Write a run's folder as driftline.run does; ``changes`` go to the record, ``scenario`` and others merged."""
    rows = list(points(len(segments), size, skill))
    values = {metric: value for _, metric, value in rows if "/" not in metric}
    values |= {"a_auc": skill / 2, "a_last": skill / 3, "backward_transfer": -0.125, "forward_transfer": None}
    named = [{"name": s, "start": i * size, "stop": (i + 1) * size} for i, s in enumerate(segments)]
    scenario = {
        "scenario": "iid",
        "parameters": {},
        "seed": seed,
        "samples": len(named) * size,
        "data": [{"name": "d"}],
    }
    record = {
        "format": 1,
        "name": name,
        "status": "finished",
        "error": None,
        "scenario": {**scenario, "segments": named, **changes.pop("scenario", {})},
        "learner": {"name": name, "parameters": {}, **changes.pop("learner", {})},
        "protocol": {"batch_size": 10, "seed": 0, "metrics": [{"name": "OnlineAccuracy", "window": 1000}]},
        "weights": {"start": None, "end": None},
        "versions": {"torch": "2"},
        "position": len(named) * size,
        "results": {**values, **(results or {})},
        "definitions": DEFINITIONS,
        **changes,
    }
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record, allow_nan=False))
    (folder / "series.csv").write_text("position,metric,value\n" + "".join(f"{p},{m},{v!r}\n" for p, m, v in rows))
    (folder / "timing.json").write_text(json.dumps({"wall_seconds": 12.34, "samples_per_second": 4321.0, "resumed": 0}))
    return folder


def load(folder, **options):
    return Run.load(write_run(folder, **options))


def shown(runs, width=300):
    """The table as printed."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(summary_table(runs))
    return capture.get()


def notes(runs):
    """What is printed under the table, in one line."""
    return " ".join(shown(runs).split())


def rows(runs):
    """Cells of the table by row, under their headings."""
    table = summary_table(runs)
    columns = [[cell.plain.replace("\n", " ") for cell in column.cells] for column in table.columns]
    headings = [column.header.plain.replace("\n", " ") for column in table.columns]
    return [dict(zip(headings, row)) for row in zip(*columns)]


# --- reading


def test_a_run_is_read_with_its_series_in_order_and_nan_kept(tmp_path):
    run = load(tmp_path / "r")
    positions, values = run.series["near_future_accuracy"]
    assert positions[:4] == [50, 100, 150, 200]
    assert math.isnan(values[0]) and math.isnan(values[1]) and 0 < values[2] < 1
    assert run.results["forward_transfer"] is None
    assert run.timing["wall_seconds"] == 12.34


def test_a_position_belongs_to_the_segment_of_the_sample_played_last(tmp_path):
    run = load(tmp_path / "r")
    assert [run.segment_at(p) for p in (1, 500, 501, 1500)] == ["day", "day", "dusk & <i>dawn</i>", "night"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "record.json").unlink(), "there is no record.json"),
        (lambda d: (d / "record.json").write_text('{"format": 1, "na'), "record.json is damaged"),
        (lambda d: (d / "record.json").write_text("[1]"), "expected an object"),
        (lambda d: (d / "record.json").write_text('{"format": 7}'), "has format 7"),
        (lambda d: (d / "record.json").write_text('{"format": 1}'), "name is None, expected a str"),
        (lambda d: (d / "series.csv").unlink(), "cannot read .*series.csv"),
        (lambda d: (d / "series.csv").write_text("a,b\n1,2\n"), "line 1: expected position,metric,value"),
        (lambda d: (d / "series.csv").write_text("position,metric,value\n5,x,0.5\n6,x\n"), "line 3: .*'6,x'"),
        (lambda d: (d / "series.csv").write_text("position,metric,value\n5,x,high\n"), "line 2: .*'5,x,high'"),
        (lambda d: (d / "series.csv").write_text("position,metric,value\n5,x,0.12"), "ends in the middle of a line"),
        (lambda d: (d / "series.csv").write_bytes(b"position,metric,value\n5,\xff,0.1\n"), "series.csv is damaged"),
        (lambda d: (d / "timing.json").write_text("{"), "timing.json is damaged"),
    ],
)
def test_a_damaged_run_is_refused_with_the_file_and_what_is_wrong(tmp_path, damage, message):
    folder = write_run(tmp_path / "r")
    damage(folder)
    with pytest.raises(RecordError, match=message):
        Run.load(folder)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("results", {"a_auc": "high"}),
        ("definitions", {"a_auc": 3}),
        ("position", "end"),
        ("scenario", {"segments": [{"name": "x", "start": 0}]}),
        ("scenario", {"samples": "many"}),
        ("scenario", {"data": ["digits"]}),
    ],
)
def test_a_record_with_malformed_parts_is_refused(tmp_path, part, value):
    with pytest.raises(RecordError, match="malformed"):
        load(tmp_path / "r", **{part: value})


def test_a_missing_folder_and_a_file_are_told_apart(tmp_path):
    with pytest.raises(RecordError, match="there is no such folder"):
        Run.load(tmp_path / "none")
    folder = write_run(tmp_path / "r")
    with pytest.raises(RecordError, match="is a file; give the folder"):
        Run.load(folder / "record.json")


def test_a_folder_of_runs_is_refused_with_the_runs_in_it(tmp_path):
    write_run(tmp_path / "first")
    with pytest.raises(RecordError, match=r"its subfolders hold runs: .*first"):
        Run.load(tmp_path)


def test_a_killed_run_is_read_up_to_its_last_whole_line_and_shows_its_latest_values(tmp_path):
    folder = write_run(tmp_path / "r", status="running", results={}, position=0)
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"results": {}, "definitions": {}}))
    (folder / "series.csv").write_text("position,metric,value\n50,online_accuracy,0.25\n100,online_accuracy,0.7")
    (folder / "timing.json").unlink()
    run = Run.load(folder)
    assert run.series == {"online_accuracy": ([50], [0.25])}
    [row] = rows([run])
    assert (row["run"], row["online"]) == ("replay, running", "25.0")
    assert "replay: running at 50 of 1,500 samples" in shown([run])


def test_a_run_that_left_only_an_empty_series_is_read(tmp_path):
    folder = write_run(tmp_path / "r", status="running")
    (folder / "series.csv").write_text("")
    assert Run.load(folder).series == {}


def test_a_live_run_without_segments_or_length_is_read(tmp_path):
    folder = write_run(tmp_path / "r")
    record = json.loads((folder / "record.json").read_text())
    record["scenario"] = {"scenario": "camera", "live": True, "seed": 0, "delay": 0, "fraction": 1.0}
    (folder / "record.json").write_text(json.dumps(record))
    run = Run.load(folder)
    assert (run.samples, run.segments, run.segment_at(3)) == (1500, [], "")
    assert write_html([run], tmp_path / "live.html").exists()


def test_what_run_writes_is_read_and_reported(tmp_path):
    import driftline
    from driftline.learners.base import Learner
    from driftline.metrics import NearFutureAccuracy, OnlineAccuracy

    class Counting(Learner):
        def __init__(self):
            self.counts = torch.zeros(3)

        def predict(self, x):
            return self.counts.expand(len(x), -1)

        def learn(self, x, y):
            self.counts += torch.bincount(y, minlength=3)

        def state_dict(self):
            return {"counts": self.counts}

        def load_state_dict(self, state):
            self.counts = state["counts"]

    data = driftline.Dataset(torch.rand(90, 2), torch.arange(90) % 3)
    halves = driftline.Segment.of(data)
    stream = driftline.Stream([halves.named("one"), halves.named("two")], 3, "twice", {})
    metrics = [OnlineAccuracy(window=20), NearFutureAccuracy(4)]
    report = driftline.run(stream, Counting(), metrics=metrics, out=tmp_path / "r", progress=False)
    run = Run.load(tmp_path / "r")
    assert run.results == report.results
    assert run.series["online_accuracy"] == report.curve("online_accuracy")
    assert rows([run])[0]["online"] == f"{100 * report.results['online_accuracy']:.1f}"
    assert [f.title for f in figures([run])] == ["Online accuracy", "Near-future accuracy"]


# --- the table


def test_a_row_shows_percentages_with_one_decimal_and_dashes_for_what_is_missing(tmp_path):
    [row] = rows([load(tmp_path / "r", results={"online_accuracy": 0.98765})])
    assert row == {
        "run": "replay",
        "scenario": "iid on d",
        "seed": "1",
        "samples": "1,500",
        "online": "98.8",
        "near future": f"{80 * 0.8 * (1 - math.exp(-499 / 200)):.1f}",
        "S": "128",
        "blind": "25.0",
        "A_AUC": "40.0",
        "A_last": "26.7",
        "backward transfer": "-12.5",
        "forward transfer": "-",
        "wall s": "12.3",
        "samples/s": "4,321",
    }


def test_columns_keep_their_order_whatever_order_the_records_have(tmp_path):
    results = {"ece": 0.123456, "forgetting": 0.1, "a_avg": 0.5, "average_accuracy": 0.5, "f_last": 0.2}
    headings = list(rows([load(tmp_path / "r", results=results)])[0])
    assert headings[4:] == [
        *("online", "near future", "S", "blind", "A_AUC", "A_avg", "A_last", "F_last", "forgetting"),
        *("backward transfer", "forward transfer", "average accuracy", "ece", "wall s", "samples/s"),
    ]
    assert rows([load(tmp_path / "s", results=results)])[0]["ece"] == "0.1235"


def test_a_metric_that_only_one_run_has_is_a_dash_for_the_other(tmp_path):
    first, second = rows([load(tmp_path / "a"), load(tmp_path / "b", name="other", results={"forgetting": 0.5})])
    assert (first["forgetting"], second["forgetting"]) == ("-", "50.0")


def test_runs_that_differ_in_seed_are_followed_by_mean_and_student_interval(tmp_path):
    values = [0.70, 0.74, 0.81]
    runs = [load(tmp_path / f"{s}", seed=s, results={"online_accuracy": v}) for s, v in enumerate(values)]
    other = load(tmp_path / "other", name="other")
    table = rows([runs[0], other, *runs[1:]])
    assert [row["run"] for row in table] == ["replay", "replay", "replay", "replay, mean", "other"]
    # 4.3027: the 97.5 % point of Student's t with two degrees of freedom, from a printed table.
    half = 4.3027 * statistics.stdev(values) / math.sqrt(3)
    assert table[3]["online"] == f"75.0 ± {100 * half:.1f}"
    assert (table[3]["seed"], table[3]["S"], table[3]["forward transfer"]) == ("3 seeds", "128", "-")
    assert "Student t" in shown(runs) and "Student t" not in shown(runs[:1])


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"seed": 2, "name": "other"},
        {"seed": 2, "learner": {"parameters": {"lr": 0.5}}},
        {"seed": 2, "scenario": {"parameters": {"tasks": 3}}},
        {"seed": 2, "protocol": {"batch_size": 1, "seed": 0, "metrics": []}},
        {"seed": 2, "status": "failed", "error": "ValueError: no"},
    ],
)
def test_runs_are_not_averaged_when_more_or_less_than_the_seed_differs(tmp_path, other):
    table = rows([load(tmp_path / "a", seed=1), load(tmp_path / "b", **other)])
    assert len(table) == 2


def test_seeds_whose_streams_have_other_domains_are_averaged(tmp_path):
    domains = [{"fog 5": 500, "snow 5": 1000}, {"frost 5": 1500}]
    runs = [load(tmp_path / f"{s}", seed=s, scenario={"seed": s, "domains": d}) for s, d in enumerate(domains)]
    assert [row["run"] for row in rows(runs)] == ["replay", "replay", "replay, mean"]


def test_different_look_ahead_shifts_are_not_averaged_away(tmp_path):
    runs = [load(tmp_path / f"{s}", seed=s, results={"near_future_shift": s}) for s in (64, 128)]
    assert rows(runs)[2]["S"] == "64-128"


def test_parameters_that_tell_scenarios_apart_are_shown(tmp_path):
    runs = [load(tmp_path / f"{t}", scenario={"parameters": {"tasks": t, "order": "same"}}) for t in (5, 10)]
    assert [row["scenario"] for row in rows(runs)] == ["iid on d tasks=5", "iid on d tasks=10"]


def test_no_number_is_cut_in_a_narrow_terminal(tmp_path):
    runs = [load(tmp_path / f"{s}", name="a learner with quite a long name", seed=s) for s in (1, 2)]
    printed = shown(runs, width=80)
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    for row in rows(runs):
        for text in list(row.values())[3:]:
            assert text.split(" ± ")[0] in printed


def test_names_are_not_read_as_markup_and_cannot_steer_the_terminal(tmp_path):
    printed = shown([load(tmp_path / "r", name="[red]x[/red] \x1b[2J\nnext", results={"[b]m": 1.0})])
    assert "[red]x[/red] \N{REPLACEMENT CHARACTER}[2J next" in printed
    assert "[b]m" in printed


def test_definitions_name_each_column_and_every_version_of_its_meaning(tmp_path):
    runs = [load(tmp_path / "a"), load(tmp_path / "b", definitions={"online_accuracy": "another meaning"})]
    console = Console(width=200)
    with console.capture() as capture:
        console.print(definitions(runs))
    lines = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in capture.get().splitlines()]
    assert [heading for heading, _ in lines] == list(rows(runs)[0])[4:-2]
    assert lines[0][1] == f"{DEFINITIONS['online_accuracy']}; in other runs: another meaning"
    assert dict(lines)["blind"] == "no definition recorded"


def test_a_starred_definition_covers_the_names_it_stands_for(tmp_path):
    run = load(tmp_path / "r", results={"accuracy_of_day": 0.5}, definitions={"accuracy_of_*": "of one class"})
    console = Console(width=200)
    with console.capture() as capture:
        console.print(definitions([run]))
    assert re.search(r"accuracy_of_day\s+of one class", capture.get())


def test_labels_are_unique(tmp_path):
    folder = write_run(tmp_path / "x", seed=2)
    runs = [load(tmp_path / "a", seed=1), Run.load(folder), Run.load(folder), load(tmp_path / "z", name="other")]
    names = labels(runs)
    assert names[0] == "replay, seed 1" and names[3] == "other"
    assert len(set(names)) == 4


def test_no_runs_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no runs"):
        summary_table([])
    with pytest.raises(ConfigError, match="no runs"):
        write_html([], tmp_path / "x.html")


# --- errors, lower being better


def error_run(folder, name="sgd", **changes):
    """A run on numbers to predict."""
    errors = ("online_squared_error", "online_absolute_error")
    rows = [
        (position, metric, 900 / position)
        for position in range(50, 1501, 50)
        for metric in (*errors, *(f"{e}_window" for e in errors))
    ]
    metrics = [{"name": "OnlineError", "window": 300}]
    folder = write_run(folder, name=name, protocol={"batch_size": 1, "seed": 0, "metrics": metrics}, **changes)
    record = json.loads((folder / "record.json").read_text())
    record["results"] = {"online_squared_error": 1.25, "online_absolute_error": 0.75}
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "series.csv").write_text("position,metric,value\n" + "".join(f"{p},{m},{v!r}\n" for p, m, v in rows))
    return folder


def test_errors_are_not_percentages_and_lower_is_said_to_be_better(tmp_path):
    runs = [Run.load(error_run(tmp_path / "r"))]
    [row] = rows(runs)
    assert (row["squared error"], row["absolute error"]) == ("1.25", "0.75")
    assert "Errors in the targets' unit, or in its square: lower is better." in notes(runs)
    assert "lower is better" not in notes([load(tmp_path / "s")])


def test_errors_have_figures_from_zero_on(tmp_path):
    squared, absolute = figures([Run.load(error_run(tmp_path / "r"))])
    assert (squared.title, absolute.title) == ("Online squared error", "Online absolute error")
    assert squared.metrics == ("online_squared_error_window", "online_squared_error")
    assert squared.layout["yaxis"] == {"rangemode": "tozero"}
    assert squared.notes[:3] == (
        "Solid: over the most recent 300 samples.",
        "Dotted: since the start.",
        "Lower is better.",
    )
    assert [t["line"]["dash"] for t in squared.data] == ["solid", "dot"]


def test_shares_of_units_are_percentages_and_ranks_numbers(tmp_path):
    [row] = rows([load(tmp_path / "r", results={"dormant_units": 0.125, "effective_rank": 7.5})])
    assert (row["dormant_units"], row["effective_rank"]) == ("12.5", "7.5")


# --- runs in lockstep

FACTORS = [0.9, 1.0, 1.1]


def lockstep_run(folder, settings=None, seeds=(0, 1, 2), **changes):
    """A run of several replicas: replica i of a setting has FACTORS[i] times the error."""
    combinations = settings or [{}]
    replicas = [(own, seed) for own in combinations for seed in seeds]
    scale = [level * factor for level in range(1, len(combinations) + 1) for factor in FACTORS]
    folder = error_run(folder, **changes)
    record = json.loads((folder / "record.json").read_text())
    record["replicas"] = {
        "seeds": [seed for _, seed in replicas],
        "settings": [own for own, _ in replicas],
        "results": {m: [v * s for s in scale] for m, v in record["results"].items()},
    }
    record["scenario"]["seed"] = list(seeds)
    record["results"] = {m: v * statistics.fmean(scale) for m, v in record["results"].items()}
    (folder / "record.json").write_text(json.dumps(record))
    lines = ["position,metric,value"]
    for line in (folder / "series.csv").read_text().splitlines()[1:]:
        position, metric, value = line.split(",")
        lines.append(f"{position},{metric},{float(value) * statistics.fmean(scale)!r}")
        lines += [f"{position},{metric}@{i},{float(value) * s!r}" for i, s in enumerate(scale)]
    (folder / "series.csv").write_text("\n".join(lines) + "\n")
    return folder


def half(values):
    # 4.3027: the 97.5 % point of Student's t with two degrees of freedom, from a printed table.
    return 4.3027 * statistics.stdev(values) / math.sqrt(3)


def test_runs_in_lockstep_are_one_row_with_the_interval_of_the_mean(tmp_path):
    runs = [Run.load(lockstep_run(tmp_path / "r"))]
    [row] = rows(runs)
    assert row["squared error"] == f"1.25 ± {half([1.25 * f for f in FACTORS]):.4g}"
    assert (row["run"], row["seed"]) == ("sgd", "0-2")
    assert "Student t" in notes(runs) and "all of them together" in notes(runs)


def test_settings_in_lockstep_are_rows_of_their_own(tmp_path):
    run = Run.load(lockstep_run(tmp_path / "r", [{"lr": 0.1}, {"lr": 0.01}]))
    first, second = rows([run])
    assert (first["run"], second["run"]) == ("sgd, lr=0.1", "sgd, lr=0.01")
    assert first["squared error"] == f"1.25 ± {half([1.25 * f for f in FACTORS]):.4g}"
    assert second["squared error"] == f"2.5 ± {half([2.5 * f for f in FACTORS]):.4g}"
    assert [part.series["online_squared_error"][1][0] for part in run.parts] == pytest.approx([18, 36])


def test_a_metric_that_is_undefined_for_one_replica_is_a_dash(tmp_path):
    folder = lockstep_run(tmp_path / "r")
    record = json.loads((folder / "record.json").read_text())
    record["replicas"]["results"]["online_squared_error"][1] = record["results"]["online_squared_error"] = None
    (folder / "record.json").write_text(json.dumps(record))
    [row] = rows([Run.load(folder)])
    assert row["squared error"] == "-" and "±" in row["absolute error"]


def test_more_seeds_in_a_second_run_are_averaged_with_the_first(tmp_path):
    seeds = ((0, 1, 2), (3, 4, 5), (3, 4, 5))
    runs = [Run.load(lockstep_run(tmp_path / f"{i}", seeds=s)) for i, s in enumerate(seeds)]
    table = rows(runs)
    assert [(row["run"].split(",")[0], row["seed"]) for row in table] == [
        *(("sgd", "0-2"), ("sgd", "3-5"), ("sgd", "3-5"), ("sgd", "6 seeds")),
    ]
    values = [1.25 * f for f in FACTORS] * 2
    interval = 2.5706 * statistics.stdev(values) / math.sqrt(6)  # Student's t with five degrees of freedom
    assert table[3]["squared error"] == f"1.25 ± {interval:.4g}"


def test_the_mean_is_a_line_in_the_area_of_its_interval(tmp_path):
    from plotly.graph_objects import Figure

    runs = [Run.load(lockstep_run(tmp_path / "r", [{"lr": 0.1}, {"lr": 0.01}])), Run.load(error_run(tmp_path / "s"))]
    squared = figures(runs)[0]
    Figure({"data": squared.data, "layout": squared.layout})
    areas = [t for t in squared.data if t.get("fill")]
    assert [t["legendgroup"] for t in areas] == ["sgd, lr=0.1", "sgd, lr=0.01"]
    lines = [t for t in squared.data if not t.get("fill")]
    assert [(t["legendgroup"], t["showlegend"]) for t in lines][::2] == [
        *(("sgd, lr=0.1", True), ("sgd, lr=0.01", True), ("sgd", True)),
    ]
    area, line = areas[0], lines[0]
    n = len(line["x"])
    assert area["x"] == line["x"] + line["x"][::-1]
    middle = [(high + low) / 2 for high, low in zip(area["y"][:n], area["y"][n:][::-1])]
    assert middle == pytest.approx(line["y"])
    assert area["y"][0] - line["y"][0] == pytest.approx(half([18 * f for f in FACTORS]), rel=1e-4)  # t to five digits
    assert any("95 % confidence interval" in note for note in squared.notes)
    assert not any("interval" in note for note in figures(runs[1:])[0].notes)


def test_an_area_leaves_out_what_is_not_finite_and_is_thinned(tmp_path):
    folder = lockstep_run(tmp_path / "r")
    lines = ["position,metric,value"]
    for position in range(1, 5001):
        lines += [f"{position},online_squared_error@{i},{'inf' if position > 4000 else i}" for i in range(3)]
        lines.append(f"{position},online_squared_error,{'inf' if position > 4000 else 1.0}")
    (folder / "series.csv").write_text("\n".join(lines) + "\n")
    line, area = figures([Run.load(folder)])[0].data
    assert line["y"][-1] is None
    assert max(area["x"]) <= 4000 and len(area["x"]) <= POINTS + 2
    assert all(math.isfinite(y) for y in area["y"])


def test_a_study_that_was_killed_shows_the_latest_values_of_its_replicas(tmp_path):
    folder = lockstep_run(tmp_path / "r", status="running")
    record = json.loads((folder / "record.json").read_text())
    del record["replicas"]["results"]
    (folder / "record.json").write_text(json.dumps(record | {"results": {}, "definitions": {}}))
    [row] = rows([Run.load(folder)])
    assert row["squared error"] == f"0.6 ± {half([0.6 * f for f in FACTORS]):.4g}"
    assert row["run"].endswith(", running")


@pytest.mark.parametrize(
    "replicas",
    [
        [1],
        {"seeds": [0, 1], "settings": [{}]},
        {"seeds": [0, "b"], "settings": [{}, {}]},
        {"seeds": [0, 1], "settings": [{}, 3]},
        {"seeds": [0, 1], "results": {"online_squared_error": [0.1]}},
        {"seeds": [0, 1], "results": {"online_squared_error": [0.1, "low"]}},
    ],
)
def test_a_record_with_malformed_replicas_is_refused(tmp_path, replicas):
    folder = error_run(tmp_path / "r")
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"replicas": replicas}))
    with pytest.raises(RecordError, match="the replicas are malformed"):
        Run.load(folder)


def test_the_page_of_a_study_has_a_row_for_each_setting_and_the_record_once(tmp_path):
    run = Run.load(lockstep_run(tmp_path / "r", [{"lr": 0.1}, {"lr": HOSTILE}]))
    text = write_html([run], tmp_path / "page.html").read_text()
    page = Page(text)
    check_harmless(page)
    assert "Comparison of 2 runs" in text
    assert sum(tag == "tr" for tag, _ in page.tags) == 3
    [folded] = re.findall(r"<pre>(.*?)</pre>", text, flags=re.S)
    assert json.loads(unescape(folded))["record"] == run.record


def test_a_study_as_driftline_writes_it_is_read_and_reported(tmp_path):
    import driftline
    from driftline.plan import Plan

    plan = Plan(
        "slowly_changing_regression",
        batch_size=1,
        seeds=(0, 1, 2),
        grid={"lr": [0.01, 0.001]},
        scenario_parameters={"samples": 400, "period": 100},
        model_parameters={"hidden": [5]},
    )
    report = plan.run(tmp_path / "r", progress=False)
    read, given = Run.load(tmp_path / "r"), Run.of(report)
    assert read.each == given.each and read.series == given.series
    assert isinstance(report, driftline.Report)
    table = rows([read])
    assert table == rows([given])
    each = report.record["replicas"]["results"]["online_squared_error"]
    for row, values in zip(table, (each[:3], each[3:])):
        assert row["squared error"] == f"{statistics.fmean(values):.4g} ± {half(values):.4g}"
    assert [part.name for part in read.parts] == ["sgd, lr=0.01", "sgd, lr=0.001"]
    assert write_html([read], tmp_path / "page.html").exists()


# --- the figures


def test_figures_are_valid_plotly(tmp_path):
    from plotly.graph_objects import Figure

    runs = [load(tmp_path / "a"), load(tmp_path / "b", name=HOSTILE, seed=2, segments=("x", "y"))]
    drawn = figures(runs)
    assert [f.title for f in drawn] == [
        *("Online accuracy", "Near-future accuracy", "Held-out accuracy", "Held-out accuracy by segment"),
    ]
    for figure in drawn:
        Figure({"data": figure.data, "layout": figure.layout})


def test_a_run_has_one_colour_in_all_figures(tmp_path):
    runs = [load(tmp_path / f"{s}", seed=s) for s in range(13)]
    assert len(set(colours(13))) == 13
    for figure in figures(runs):
        seen = {(t["legendgroup"], t["line"]["color"]) for t in figure.data if t["name"] != "blind baseline"}
        assert seen == set(zip(labels(runs), colours(13)))


def test_undefined_values_are_gaps(tmp_path):
    near = figures([load(tmp_path / "r")])[1].data[0]
    assert near["y"][:2] == [None, None] and near["y"][2] > 0


def test_a_baseline_that_runs_share_is_drawn_once_and_others_in_their_own_colour(tmp_path):
    runs = [load(tmp_path / "a"), load(tmp_path / "b", name="b")]
    dashed = [t for t in figures(runs)[1].data if t["line"]["dash"] == "dash"]
    assert [t["name"] for t in dashed] == ["blind baseline"]
    third = write_run(tmp_path / "c", name="c")
    series = (third / "series.csv").read_text()
    (third / "series.csv").write_text(series.replace("blind_accuracy,0.25", "blind_accuracy,0.5"))
    dashed = [t for t in figures([*runs, Run.load(third)])[1].data if t["line"]["dash"] == "dash"]
    assert sorted(t["name"] for t in dashed) == ["blind baseline of replay and 1 more", "c"]
    assert next(t for t in dashed if t["name"] == "c")["line"]["color"] == colours(3)[2]


def test_boundaries_are_those_of_the_first_run_and_a_difference_is_said(tmp_path):
    first, second = load(tmp_path / "a"), load(tmp_path / "b", name="b", segments=("x", "y"), size=750)
    online = figures([first, second])[0]
    assert online.layout["shapes"][0]["path"] == "M500,0V1M1000,0V1"
    assert [a["text"] for a in online.layout["annotations"]] == ["day", "dusk &amp; &lt;i&gt;dawn&lt;/i&gt;", "night"]
    assert "the segments of replay; those of other runs differ" in " ".join(online.notes)
    assert "differ" not in " ".join(figures([first, load(tmp_path / "c", name="c")])[0].notes)


def test_many_segments_are_lines_without_names(tmp_path):
    online, _, _, panels = figures([load(tmp_path / "r", segments=[f"s{i}" for i in range(31)], size=50)])
    assert "annotations" not in online.layout and online.layout["shapes"][0]["path"].count("M") == 30
    assert "31 segments" in " ".join(online.notes)
    texts = [a["text"] for a in panels.layout["annotations"]]
    assert len(texts) == 24 and (texts[0], texts[-1]) == ("s0", "s30")
    assert "24 of 31 segments" in " ".join(panels.notes)


def test_a_long_curve_is_thinned_without_losing_its_dip(tmp_path):
    folder = write_run(tmp_path / "r")
    lines = [f"{p},online_accuracy,{0.01 if p == 7777 else 0.9}\n" for p in range(1, 30_001)]
    (folder / "series.csv").write_text("position,metric,value\n" + "".join(lines))
    [trace] = figures([Run.load(folder)])[0].data
    assert len(trace["x"]) <= POINTS + 2
    assert (trace["x"][0], trace["x"][-1]) == (1, 30_000)
    assert trace["x"] == sorted(trace["x"])
    assert trace["y"][trace["x"].index(7777)] == 0.01


def test_a_metric_of_the_users_own_gets_its_own_figure(tmp_path):
    folder = write_run(tmp_path / "r")
    with (folder / "series.csv").open("a") as file:
        file.write("1500,ece,3.5\n1500,ece/day,0.2\n")
    figure = figures([Run.load(folder)])[-1]
    assert (figure.title, figure.metrics) == ("ece", ("ece", "ece/day"))


# --- the page


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.style, self._open = [], "", "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open not in ("script", "style"):
            self.text += data

    def count(self, tag, cls):
        return sum(t == tag and cls in (a.get("class") or "").split() for t, a in self.tags)


def texts(document, tag, cls):
    """What the elements of a class show."""
    shown = re.findall(rf'<{tag} class="{cls}".*?</{tag}>', document, flags=re.S)
    return [unescape(re.sub("<[^>]*>", "", element)) for element in shown]


def check_harmless(page):
    """Nothing that a name could have brought in, and nothing from elsewhere."""
    assert not [a for _, a in page.tags if any(key.startswith("on") for key in a)]
    assert not [
        a for tag, a in page.tags if tag in ("script", "img", "iframe", "image") and ("src" in a or "href" in a)
    ]
    links = [a.get(key, "") for _, a in page.tags for key in ("src", "href") if a.get(key)]
    assert not [link for link in links if "//" in link]
    assert not [tag for tag, _ in page.tags if tag in ("i", "b", "red")]


def test_the_page_escapes_names_everywhere_and_refers_to_nothing_outside(tmp_path):
    hostile = {"scenario": {"scenario": HOSTILE, "data": [{"name": HOSTILE}]}, "learner": {"name": f"{HOSTILE}2"}}
    failed = {"status": "failed", "error": f"ValueError: {HOSTILE}", "results": {f"m{HOSTILE}": 0.5}}
    run = load(
        tmp_path / f"r{HOSTILE.replace('/', '')}", name=HOSTILE, definitions={"a_auc": HOSTILE}, **hostile, **failed
    )
    text = write_html([run], tmp_path / "page.html").read_text()
    page = Page(text)
    check_harmless(page)
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert page.text.count("<script>document.title='owned'</script>") >= 8
    assert "</script><b>" not in text


def test_the_page_has_the_table_the_definitions_and_the_whole_record(tmp_path):
    runs = [load(tmp_path / f"{s}", seed=s) for s in (1, 2)]
    text = write_html(runs, tmp_path / "page.html").read_text()
    page = Page(text)
    assert sum(tag == "tr" for tag, _ in page.tags) == 4 and page.count("tr", "mean") == 1
    for row in rows(runs):
        for value in row.values():
            assert value.split(" ± ")[0] in page.text
    assert "mean of <periodic> evaluations" in page.text
    folded = re.findall(r"<pre>(.*?)</pre>", text, flags=re.S)
    assert json.loads(unescape(folded[1])) == {"record": runs[1].record, "timing": runs[1].timing}


def test_the_same_runs_give_the_same_page(tmp_path):
    run = load(tmp_path / "r")
    first, second = (write_html([run], tmp_path / name) for name in ("a.html", "b/c/d.html"))
    assert first.read_bytes() == second.read_bytes()


def test_a_page_that_cannot_be_written_leaves_the_old_one_and_no_rest(tmp_path):
    run = load(tmp_path / "r")
    (tmp_path / "taken.html").mkdir()
    with pytest.raises(RecordError, match=r"cannot write .*taken\.html"):
        write_html([run], tmp_path / "taken.html")
    (tmp_path / "file").write_text("old")
    with pytest.raises(RecordError, match="cannot write"):
        write_html([run], tmp_path / "file" / "page.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "r", "taken.html"]


def test_without_plotly_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ConfigError, match=r'pip install "driftline\[report\]"'):
        write_html([load(tmp_path / "r")], tmp_path / "page.html")


def test_plotly_and_rich_are_imported_only_when_needed():
    code = "import sys, driftline.report; print([m for m in ('plotly', 'rich', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "plotly" not in done.stdout and "rich" not in done.stdout


# --- in a browser


def in_browser(page, profile):
    """Return the document as a browser has it after running its scripts."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        reason = f"no browser to draw the page: none of {', '.join(names)} is installed"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; CI must have one")
        pytest.skip(reason)
    quiet = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", *quiet, "--disable-sync"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=10000", "--window-size=1400,2400", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=180, check=True)
    return done.stdout


@pytest.mark.slow
def test_a_browser_draws_every_curve_legend_entry_and_boundary(tmp_path):
    runs = [load(tmp_path / "a"), load(tmp_path / "b", name=HOSTILE)]
    document = in_browser(write_html(runs, tmp_path / "page.html"), tmp_path / "profile")
    page = Page(document)
    # Online and near-future: window and total of both runs; one shared baseline; held-out; three panels.
    assert page.count("g", "scatter") == 4 + 4 + 1 + 2 + 3 * 2
    # As many lines, and one more in each legend entry.
    assert page.count("path", "js-line") == 17 + 9
    assert page.count("g", "traces") == 2 + 3 + 2 + 2
    assert texts(document, "text", "legendtext")[:2] == ["replay", SHORT]
    # Three names in each of three figures, and the titles of the panels.
    assert page.count("g", "annotation") == 3 * 3 + 3
    # One path for the boundaries of each figure, and a shade in each panel.
    assert sum(tag == "path" and "M" in a.get("d", "") and "data-index" in a for tag, a in page.tags) == 3 + 3
    assert page.text.count("night") >= 4
    assert "<title>Comparison of 2 runs" in document
    assert not [a for tag, a in page.tags if tag == "script" and "src" in a]
    assert not [tag for tag, _ in page.tags if tag in ("b", "i", "red")]


@pytest.mark.slow
def test_a_browser_shows_names_as_they_are_when_the_pointer_is_on_a_curve(tmp_path):
    path = write_html([load(tmp_path / "r", name=HOSTILE)], tmp_path / "page.html")
    pointer = '<script>Plotly.Fx.hover("figure-0", [{curveNumber: 0, pointNumber: 12}]);</script></body>'
    text, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text())
    assert count == 1
    path.write_text(text.replace("</body>", pointer))
    document = in_browser(path, tmp_path / "profile")
    value = 100 * 0.8 * (1 - math.exp(-149 / 200))
    hover = f"{SHORT}, recentposition 650segment dusk & <i>dawn</i>{value:.1f}%"
    assert texts(document, "g", "hovertext") == [hover]


@pytest.mark.slow
def test_a_browser_runs_no_script_but_the_pages_own(tmp_path):
    path = write_html([load(tmp_path / "r")], tmp_path / "page.html")
    path.write_text(path.read_text().replace("</body>", "<script>document.title = 'owned'</script></body>"))
    document = in_browser(path, tmp_path / "profile")
    assert "<title>replay" in document
    assert Page(document).count("g", "scatter") > 0
