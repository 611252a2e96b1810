"""Commands about what there is: names, datasets, corrupted copies."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from driftline.commands.reading import Root, values, whole_numbers
from driftline.errors import unknown


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


def download_command(name: Annotated[str, typer.Argument(help="A dataset's name.")], data_root: Root = None) -> None:
    """Fetch a dataset."""
    from driftline import data

    typer.echo(f"{name} is in {data.download(name, data_root)}")


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
    folder = write_corrupted(images, out, names, whole_numbers(severity, "--severity", "severity"), seed, overwrite)
    typer.echo(f"wrote {len(names)} corruptions of {len(images)} images to {folder}")


def _settings(source: str) -> str:
    """Name the settings of a live source."""
    from driftline.stream.sources.named import SOURCES

    _, *names = inspect.signature(SOURCES[source]).parameters
    return f"--set {', '.join(names)}."
