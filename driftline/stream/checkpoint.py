"""State on disk: written atomically, verified by checksum, and never unpickled into code."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import cast

import torch

from driftline.errors import CheckpointError, CheckpointVersionError, RecordError

NAME = b"driftline checkpoint "
MAGIC = NAME + b"1\n"


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that after a crash at any instant either the old or the new content is there, whole.

    Raises
    ------
    RecordError
        When it cannot be written (disk full, read-only, no such folder); the old file is untouched then.
    """
    try:
        unfinished = path.with_name(f".{path.name}.unfinished")
        try:
            with unfinished.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> RecordError:
    """Return the error to raise when a file of a run cannot be written."""
    return RecordError(
        f"cannot write {path}: {error.strerror or error}; free space or choose another folder (out=...), "
        "then resume: what was recorded so far is kept"
    )


def save(path: str | Path, state: dict[str, object]) -> None:
    """Write a state (tensors, numbers, strings, None, and lists and dicts of them) to a checkpoint file.

    Raises
    ------
    RecordError
        When it cannot be written; an older checkpoint there is untouched then.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    digest = hashlib.sha256(payload).hexdigest().encode()
    write_atomic(Path(path), MAGIC + digest + b"\n" + payload)


def load(path: str | Path) -> dict[str, object]:
    """Read a checkpoint file.

    Raises
    ------
    CheckpointError
        When it is missing, damaged, or holds anything but plain values and tensors.
    CheckpointVersionError
        When another version of driftline wrote it in another format.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "state"
    >>> save(file, {"weight": torch.ones(2), "step": 3})
    >>> load(file)
    {'weight': tensor([1., 1.]), 'step': 3}
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    version, found, _ = content.removeprefix(NAME).partition(b"\n")
    if content.startswith(NAME) and found and version.isdigit() and not content.startswith(MAGIC):
        raise CheckpointVersionError(
            f"{path} has format {int(version)} of driftline's checkpoints, and this version reads format 1 only; go on "
            "with the version of driftline that wrote it"
        )
    if not content.startswith(MAGIC):
        raise CheckpointError(f"{path} is not a driftline checkpoint (or its beginning is damaged)")
    digest, _, payload = content[len(MAGIC) :].partition(b"\n")
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise CheckpointError(
            f"{path} is damaged: {len(payload)} bytes whose checksum is not the one written with them; "
            "restore it from a copy, or start the run again"
        )
    try:
        return cast(dict[str, object], torch.load(io.BytesIO(payload), weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} holds something other than tensors and plain values: {error}") from error
