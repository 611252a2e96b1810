"""Writing the model as adapted to a file for other runtimes, and comparing what the file gives with what is served."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from driftline.adapters import Adapter
from driftline.adapters.settings import between
from driftline.adapters.wrapper import Wrapper
from driftline.errors import CheckpointError, ConfigError, ExportError
from driftline.stream.checkpoint import cannot_write
from driftline.stream.edge.serving import Player, describe
from driftline.stream.edge.state import innermost, read_state
from driftline.stream.modules import evaluate, probe
from driftline.weights import weights_hash

SIZES = (1, 2, 8)
"""Batches that a written file is tried on."""

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Parameters
    ----------
    path : Path
        The file.
    bytes : int
        Its size.
    any_batch : bool
        Whether it takes batches of any size; else single samples alone.
    sizes : tuple of int
        Batches that it was tried on.
    difference : float
        The most by which its scores differed from the served ones.
    """

    path: Path
    bytes: int
    any_batch: bool
    sizes: tuple[int, ...]
    difference: float


def export(player: Player | nn.Module, path: str | Path, example: Tensor, *, tolerance: float = 1e-4) -> Exported:
    """Write what a player predicts by as ``torch.export`` (``.pt2``) or ONNX (``.onnx``), and try the file.

    The file is read again and run on batches of 1, 2 and 8; only when its scores are the served ones does it get its
    name. The batch dimension is left open where the model allows it.

    Parameters
    ----------
    player : Adapter, Learner or nn.Module
        Not changed. What is exported is what ``predict`` does now, in evaluation mode: an adapter's model, its teacher
        (CoTTA, RoTTA), or the model with prototypes for its last layer (T3A).
    path : path
        Ends in ``.pt2`` or ``.onnx``; the second needs the ``onnx`` extra.
    example : Tensor, shape (*input) or (N, *input)
        Samples such as will come, to trace and to compare with; floats as the model takes them.
    tolerance : float
        The most by which any score may differ, 0 or more.

    Raises
    ------
    ConfigError
        For another suffix, a missing extra, or a tolerance below 0.
    ExportError
        When predictions are not a module's forward pass or depend on the batch they come in, when torch cannot export
        the model, or when the file gives other scores. No file is left then; one that was there before stays.
    InputError
        When the model does not take the samples.
    RecordError
        When the file cannot be written.

    Notes
    -----
    What normalises by the batch at hand (Tent, ``BatchNormAdapter("batch")``) gives each sample scores that depend on
    its neighbours, which no file can promise to another program: it is refused. Adapt running statistics instead
    (the preset ``statistics``), or a model with group or layer normalisation.

    Examples
    --------
    >>> import tempfile
    >>> from driftline.adapters import BatchNormAdapter
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    >>> adapter = BatchNormAdapter(model, "running")
    >>> scores = adapter.adapt(torch.randn(16, 4))
    >>> written = export(adapter, f"{tempfile.mkdtemp()}/model.pt2", torch.randn(4))
    >>> written.any_batch, written.sizes, written.difference < 1e-4
    (True, (1, 2, 8), True)
    """
    path = Path(path)
    formats: Mapping[str, tuple[Callable[[torch.export.ExportedProgram], bytes], Callable[[bytes], Forward]]] = {
        ".pt2": (_write_pt2, _read_pt2),
        ".onnx": (_write_onnx, _read_onnx),
    }
    if path.suffix not in formats:
        raise ConfigError(f"{path}: a model is exported to a file that ends in .pt2 (torch.export) or .onnx")
    between("tolerance", tolerance, 0)
    if path.suffix == ".onnx":
        _need_onnx()
    module = copy.deepcopy(_module(player)).eval().requires_grad_(False)
    x = _batch(module, example)
    served = _served(player)
    _demand_alone(served, x, tolerance)
    program, any_batch = _trace(module, x)
    write, read = formats[path.suffix]
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.unfinished{path.suffix}")
    sizes = SIZES if any_batch else (1,)
    try:
        with _quiet():
            unfinished.write_bytes(write(program))
            difference = _compare(read(unfinished.read_bytes()), served, x, sizes)
        if not difference <= tolerance:
            raise ExportError(
                f"{path} is not written: its scores differ from the served ones by up to {difference:.3g}, tolerance "
                f"is {tolerance:g}; raise the tolerance if that will do"
            )
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return Exported(path, path.stat().st_size, any_batch, sizes, difference)


def served_by(
    folder: str | Path, player: Player, shipped: nn.Module, generation: int | None = None
) -> Player | nn.Module:
    """Return what a loop serves by its state: the player as adapted, or the shipped model where that one answers.

    Parameters
    ----------
    folder : path
        The loop's, running or not; it is only read.
    player : Adapter or Learner
        As the loop was given it, new; takes over the state.
    shipped : nn.Module
        The model as it was shipped.
    generation : int, optional
        Which state. Default: the newest that is whole.

    Raises
    ------
    CheckpointError
        When there is no such state, or it is of another model or player.
    """
    state = read_state(folder, generation)
    if state.get("shipped") != weights_hash(shipped):
        raise CheckpointError(f"{folder} holds the state of another shipped model; give the one that was shipped")
    floor, found = cast("Mapping[str, object] | None", state["floor"]), state["player"]
    # Labels have shown the adapted model to be worse, or it was taken back by hand.
    if found is None or (floor is not None and not floor["adapted"]):
        return shipped
    # The loop may have put a guard of its own around the adapter.
    found = found if isinstance(player, Wrapper) else innermost(found)
    player.load_state_dict(cast("Mapping[str, object]", found))
    return player


def samples_of(folder: str | Path, generation: int | None = None) -> Tensor | None:
    """Return the last samples (N, *input) that a loop has answered, of those that its state holds; None without."""
    recent = cast("list[Tensor]", read_state(folder, generation)["recent"])
    return torch.cat(recent) if recent else None


def _module(player: Player | nn.Module) -> nn.Module:
    if isinstance(player, nn.Module):
        return player
    module = player.as_module() if isinstance(player, Adapter) else player.network()
    if module is None:
        raise ExportError(
            f"{type(player).__name__} cannot be exported: it does not predict by a forward pass of one network; "
            "export the shipped model, or adapt by another method"
        )
    return module


def _served(player: Player | nn.Module) -> Forward:
    if isinstance(player, nn.Module):
        return lambda x: evaluate(player, x)
    return player.predict


def _batch(module: nn.Module, example: Tensor) -> Tensor:
    """Return as many different samples as are tried at a time."""
    if not isinstance(example, Tensor) or not example.dim():
        raise ConfigError("example is no tensor of samples; give one such as will come")
    several = example if _takes(module, example[:1]) else example[None]
    probe(module, several)
    # Rolled along the last axis, as floats and as numbers of tokens.
    rows = [several[i % len(several)].roll(i // len(several), -1) for i in range(max(SIZES))]
    return torch.stack(rows)


def _takes(module: nn.Module, x: Tensor) -> bool:
    try:
        return evaluate(module, x).dim() == 2 and x.dim() > 1
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False


def _demand_alone(served: Forward, x: Tensor, tolerance: float) -> None:
    """Raise unless a sample's scores are the same whatever batch it comes in."""
    apart = (served(x) - torch.cat([served(x[i : i + 1]) for i in range(len(x))])).abs().max().item()
    if not apart <= max(tolerance, 1e-4):
        raise ExportError(
            f"scores depend on the batch that a sample comes in, by up to {apart:.3g}: the method normalises by the "
            "batch at hand, or predicts samples together. Export a model with running statistics (preset statistics), "
            "or the shipped one"
        )


def _trace(module: nn.Module, x: Tensor) -> tuple[torch.export.ExportedProgram, bool]:
    """Return the model's graph, and whether it takes any batch."""
    try:
        # Two samples, since 1 is often taken for a constant.
        return torch.export.export(module, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)), True
    except Exception as error:
        # torch raises errors of many kinds here, for a size that is fixed as for what cannot be traced at all.
        reason = error
    try:
        return torch.export.export(module, (x[:1],)), False
    except Exception as error:
        raise ExportError(f"torch.export cannot trace the model: {describe(error)}") from reason


def _compare(forward: Forward, served: Forward, x: Tensor, sizes: tuple[int, ...]) -> float:
    """Return the largest difference of any score; NaN where one side is not finite."""
    differences = [(forward(x[:size]) - served(x[:size])).abs().max() for size in sizes]
    return float(torch.stack(differences).max())


def _write_pt2(program: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _read_pt2(content: bytes) -> Forward:
    module = torch.export.load(io.BytesIO(content)).module()
    return torch.no_grad()(module)


def _need_onnx() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"ONNX needs the 'onnx' extra: pip install 'driftline[onnx]' ({error})") from error


def _write_onnx(program: torch.export.ExportedProgram) -> bytes:
    try:
        written = torch.onnx.export(program, input_names=["x"], output_names=["scores"], dynamo=True, verbose=False)
        assert written is not None
        return cast(bytes, written.model_proto.SerializeToString())
    except Exception as error:
        raise ExportError(f"torch.onnx cannot express the model: {describe(error)}") from error


def _read_onnx(content: bytes) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters print and warn of to themselves."""
    with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
        yield
