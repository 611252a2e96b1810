"""The command line's part for edge devices: adapt, export, merge, status, rollback."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from driftline.commands.reading import shape_of, size, values
from driftline.errors import ConfigError, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn

    from driftline.adapters.collapse_guard import Detector
    from driftline.stream.edge import Prediction
    from driftline.stream.edge.serving import Player
    from driftline.stream.live import Source

State = Annotated[Path, typer.Argument(help="Folder of the loop's state.")]


def adapt_command(
    source: Annotated[
        str,
        typer.Option(
            help="A dataset, file.py:function, - for lines of JSON on standard input, or another live source such as "
            "kafka://host:9092/topic (`driftline list sources`)."
        ),
    ],
    state: Annotated[Path, typer.Option(help="Folder for state and log; made anew on it, the loop goes on.")],
    model: Annotated[str, typer.Option(help="Released weights such as resnet20, or file.py:function.")] = "resnet20",
    adapter: Annotated[str | None, typer.Option(help="A name that `driftline list adapters` shows.")] = None,
    preset: Annotated[
        str,
        typer.Option(help="In place of --adapter: fixed, statistics, last-layer, affine or low-rank, cheapest first."),
    ] = "statistics",
    latency: Annotated[float, typer.Option(help="Seconds in which a sample must be answered.")] = 0.1,
    memory: Annotated[str, typer.Option(help="What the process may take, such as 600MB.")] = "",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples of one adaptation.")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Samples predicted together.")] = None,
    when_late: Annotated[str, typer.Option(help="Without time to adapt: smaller, skip or background.")] = "smaller",
    queue: Annotated[int, typer.Option(min=1, help="Samples that may wait.")] = 64,
    overload: Annotated[str, typer.Option(help="When they are more: block, drop-oldest or drop-newest.")] = "block",
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between states written.")] = 300.0,
    bytes_per_day: Annotated[str, typer.Option(help="What may be written to disk in a day, such as 100MB.")] = "",
    guard: Annotated[
        bool | None, typer.Option(help="Roll back an adapter that goes astray.  [default: if it fits]")
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(help="River's drift detector, such as ADWIN, told 1 - confidence; its alarms are in the log."),
    ] = None,
    detector_set: Annotated[list[str] | None, typer.Option(help="Parameter of the detector, key=value.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch.  [default: its own choice]")] = None,
    quantize: Annotated[
        str | None, typer.Option(help="int8: predict in eight bits, adapt in float.  [default: float]")
    ] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Give a dataset's labels back as feedback.")] = False,
    port: Annotated[int | None, typer.Option(help="Answer Prometheus there (needs the 'edge' extra).")] = None,
    address: Annotated[str, typer.Option(help="Where --port listens; 0.0.0.0: on all networks.")] = "127.0.0.1",
    adapter_set: Annotated[list[str] | None, typer.Option(help="Adapter parameter, key=value.")] = None,
    source_set: Annotated[list[str] | None, typer.Option(help="Parameter of a live source, key=value.")] = None,
    shape: Annotated[str, typer.Option(help="Of a sample, such as 3,32,32: to plan memory and time with.")] = "",
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data files.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not print the answers.")] = False,
) -> None:
    """Answer a stream and adapt to it; answers go to standard output, what it is doing to standard error."""
    import torch

    from driftline import build
    from driftline.stream.edge import AdaptationLoop, StateStore
    from driftline.stream.edge.metrics_endpoint import serve_metrics
    from driftline.stream.edge.placed import Placed
    from driftline.stream.edge.presets import preset as chosen

    if threads is not None:
        torch.set_num_threads(threads)
    network = _model(model, data_root)
    way = chosen(preset)
    player = build.adapter(adapter, network, **values(adapter_set)) if adapter else way.make(network)
    samples, example = _source(source, data_root, labels, values(source_set))
    example = torch.zeros(shape_of(shape)) if example is None and shape else example
    if memory and example is None:
        raise ConfigError("--memory plans with a sample: give its --shape, or a dataset as --source")
    watching = _detector(detector, values(detector_set))
    usual = (16, 1) if adapter else (way.batch_size, way.window)
    loop = AdaptationLoop(
        player,
        samples,
        latency_budget=latency,
        state_dir=StateStore(state, bytes_per_day=size(bytes_per_day)),
        memory_budget=size(memory),
        shipped=network,
        example=example,
        guard=guard,
        detector=watching,
        quantize=quantize,  # type: ignore[arg-type]
        batch_size=batch_size or usual[0],
        window=window or usual[1],
        when_late=when_late,  # type: ignore[arg-type]
        queue=queue,
        overload=overload,  # type: ignore[arg-type]
        checkpoint_every=checkpoint_every,
        sink=None if quiet else print_answer,
    )
    if loop.plan is not None:
        print(loop.plan, file=sys.stderr)
    if port is not None:
        print(f"metrics at http://{address}:{serve_metrics(loop, port, address)}/metrics", file=sys.stderr)
    health = loop.run()
    said: dict[str, object] = {name: count for name, count in health.counts.items() if count}
    if isinstance(samples, Placed):
        said["source"] = samples.source.notes()
    print(json.dumps({"position": loop.position, **said}), file=sys.stderr)


def export_command(
    out: Annotated[Path, typer.Argument(help="File to write: .pt2 (torch.export) or .onnx (needs the 'onnx' extra).")],
    model: Annotated[str, typer.Option(help="As for adapt: the shipped model.")] = "resnet20",
    state: Annotated[
        Path | None, typer.Option(help="Folder of a loop's state.  [default: none, the model as shipped]")
    ] = None,
    generation: Annotated[int | None, typer.Option(help="Which state there.  [default: the newest whole one]")] = None,
    adapter: Annotated[str | None, typer.Option(help="As for adapt.")] = None,
    preset: Annotated[str, typer.Option(help="As for adapt.")] = "statistics",
    source: Annotated[str, typer.Option(help="A dataset or file.py:function, to try samples of.")] = "",
    shape: Annotated[str, typer.Option(help="Of a sample, such as 3,32,32: to try random ones.")] = "",
    tolerance: Annotated[
        float, typer.Option(min=0, help="The most by which a score may differ from the served.")
    ] = 1e-4,
    adapter_set: Annotated[list[str] | None, typer.Option(help="Adapter parameter, key=value, as for adapt.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data files.")] = None,
) -> None:
    """Write the model that a loop serves to a file, and compare what the file gives with what is served."""
    from driftline import build
    from driftline.stream.edge import export, samples_of, served_by
    from driftline.stream.edge.presets import preset as chosen

    network = _model(model, data_root)
    samples = _samples(source, shape, data_root)
    served: Player | nn.Module = network
    if state is None:
        if generation is not None:
            raise ConfigError("--generation needs --state, the folder it is in")
    else:
        samples = samples_of(state, generation) if samples is None else samples
        player = build.adapter(adapter, network, **values(adapter_set)) if adapter else chosen(preset).make(network)
        served = served_by(state, player, network, generation)
    if samples is None:
        raise ConfigError("no samples to try the file on; give a --source, or the --shape of a sample")
    done = export(served, out, samples, tolerance=tolerance)
    which = "the shipped model" if served is network else "the model as adapted"
    batch = "batches of any size" if done.any_batch else "single samples only"
    tried = ", ".join(map(str, done.sizes))
    typer.echo(
        f"{done.path}: {which}, {done.bytes} bytes, {batch}; scores differ from those served by at most "
        f"{done.difference:.2g} (tried on batches of {tried})"
    )


def status_command(state: State, as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Say how a loop is, from its folder."""
    from driftline.stream.edge.status import show, status

    found = status(state)
    typer.echo(json.dumps(found, indent=1) if as_json else show(found))


def rollback_command(
    state: State,
    shipped: Annotated[bool, typer.Option("--shipped", help="Back to the shipped model.")] = False,
    generation: Annotated[
        int | None, typer.Option(help="Back to this one.  [default: the one before the newest]")
    ] = None,
) -> None:
    """Reject the newest state, or states, of a stopped loop."""
    from driftline.stream.edge import roll_back

    typer.echo(roll_back(state, shipped, generation))


def merge_command(
    out: Annotated[Path, typer.Argument(help="File to write: a state_dict, for torch.load.")],
    states: Annotated[list[Path], typer.Argument(help="Folders of the devices' states, or copies of them.")],
) -> None:
    """Average what several devices have made of the same shipped model."""
    import io

    import torch

    from driftline.stream.checkpoint import write_atomic
    from driftline.stream.edge import merge

    content = io.BytesIO()
    torch.save(merge(states), content)
    write_atomic(out, content.getvalue())
    typer.echo(f"{out}: the average of {len(states)} devices, {len(content.getvalue())} bytes")


def print_answer(prediction: Prediction) -> None:
    """Print an answer as a line of JSON."""
    said: dict[str, object] = {"id": prediction.id, "label": prediction.label, "served": prediction.served}
    if prediction.error is not None:
        said["error"] = prediction.error
    print(json.dumps({**said, "ms": round(1000 * prediction.latency, 3)}), flush=True)


def _samples(source: str, shape: str, root: Path | None) -> Tensor | None:
    """Return a few samples (N, *input) of a source, or random ones of a shape; None for neither."""
    import itertools

    import torch

    from driftline.stream.dataset import as_input
    from driftline.stream.edge.samples import as_sample

    if source:
        samples, _ = _source(source, root, labels=False, settings={})
        items = itertools.islice(samples() if callable(samples) else samples, 8)
        return torch.stack([as_input(torch.as_tensor(as_sample(item).x)) for item in items])
    return torch.rand(8, *shape_of(shape), generator=torch.Generator().manual_seed(0)) if shape else None


def _source(name: str, root: Path | None, labels: bool, settings: dict[str, object]) -> tuple[Source, Tensor | None]:
    """Return a source by name, and a sample such as it gives, where that is known."""
    import torch

    from driftline import build
    from driftline.stream.edge.feeds import Played, feed
    from driftline.stream.edge.placed import Placed

    name = "jsonl:-" if name == "-" else name
    if build.is_source(name):
        named = build.source(name, **{"bad": "give", **settings})
        if named.source.bad == "raise":
            raise ConfigError("bad='raise': the loop answers every record; 'give' an error as its answer, or 'skip' it")
        example = None if named.shape is None else torch.zeros(named.shape, dtype=named.dtype)
        return Placed(named.source, name), example
    if settings:
        raise ConfigError(f"--source-set {settings}: {name} is no live source, and takes no parameters")
    samples = feed(name, root, labels)
    return samples, samples.dataset.x[0] if isinstance(samples, Played) else None


def _detector(name: str | None, settings: Mapping[str, object]) -> Detector | None:
    """Return the detector of River that is asked for."""
    if name is None:
        return None
    from driftline.build import call

    try:
        from river import base, drift
    except ImportError as error:
        raise ConfigError('--detector needs river; pip install "driftline[river]"') from error
    found = {key: kind for key, kind in vars(drift).items() if _is_a(kind, base.DriftDetector)}
    if name not in found:
        raise unknown("drift detector of River", name, found)
    made: Detector = call(found[name], name, settings)
    return made


def _is_a(kind: object, what: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, what)


def _model(name: str, root: Path | None) -> nn.Module:
    from torch import nn

    from driftline.stream.edge.feeds import function
    from driftline.weights import load_weights

    if ".py:" not in name:
        return load_weights(name, root)
    network = cast("Callable[[], nn.Module]", function(name))()
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{name} returned {type(network).__name__}, not a module")
    return network.eval()
