"""CIFAR-10-C and copies in its format: arrays of bytes, one severity after the other (Hendrycks & Dietterich 2019)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from driftline.data.arrays import Array, build, to_tensor
from driftline.data.cifar import CLASSES
from driftline.errors import ChecksumError, ConfigError, DataError, MissingDataError
from driftline.stream.dataset import Dataset

FOLDER = "CIFAR-10-C"
ROWS = 50_000
RECORD = "corrupted.json"


def cifar_10_c(root: Path, corruption: str = "gaussian_noise", severity: int = 5, folder: str = FOLDER) -> Dataset:
    """CIFAR-10-C, corrupted CIFAR-10 test images, 10 000 for each corruption and severity; files in CIFAR-10-C.

    x is (N, C, H, W) uint8. ``folder``, under the root or absolute, may hold a copy that ``driftline corrupt`` wrote of
    any dataset: what its ``corrupted.json`` says it holds can then be asked for.
    """
    place = root / folder
    record = _record(place / RECORD)
    severities = record.get("severities", [1, 2, 3, 4, 5])
    written = record.get("corruptions")
    assert isinstance(severities, list)
    if severity not in severities or isinstance(severity, bool):
        raise ConfigError(f"cifar10-c: severity={severity!r}: {place} holds {', '.join(map(str, severities))}")
    if isinstance(written, list) and corruption not in written:
        raise ConfigError(f"cifar10-c: corruption={corruption!r}: {place} holds {', '.join(map(str, written))}")
    x, y = (_read(place, file) for file in (f"{corruption}.npy", "labels.npy"))
    if x.ndim != 4 or x.dtype != np.uint8 or y.ndim != 1 or y.dtype.kind not in "iu":
        raise DataError(
            f"{place}: {corruption}.npy is {x.shape} of {x.dtype} and labels.npy {y.shape} of {y.dtype}; expected "
            "bytes (rows, height, width, channels) and a class for each row"
        )
    if not record and x.shape != (ROWS, 32, 32, 3):
        raise ChecksumError(
            f"{place / corruption}.npy: shape {x.shape} where the published file has {(ROWS, 32, 32, 3)}; get it again"
        )
    if len(x) != len(y) or len(x) % len(severities):
        raise ChecksumError(
            f"{place}: {len(x)} images in {corruption}.npy and {len(y)} labels, for {len(severities)} severities; "
            "get both files again"
        )
    count = len(x) // len(severities)
    start = severities.index(severity) * count
    images = to_tensor(np.moveaxis(x[start : start + count], -1, 1), f"{place / corruption}.npy")
    labels = to_tensor(y[start : start + count], f"{place}/labels.npy")
    classes = record.get("classes", CLASSES)
    assert isinstance(classes, (list, tuple))
    return build("cifar10-c", {"train": (images, labels)}, classes)


def _record(path: Path) -> dict[str, object]:
    """Return what a folder that ``driftline corrupt`` wrote says of itself; the published one says nothing."""
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ChecksumError(f"{path}: damaged ({error}); write the folder again") from error
    kinds = {"severities": list, "corruptions": list, "classes": list}
    if not isinstance(record, dict) or any(not isinstance(record.get(key), kind) for key, kind in kinds.items()):
        raise ChecksumError(f"{path}: lacks {', '.join(kinds)}; write the folder again")
    return record


def _read(folder: Path, file: str) -> Array:
    """Return an array that is left on disk until it is sliced."""
    path = folder / file
    if not path.is_file():
        raise MissingDataError(
            f"cifar10-c: {file} not found in {folder}; unpack CIFAR-10-C (zenodo.org, record 2535967) into {FOLDER} of "
            "the folder that DRIFTLINE_DATA or --data-root (root=...) names, or make a copy with `driftline corrupt`"
        )
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ChecksumError(f"{path}: cut short or damaged ({error}); get it again") from error
    if not isinstance(array, np.ndarray):
        raise ChecksumError(f"{path}: not an array of the .npy format; get it again")
    return array
