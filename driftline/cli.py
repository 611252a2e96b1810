"""The command line: it only calls what Python users call."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from driftline.edge_cli import adapt_command, export_command, merge_command, rollback_command, status_command, values
from driftline.errors import ConfigError, DriftlineError, SourceError, unknown

if TYPE_CHECKING:
    from rich.console import Console

    from driftline.stream.run import Report
    from driftline.stream.trackers import Tracker

app = typer.Typer(
    help="Play data streams to learners, measure online, resume exactly.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Root = Annotated[
    Path | None,
    typer.Option("--data-root", help="Folder of the data files.  [default: $DRIFTLINE_DATA, else ~/.cache/driftline]"),
]
Track = Annotated[
    list[str] | None,
    typer.Option(help="Send recorded values on: tensorboard:FOLDER, mlflow[:URI] or wandb[:PROJECT]; repeatable."),
]
Progress = Annotated[bool | None, typer.Option(help="Show a progress bar.  [default: on a terminal]")]


@app.command("run", help="Run a scenario: driftline run si_blurry --data digits --learner er --out runs/er")
def run_command(
    scenario: Annotated[
        str,
        typer.Argument(
            help="A name that `driftline list` shows, file.py:function, or a live source such as csv:readings.csv, "
            "jsonl:- or kafka://host:9092/topic (`driftline list sources`)."
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(help="A dataset's name, an .npz or .csv file or an image folder.  [default: digits]"),
    ] = None,
    learner: Annotated[str, typer.Option(help="Who learns.")] = "sgd",
    adapter: Annotated[str | None, typer.Option(help="Who adapts, in place of a learner; sees no labels.")] = None,
    model: Annotated[str | None, typer.Option(help="The network to train.  [default: mlp]")] = None,
    weights: Annotated[str | None, typer.Option(help="Released weights to start from, such as resnet20.")] = None,
    seed: Annotated[int, typer.Option(help="For scenario, model and learner.")] = 0,
    seeds: Annotated[str, typer.Option(help="Run once for each of these, in lockstep, such as 0-29 or 1,4,7.")] = "",
    grid: Annotated[list[str] | None, typer.Option(help="Learner parameter to vary, such as lr=[0.01,0.1].")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per step.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Folder for record, series and checkpoint.")] = None,
    name: Annotated[str | None, typer.Option(help="Label in reports.  [default: the learner]")] = None,
    scenario_set: Annotated[
        list[str] | None, typer.Option("--set", help="Parameter of the scenario or live source, key=value.")
    ] = None,
    learner_set: Annotated[
        list[str] | None,
        typer.Option("--learner-set", "--adapter-set", help="Learner or adapter parameter, key=value."),
    ] = None,
    model_set: Annotated[list[str] | None, typer.Option(help="Model parameter, key=value.")] = None,
    data_set: Annotated[list[str] | None, typer.Option(help="Dataset parameter, key=value.")] = None,
    metrics: Annotated[
        str, typer.Option(help="Names, with commas.  [default: online,near-future,held-out; of numbers, online]")
    ] = "",
    shift: Annotated[int | None, typer.Option(min=0, help="For near-future accuracy.  [default: from labels]")] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(min=1, help="Samples between held-out evaluations, or of plasticity.")
    ] = None,
    delay_labels: Annotated[int, typer.Option(min=0, help="Samples that labels come late.")] = 0,
    label_fraction: Annotated[float, typer.Option(min=0, max=1, help="Share of the labels that arrive.")] = 1.0,
    samples: Annotated[int | None, typer.Option(min=1, help="Stop after so many samples.")] = None,
    standardize: Annotated[bool, typer.Option(help="Zero mean and unit variance for each feature.")] = False,
    input_range: Annotated[str, typer.Option(help="Move inputs from [0, 1] to this range, such as -1,1.")] = "",
    compile: Annotated[
        bool, typer.Option(help="Train through compiled steps, where learner and model allow it.")
    ] = False,
    reset: Annotated[
        str, typer.Option(help="When an adapter returns to its source model: never, or before each segment.")
    ] = "never",
    real_time: Annotated[
        str,
        typer.Option(help="Let an adapter miss batches while busy: its cost in predictions, such as 3, or measured."),
    ] = "",
    source: Annotated[
        str | None, typer.Option(help="Source data, for adapters that learn from it before they begin.")
    ] = None,
    source_set: Annotated[list[str] | None, typer.Option(help="Parameter of the source data, key=value.")] = None,
    window: Annotated[
        int | None, typer.Option(min=2, help="Let an adapter see so many of the last samples at each step.")
    ] = None,
    guard: Annotated[
        bool, typer.Option("--guard", help="Take an adapter that collapses back to its last good state.")
    ] = False,
    guard_set: Annotated[list[str] | None, typer.Option(help="Parameter of the guard, key=value.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(min=1, help="Samples between checkpoints.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a run that is in --out already.")] = False,
    device: Annotated[str | None, typer.Option(help="Where to run, such as cuda.")] = None,
    track: Track = None,
    data_root: Root = None,
    progress: Progress = None,
) -> None:
    """Run a scenario."""
    from driftline.plan import Plan

    plan = Plan(
        scenario,
        data,
        learner,
        adapter,
        model,
        weights,
        tuple(m.strip() for m in metrics.split(",") if m.strip()),
        seed,
        batch_size,
        shift,
        evaluate_every,
        delay_labels,
        label_fraction,
        samples,
        standardize,
        device,
        values(scenario_set),
        values(data_set),
        values(learner_set),
        values(model_set),
        _seeds(seeds),
        values(grid),  # type: ignore[arg-type]
        _range(input_range),
        compile,
        reset,  # type: ignore[arg-type]
        _real_time(real_time),
        source,
        values(source_set),
        window,
        guard,
        values(guard_set),
    )
    report = plan.run(
        out,
        root=data_root,
        name=name,
        overwrite=overwrite,
        progress=progress,
        checkpoint_every=checkpoint_every,
        trackers=_trackers(track),
    )
    _show(report)


@app.command(
    "diagnose",
    help="Say whether a learner loses plasticity, and what helps: driftline diagnose permuted_inputs --data mnist",
)
def diagnose_command(
    scenario: Annotated[str, typer.Argument(help="A name that `driftline list` shows, or file.py:function.")],
    data: Annotated[str | None, typer.Option(help="As for run.  [default: digits]")] = None,
    learner: Annotated[str, typer.Option(help="Who learns.")] = "sgd",
    model: Annotated[str | None, typer.Option(help="The network to train.  [default: mlp]")] = None,
    seed: Annotated[int, typer.Option(help="For scenario, model and learner.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per step.")] = 10,
    remedies: Annotated[
        str | None, typer.Option(help="Names, with commas; '' for none.  [default: all, where plasticity is lost]")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Where to draw it over tasks, such as d.png.")] = None,
    scenario_set: Annotated[list[str] | None, typer.Option("--set", help="Scenario parameter, key=value.")] = None,
    learner_set: Annotated[list[str] | None, typer.Option(help="Learner parameter, key=value.")] = None,
    model_set: Annotated[list[str] | None, typer.Option(help="Model parameter, key=value.")] = None,
    data_set: Annotated[list[str] | None, typer.Option(help="Dataset parameter, key=value.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Stop after so many samples.")] = None,
    input_range: Annotated[str, typer.Option(help="Move inputs from [0, 1] to this range, such as -1,1.")] = "",
    compile: Annotated[bool, typer.Option(help="Train through compiled steps, where possible.")] = False,
    data_root: Root = None,
) -> None:
    """Diagnose a learner on a stream."""
    from functools import partial

    from driftline.diagnosis import diagnose
    from driftline.plan import Plan

    plan = Plan(
        scenario,
        data,
        learner,
        model=model,
        seed=seed,
        samples=samples,
        scenario_parameters=values(scenario_set),
        data_parameters=values(data_set),
        learner_parameters=values(learner_set),
        model_parameters=values(model_set),
        input_range=_range(input_range),
        compile=compile,
    )
    stream = plan.stream(data_root)
    chosen = None if remedies is None else [name.strip() for name in remedies.split(",") if name.strip()]
    # A plan without an adapter builds a learner.
    make = partial(plan.player, stream, data_root)
    found = diagnose(make, stream, batch_size=batch_size, remedies=chosen, seed=seed)  # type: ignore[arg-type]
    typer.echo(found.text)
    if figure is not None:
        typer.echo(f"drawn to {found.figure(figure)}")


@app.command("resume", help="Continue an interrupted run from its last checkpoint: driftline resume runs/er")
def resume_command(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    track: Track = None,
    data_root: Root = None,
    progress: Progress = None,
) -> None:
    """Continue a run."""
    from driftline.plan import Plan
    from driftline.stream.record import RunDirectory

    record = RunDirectory(run).read_record()
    protocol = record["protocol"]
    assert isinstance(protocol, dict)
    report = Plan.of_run(run).run(
        run,
        root=data_root,
        name=str(record["name"]),
        resume=True,
        progress=progress,
        checkpoint_every=protocol["checkpoint_every"],
        trackers=_trackers(track),
    )
    _show(report)


@app.command("report", help="Compare runs in a table and an HTML page: driftline report runs/*")
def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    html: Annotated[
        Path, typer.Option(help="Where to write the HTML page with interactive curves (needs the 'report' extra).")
    ] = Path("report.html"),
) -> None:
    """Compare runs."""
    from rich.console import Console

    from driftline.report import Run, definitions, summary_table, write_html

    loaded = [Run.load(run) for run in runs]
    console = Console()
    console.print(summary_table(loaded))
    console.print(definitions(loaded))
    console.print(f"wrote {write_html(loaded, html)}", soft_wrap=True)


@app.command("list", help="Show the scenarios, live sources, learners, adapters, metrics, models and data.")
def list_command(
    kind: Annotated[str | None, typer.Argument(help="Only these: scenarios, learners, ...")] = None,
) -> None:
    """Show what there is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from driftline import build, data, models, scenarios
    from driftline.stream.sources.named import SOURCES

    kinds: dict[str, Mapping[str, str]] = {
        "scenarios": scenarios.names(),
        "sources": {name: f"{line} {_settings(name)}" for name, line in build.lines(SOURCES).items()},
        "learners": build.lines(build.LEARNERS),
        "adapters": build.lines(build.ADAPTERS),
        "metrics": build.lines(build.METRICS),
        "models": models.names(),
        "data": data.names(),
    }
    if kind is not None and kind not in kinds:
        raise unknown("kind", kind, kinds)
    console = Console()
    for title, entries in kinds.items():
        if kind in (None, title):
            table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
            for entry, line in entries.items():
                table.add_row(entry, escape(line))
            console.print(table)


@app.command("download", help="Fetch a dataset's files into the data folder (needs the 'vision' extra).")
def download_command(name: Annotated[str, typer.Argument(help="A dataset's name.")], data_root: Root = None) -> None:
    """Fetch a dataset."""
    from driftline import data

    typer.echo(f"{name} is in {data.download(name, data_root)}")


@app.command("corrupt", help="Write a corrupted copy of images: driftline corrupt cifar-10 CIFAR-10-C --corruption fog")
def corrupt_command(
    data: Annotated[str, typer.Argument(help="A dataset's name, an .npz file or an image folder.")],
    out: Annotated[Path, typer.Argument(help="Folder for <corruption>.npy and labels.npy, as CIFAR-10-C has them.")],
    corruption: Annotated[str, typer.Option(help="Names, with commas.  [default: the fifteen of CIFAR-10-C]")] = "",
    severity: Annotated[str, typer.Option(help="Such as 1-5 or 3,5.")] = "1-5",
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    split: Annotated[str, typer.Option(help="Which part of the dataset.")] = "test",
    data_set: Annotated[list[str] | None, typer.Option(help="Dataset parameter, key=value.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace files that are there already.")] = False,
    data_root: Root = None,
) -> None:
    """Write a corrupted copy of a dataset."""
    from driftline.data import load
    from driftline.scenarios.corruptions import STANDARD
    from driftline.scenarios.corruptions.files import write_corrupted

    names = [name.strip() for name in corruption.split(",") if name.strip()] or STANDARD
    images = load(data, data_root, split=split, **values(data_set))  # type: ignore[arg-type]
    folder = write_corrupted(images, out, names, _seeds(severity, "--severity", "severity"), seed, overwrite)
    typer.echo(f"wrote {len(names)} corruptions of {len(images)} images to {folder}")


app.command("adapt", help="Run a model on a device: driftline adapt --source - --state DIR --preset statistics")(
    adapt_command
)
app.command("export", help="Write the model a loop serves as .pt2 or .onnx: driftline export model.pt2 --state DIR")(
    export_command
)
app.command("merge", help="Average what devices made of one model: driftline merge next.pt DIR DIR")(merge_command)
app.command("status", help="Show how such a loop is, running or not: driftline status DIR")(status_command)
app.command("rollback", help="Reject the newest state of a stopped loop: driftline rollback DIR")(rollback_command)


def _settings(source: str) -> str:
    """Name the settings of a live source."""
    from driftline.stream.sources.named import SOURCES

    _, *names = inspect.signature(SOURCES[source]).parameters
    return f"--set {', '.join(names)}."


def _trackers(addresses: list[str] | None) -> list[Tracker]:
    from driftline.stream.trackers import tracker

    return [tracker(address) for address in addresses or []]


def _seeds(text: str, option: str = "--seeds", what: str = "seed") -> tuple[int, ...]:
    """Read whole numbers such as ``0-29`` or ``1,4,7-9``."""
    seeds: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ConfigError(f"{option} {text!r}: {part!r} is no {what}; give such as 0-29 or 1,4,7")
        seeds += range(int(first), int(last or first) + 1)
    return tuple(seeds)


def _range(text: str) -> tuple[float, float] | None:
    """Read a range such as ``-1,1``."""
    if not text:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--input-range {text!r}: give two numbers with a comma, such as -1,1") from None
    return low, high


def _real_time(text: str) -> str | float | None:
    """Read what adapting costs: a number of predictions, or ``measured``."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


def _show(report: Report) -> None:
    """Print the results of one run, or of several in lockstep."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if "replicas" in report.record:
        from driftline.report import Run, summary_table

        console.print(summary_table([Run.of(report)]))
        _say_where(console, report)
        return
    table = Table(box=None, show_header=False, title_justify="left", title=str(report.record["name"]))
    for metric, value in report.results.items():
        table.add_row(metric, "-" if value is None else f"{value:.4f}".rstrip("0").rstrip("."))
    console.print(table)
    _say_where(console, report)


def _say_where(console: Console, report: Report) -> None:
    source = report.record.get("source")
    if isinstance(source, dict) and source.get("skipped"):
        console.print(f"skipped {source['skipped']} of {source['read']} records, such as:", soft_wrap=True)
        console.print(f"  {source['first_skipped'][0]}", soft_wrap=True, markup=False)
    if report.path is not None:
        console.print(f"recorded in {report.path}", soft_wrap=True)


def main() -> None:
    """Run the command line; a mistake by the user gives one line and exit code 2."""
    # A plain line in place of Python's two-line warning with a source path.
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    command = typer.main.get_command(app)
    try:
        code = command.main(standalone_mode=False)
    except DriftlineError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1 if isinstance(error, SourceError) else 2
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        # Typer may bring its own copy of click, so its errors are told by what they can do.
        if not hasattr(error, "format_message"):
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        code = 2
    sys.exit(code or 0)


def _one_line(error: Exception) -> str:
    """Return a usage error of the option parser in one line, with the nearest choice where it is a name."""
    message = " ".join(str(error.format_message()).split())  # type: ignore[attr-defined]
    wrong = sys.argv[1] if len(sys.argv) > 1 else ""
    if message.startswith("No such command") and "Did you mean" not in message:
        return str(unknown("command", wrong, sorted(c.name or "" for c in app.registered_commands)))
    return message
