"""Commands that run learners and adapters, and compare what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from driftline.commands.reading import Root, adapting_cost, number_range, values, whole_numbers

if TYPE_CHECKING:
    from rich.console import Console

    from driftline.stream.run import Report
    from driftline.stream.trackers import Tracker

Track = Annotated[
    list[str] | None,
    typer.Option(help="Send recorded values on: tensorboard:FOLDER, mlflow[:URI] or wandb[:PROJECT]; repeatable."),
]
Progress = Annotated[bool | None, typer.Option(help="Show a progress bar.  [default: on a terminal]")]


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
    disagreement: Annotated[
        float | None,
        typer.Option(help="Take an adapter back before training changes more than this share of its predictions."),
    ] = None,
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
        whole_numbers(seeds),
        values(grid),  # type: ignore[arg-type]
        number_range(input_range),
        compile,
        reset,  # type: ignore[arg-type]
        adapting_cost(real_time),
        source,
        values(source_set),
        window,
        guard,
        values(guard_set),
        disagreement,
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
        input_range=number_range(input_range),
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


def _trackers(addresses: list[str] | None) -> list[Tracker]:
    from driftline.stream.trackers import tracker

    return [tracker(address) for address in addresses or []]


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
