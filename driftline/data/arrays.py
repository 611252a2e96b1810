"""Tensors, ``.npz`` and idx files -> Dataset, with errors that name the file."""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from driftline.data.files import read_content
from driftline.errors import ChecksumError, DataError, MissingDataError
from driftline.stream.dataset import Dataset

Array = npt.NDArray[np.generic]
Part = tuple[Tensor, Tensor | None]

# The third byte of an idx file's magic number.
_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

_STORED_AS = {kind: kind for kind in ("b1", "u1", "i1", "i2", "i4", "i8", "f2", "f4")}
_STORED_AS |= {"u2": "i4", "u4": "i8", "f8": "f4"}


def tensors(
    x: Tensor,
    y: Tensor | None = None,
    classes: Sequence[str] = (),
    test: tuple[Tensor, Tensor] | None = None,
    name: str = "tensors",
) -> Dataset:
    """Make a dataset of tensors in memory, with an optional test part.

    Parameters
    ----------
    x : Tensor, shape (N, *input)
        Samples; ``uint8`` means image bytes, which reach a learner as float32 in [0, 1].
    y : Tensor, shape (N,), optional
        Class indices of any integer dtype, or floating targets. None: no truth is known.
    classes : sequence of str, optional
        Class names. Default: ``"0"``, ``"1"``, ... up to the largest label of both parts.
    test : tuple of Tensor, optional
        ``(x, y)`` of the test part, of the same input shape and dtype.
    name : str
        Used in records and messages.

    Returns
    -------
    Dataset
        The train part; the test part is ``splits["test"]``. Its ``source`` is empty: a run record cannot
        repeat data that exists only in memory.

    Raises
    ------
    DataError
        When the tensors cannot be used, or the two parts do not agree.

    Examples
    --------
    >>> import torch
    >>> data = tensors(torch.rand(6, 3), torch.arange(6) % 2, test=(torch.rand(3, 3), torch.tensor([0, 1, 2])))
    >>> data.classes, len(data.test)
    (('0', '1', '2'), 3)
    """
    return build(name, {"train": (x, y)} | ({} if test is None else {"test": test}), classes)


def build(name: str, parts: Mapping[str, Part], classes: Sequence[str] = ()) -> Dataset:
    """Return the part ``"train"`` as a dataset whose splits are the other parts.

    Raises
    ------
    DataError
    """
    classes = classes or _classes([y for _, y in parts.values()])
    train, *others = (Dataset(x, y, classes, _part_name(name, key)) for key, (x, y) in parts.items())
    for other in others:
        if (other.input_shape, other.x.dtype) != (train.input_shape, train.x.dtype):
            raise DataError(
                f"{other.name}: samples of shape {other.input_shape} and {other.x.dtype}, but {name} has "
                f"{train.input_shape} and {train.x.dtype}; bring all parts to one shape and dtype"
            )
    return replace(train, splits=dict(zip(list(parts)[1:], others)))


def _classes(labels: Sequence[Tensor | None]) -> list[str]:
    """Class names up to the largest label of all parts; none for targets, and where Dataset will complain."""
    integer = [y for y in labels if isinstance(y, Tensor) and len(y) and not (y.is_floating_point() or y.is_complex())]
    return [str(c) for c in range(max((int(y.max()) for y in integer), default=-1) + 1)]


def _part_name(name: str, part: str) -> str:
    return name if part == "train" else f"{name}/{part}"


def with_source(data: Dataset, source: Mapping[str, object]) -> Dataset:
    """Return ``data`` and its splits with the arguments that load each of them again, as JSON values."""
    plain = json.loads(json.dumps(dict(source)))
    splits = {key: replace(split, source={**plain, "split": key}) for key, split in data.splits.items()}
    return replace(data, source=plain, splits=splits)


def to_tensor(array: Array, where: str) -> Tensor:
    """Return an array as a tensor of its own, in native byte order.

    float64 is narrowed to float32, which models use; uint16 and uint32, for which torch has few kernels, are widened.

    Raises
    ------
    DataError
    """
    dtype = _STORED_AS.get(f"{array.dtype.kind}{array.dtype.itemsize}")
    if dtype is None:
        raise DataError(f"{where}: dtype {array.dtype} cannot be a tensor; store numbers (class indices for labels)")
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


def from_npz(path: str | os.PathLike[str], classes: Sequence[str] = ()) -> Dataset:
    """Read a dataset from a NumPy ``.npz`` file.

    Parameters
    ----------
    path : path
        File with arrays ``x`` and ``y``, or ``x_train``, ``y_train`` and optionally ``x_test``, ``y_test``.
        Integer y are classes, floating y of shape (N, *target) numbers to be predicted. A file with ``x`` alone has no
        labels. Other arrays are ignored. float64 is narrowed to float32.
    classes : sequence of str, optional
        Class names, by index.

    Returns
    -------
    Dataset
        Named like the file.

    Raises
    ------
    MissingDataError
        There is no such file.
    ChecksumError
        The file is cut short or damaged.
    DataError
        The arrays are not there or cannot be used. Pickled (object) arrays are never read.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/toy.npz", x=np.zeros((4, 2)), y=np.array([0, 1, 0, 1]))
    ...     data = from_npz(f"{folder}/toy.npz", classes=["off", "on"])
    >>> data.name, data.x.dtype, data.classes
    ('toy', torch.float32, ('off', 'on'))
    """
    file = Path(path).expanduser()
    arrays = read_npz(file)
    suffix = "_train" if "x_train" in arrays else ""
    if f"x{suffix}" not in arrays or (f"y{suffix}" not in arrays and set(arrays) != {f"x{suffix}"}):
        raise DataError(
            f"{file}: found arrays {', '.join(sorted(arrays)) or '(none)'}; expected x and y, or x_train and y_train "
            "(and x_test, y_test), or x alone for data without labels"
        )
    parts = {"train": _part(arrays, suffix, file)}
    if "x_test" in arrays:
        parts["test"] = _part(arrays, "_test", file)
    options: dict[str, object] = {"classes": list(classes)} if classes else {}
    return with_source(build(file.stem, parts, classes), {"name": str(path), **options})


def _part(arrays: Mapping[str, Array], suffix: str, file: Path) -> Part:
    x, y = arrays[f"x{suffix}"], arrays.get(f"y{suffix}")
    labels = None if y is None else to_tensor(y, f"{file}: y{suffix}")
    return to_tensor(x, f"{file}: x{suffix}"), labels


def read_npz(file: Path) -> dict[str, Array]:
    """Return the arrays of an ``.npz`` file, none of them unpickled.

    Raises
    ------
    MissingDataError, ChecksumError, DataError
    """
    if not file.is_file():
        raise MissingDataError(f"{file}: no such file; give the path of an .npz file written by numpy.savez")
    if not zipfile.is_zipfile(file):
        raise ChecksumError(f"{file}: not an .npz file, or one cut short; write it again with numpy.savez")
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, RuntimeError, OSError) as error:
        raise ChecksumError(f"{file}: damaged or unreadable ({error}); write it again with numpy.savez") from error
    except ValueError as error:
        raise DataError(f"{file}: cannot be read ({error}); store plain numeric arrays") from error


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Read one idx file (the format of MNIST and its relatives), plain or ``.gz``.

    Parameters
    ----------
    path : path
        The file. Big-endian integers and floats of any number of dimensions are understood.

    Returns
    -------
    Tensor
        Its content; float64 is narrowed to float32.

    Raises
    ------
    MissingDataError
        There is no such file.
    ChecksumError
        The gzip data is damaged, or the content is shorter or longer than its header says.
    DataError
        It is not an idx file.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "labels-idx1-ubyte")
    ...     _ = file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     read_idx(file).tolist()
    [7, 2, 1]
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingDataError(f"{file}: no such file; give the path of an idx file, plain or .gz")
    return parse_idx(read_content(file), file)


def parse_idx(content: bytes, path: Path) -> Tensor:
    """Return the tensor in the content of an idx file; ``path`` is for messages.

    Raises
    ------
    ChecksumError, DataError
    """
    head = content[:4]
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_DTYPES:
        raise DataError(f"{path}: begins with {head!r}, which is not an idx file's magic number; get the file again")
    start = 4 + 4 * head[3]
    dtype = np.dtype(_IDX_DTYPES[head[2]])
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    expected = start + dtype.itemsize * math.prod(shape)
    if len(content) != expected:
        raise ChecksumError(
            f"{path}: {len(content)} bytes where its header, shape {shape}, needs {expected}; "
            "delete it and get it again"
        )
    return to_tensor(np.frombuffer(content, dtype, offset=start).reshape(shape), str(path))
