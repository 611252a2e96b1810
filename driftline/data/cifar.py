"""CIFAR-10 from its binary version, whole or explicitly in part (Krizhevsky 2009)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from driftline.data.arrays import build
from driftline.data.files import KNOWN, advice, check_content, find_file, read_content
from driftline.errors import ChecksumError, ConfigError, MissingDataError
from driftline.stream.dataset import Dataset

FOLDER = "cifar-10-batches-bin"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_PARTS = tuple(f"data_batch_{i}" for i in range(1, 6))
PARTS = (*TRAIN_PARTS, "test_batch")
ROWS = 10_000
ROW_BYTES = 1 + 3 * 32 * 32


def cifar_10(root: Path, partial: bool | Mapping[str, int] = False) -> Dataset:
    """CIFAR-10 objects, 32x32 colour, 50 000 + 10 000; binary version in cifar-10-batches-bin.

    x is (N, 3, 32, 32) uint8. A part is ``data_batch_1.bin``, or its first N rows in
    ``data_batch_1_firstN.bin``, either with ``.gz``. ``partial=True`` accepts what is there and names the
    dataset "cifar-10-partial"; the source then says which rows of which parts were used, as
    ``partial={"data_batch_1": 10000, ...}``, which selects the same rows on any machine that has them.
    """
    folder = root / FOLDER
    found = {part: place for part in PARTS if (place := _find_part(folder, part)) is not None}
    rows = {part: ROWS for part in PARTS} if partial is False else _wanted(partial, found)
    short = [part for part, n in rows.items() if part not in found or found[part][1] < n]
    train = [part for part in TRAIN_PARTS if part in rows]
    if short or not train:
        raise MissingDataError(_incomplete(folder, found, short or list(TRAIN_PARTS), asked=partial is not False))
    chunks = {part: _read_part(*found[part], part)[:n] for part, n in rows.items()}
    parts = {"train": _samples([chunks[part] for part in train])}
    if "test_batch" in rows:
        parts["test"] = _samples([chunks["test_batch"]])
    whole = rows == {part: ROWS for part in PARTS}
    data = build("cifar-10" if whole else "cifar-10-partial", parts, CLASSES)
    return replace(data, source={} if partial is False else {"partial": rows})


def _wanted(partial: bool | Mapping[str, int], found: Mapping[str, tuple[Path, int]]) -> dict[str, int]:
    if partial is True:
        return {part: n for part, (_, n) in found.items()}
    if not isinstance(partial, Mapping):
        raise ConfigError(f"cifar-10: partial={partial!r}: expected true, false, or rows by part")
    for part, n in partial.items():
        if part not in PARTS or not isinstance(n, int) or not 0 < n <= ROWS:
            raise ConfigError(f"cifar-10: partial={{{part!r}: {n}}}: parts are {', '.join(PARTS)}, rows 1 to {ROWS}")
    return {part: partial[part] for part in PARTS if part in partial}


def _find_part(folder: Path, part: str) -> tuple[Path, int] | None:
    """Return the file of a part and its number of rows: the whole part, else the longest beginning of it."""
    whole = find_file(folder, f"{part}.bin")
    if whole is not None:
        return whole, ROWS
    named = re.compile(rf"{part}_first(\d+)\.bin(\.gz)?")
    paths = sorted(folder.glob(f"{part}_first*")) if folder.is_dir() else []
    starts = [(int(match[1]), path) for path in paths if (match := named.fullmatch(path.name))]
    if not starts:
        return None
    rows, path = max(starts)
    return path, rows


def _incomplete(folder: Path, found: Mapping[str, tuple[Path, int]], short: list[str], asked: bool) -> str:
    there = ", ".join(f"{path.name} ({rows} rows)" for path, rows in found.values()) or "no part"
    use = "" if asked or not found else "; to use just these rows, pass partial=True"
    return (
        f"cifar-10: {', '.join(short)} missing or short in {folder}, found {there}{use}; {advice('cifar-10', FOLDER)}"
    )


def _read_part(path: Path, rows: int, part: str) -> Tensor:
    content = read_content(path)
    if len(content) != rows * ROW_BYTES:
        raise ChecksumError(
            f"{path}: {len(content)} bytes where {rows} rows of {ROW_BYTES} need {rows * ROW_BYTES}; "
            "delete it and get it again"
        )
    key = f"{FOLDER}/{part}"
    if key in KNOWN and len(content) >= KNOWN[key][0]:
        check_content(memoryview(content)[: KNOWN[key][0]], key, path)
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(rows, ROW_BYTES).copy())


def _samples(chunks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of 1 label byte + 3072 bytes CHW -> images and labels."""
    x = torch.cat([chunk[:, 1:].reshape(-1, 3, 32, 32) for chunk in chunks])
    return x, torch.cat([chunk[:, 0] for chunk in chunks])
