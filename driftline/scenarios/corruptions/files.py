"""Corrupted copies of a dataset on disk, in the format of CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from driftline.errors import ConfigError, DataError, RecordError
from driftline.scenarios.corruptions import STANDARD, get
from driftline.scenarios.corruptions.severity import to_levels
from driftline.stream.checkpoint import cannot_write, write_atomic
from driftline.stream.dataset import Dataset
from driftline.stream.reader import BLOCK
from driftline.stream.seeds import derive_seed, generator

RECORD = "corrupted.json"
"""Says what the files hold, which the original's do not."""


def write_corrupted(
    data: Dataset,
    folder: str | os.PathLike[str],
    names: Sequence[str] = STANDARD,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write a corrupted copy of a dataset: an array of bytes for each corruption, and the labels.

    Parameters
    ----------
    data : Dataset
        Images (N, C, H, W), bytes or in [0, 1], with class labels. Its splits are left aside.
    folder : path
        Gets ``<name>.npy`` for each corruption, uint8 of shape (len(severities) * N, H, W, C) with one severity after
        the other; ``labels.npy``, repeated for each severity; and ``corrupted.json``, which says what was written.
        Each file is put together in memory and appears whole or not at all.
    names : sequence of str
        Which corruptions; frost is taken from photographs where :func:`get` does.
    severities : sequence of int
        From 1 to 5, each once.
    seed : int
        Of all draws. An image's draws depend on it, on the corruption, the severity and the image's place alone, not on
        what else is written.
    overwrite : bool
        Replace files that are there.

    Returns
    -------
    Path
        The folder, which ``driftline.load("cifar10-c", folder=...)`` reads.

    Raises
    ------
    ConfigError
        For an unknown corruption, a severity that is no whole number from 1 to 5, or one given twice.
    DataError
        For data that is no images in [0, 1] with class labels.
    RecordError
        When the folder holds such files and ``overwrite`` is not given, or cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> import driftline
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_corrupted(driftline.load("digits").test, folder, ["fog"], [1, 5])
    ...     np.load(f"{folder}/fog.npy").shape
    (718, 8, 8, 1)
    """
    names, severities, folder = list(names), list(severities), Path(folder)
    _check(data, names, severities)
    there = sorted(path.name for path in folder.glob("*.npy")) if folder.is_dir() else []
    if there and not overwrite:
        raise RecordError(f"{folder} holds {', '.join(there)}; choose another folder, or replace them with overwrite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without it, what a stopped call leaves behind is not taken for what an earlier one wrote.
        (folder / RECORD).unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    notes = set()
    for name in names:
        blocks = []
        for severity in severities:
            corruption = get(name, severity, bytes=True)
            notes |= {corruption.note} - {""}
            for start in range(0, len(data), BLOCK):
                rows = torch.arange(start, min(start + BLOCK, len(data)), device=data.x.device)
                address = derive_seed(seed, "corrupt", name, severity, start // BLOCK)
                out = corruption(data.rows(rows), generator(address, data.x.device))
                blocks.append(to_levels(out).to(torch.uint8).movedim(1, -1).cpu())
        _save(folder / f"{name}.npy", torch.cat(blocks))
    assert data.y is not None
    labels = data.y.cpu().repeat(len(severities))
    _save(folder / "labels.npy", labels.to(torch.uint8) if len(data.classes) <= 256 else labels)
    record = {
        "data": dict(data.source) or {"name": data.name},
        "classes": list(data.classes),
        "corruptions": names,
        "severities": severities,
        "seed": seed,
        "notes": sorted(notes),
    }
    write_atomic(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    return folder


def _check(data: Dataset, names: Sequence[str], severities: Sequence[int]) -> None:
    for what, given in (("corruption", names), ("severity", severities)):
        if not given or len(set(given)) != len(given):
            raise ConfigError(f"{what}: {', '.join(map(str, given)) or 'none'}: give at least one, and each once")
    for severity in severities:
        if isinstance(severity, bool) or not isinstance(severity, int) or not 1 <= severity <= 5:
            raise ConfigError(f"severity {severity!r}: files hold whole severities from 1 (weak) to 5 (strong)")
    for name in names:
        get(name)
    if data.x.dim() != 4 or not (data.x.dtype == torch.uint8 or data.x.is_floating_point()):
        raise DataError(f"{data.name}: needs images (N, C, H, W) of bytes or in [0, 1], got {tuple(data.x.shape)}")
    if data.y is None or not data.classes:
        raise DataError(f"{data.name}: needs class labels, which the format holds")


def _save(path: Path, tensor: torch.Tensor) -> None:
    buffer = io.BytesIO()
    np.save(buffer, tensor.numpy(), allow_pickle=False)
    write_atomic(path, buffer.getvalue())
