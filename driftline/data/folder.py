"""Folders of images, one folder per class -> Dataset. Needs Pillow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from driftline.data.arrays import build, with_source
from driftline.errors import ConfigError, DataError, MissingDataError
from driftline.stream.dataset import Dataset

SPLITS = {"train", "test", "val"}
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def from_folder(path: str | os.PathLike[str], size: int | Sequence[int] | None = None, mode: str = "RGB") -> Dataset:
    """Read images from a folder with one folder per class, or ``train``, ``test`` and ``val`` folders of such.

    Parameters
    ----------
    path : path
        The folder. Classes and images are taken in the sorted order of their names.
    size : int or (height, width), optional
        Resize every image to this (bilinear, antialiased, aspect ratio not kept). Default: keep, in which
        case all images must share one size.
    mode : "RGB" or "L"
        Colour (3 channels) or grey (1 channel); images are converted.

    Returns
    -------
    Dataset
        x is (N, channels, height, width) uint8. Classes are those of the train folder. The name is the folder's.

    Raises
    ------
    MissingDataError
        There is no such folder, or no image in it.
    DataError
        An image cannot be read or has another size, a class folder is empty, or a split has an unknown class.
    ConfigError
        Bad ``size`` or ``mode``, or Pillow is not installed.

    Notes
    -----
    Only the first frame of an animation is read; EXIF orientation is not applied.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for label in ("dark", "light"):
    ...         Path(folder, label).mkdir()
    ...         _ = Path(folder, label, "a.pgm").write_bytes(b"P5 2 1 255 " + bytes(2))
    ...     data = from_folder(folder, mode="L")
    >>> data.x.shape, data.classes
    (torch.Size([2, 1, 1, 2]), ('dark', 'light'))
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise MissingDataError(f"{folder}: no such folder; give a folder that holds one folder of images per class")
    if mode not in ("RGB", "L"):
        raise ConfigError(f"mode={mode!r}: choose 'RGB' or 'L'")
    shape = _height_width(size)
    places = _places(folder)
    classes = [child.name for child in _subfolders(places["train"])]
    parts = {split: _read_part(place, classes, shape, mode) for split, place in places.items()}
    options: dict[str, object] = {} if shape is None else {"size": shape}
    options |= {} if mode == "RGB" else {"mode": mode}
    data = build(folder.resolve().name, parts, classes)
    return with_source(data, {"name": str(path), **options})


def _height_width(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ConfigError(f"size={size!r}: expected a positive int, or (height, width)")
    return pair[0], pair[1]


def _subfolders(folder: Path) -> list[Path]:
    children = (child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    return sorted(children, key=lambda child: child.name)


def _places(folder: Path) -> dict[str, Path]:
    """Folder of each split; a class may be called "train" (CIFAR-100 has one) if it is not alone with splits."""
    children = {child.name: child for child in _subfolders(folder)}
    if "train" in children and set(children) <= SPLITS:
        return {"train": children.pop("train"), **children}
    return {"train": folder}


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def _read_part(folder: Path, classes: Sequence[str], shape: tuple[int, int] | None, mode: str) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and labels (N,) of one split."""
    files: list[tuple[Path, int]] = []
    for child in _subfolders(folder):
        if child.name not in classes:
            raise DataError(f"{child}: a class that train does not have ({', '.join(classes)}); rename or remove it")
        images = sorted(filter(_is_image, child.rglob("*")), key=lambda file: file.as_posix())
        if not images:
            raise DataError(f"{child}: no image of a known type ({', '.join(sorted(SUFFIXES))}); remove this folder")
        files += [(image, classes.index(child.name)) for image in images]
    if not files:
        raise MissingDataError(f"{folder}: no folders of images; expected one folder per class")
    first = _read_image(files[0][0], shape, mode)
    x = torch.empty((len(files), *first.shape), dtype=torch.uint8)
    for i, (file, _) in enumerate(files):
        image = _read_image(file, shape, mode)
        if image.shape != first.shape:
            raise DataError(
                f"{file}: {image.shape[1]}x{image.shape[2]} pixels (height x width), but {files[0][0]} has "
                f"{first.shape[1]}x{first.shape[2]}; pass size=(height, width)"
            )
        x[i] = image
    return x, torch.tensor([label for _, label in files])


def _read_image(file: Path, shape: tuple[int, int] | None, mode: str) -> Tensor:
    """One image as (C, H, W) uint8."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError('image folders need Pillow; pip install "driftline[vision]"') from error
    try:
        with Image.open(file) as image:
            stored = image.mode
            pixels = image.convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: not a readable image ({error}); replace or remove it") from error
    if stored[0] in "IF":
        raise DataError(f"{file}: pixel mode {stored!r} has more than 8 bits, which would be cut; convert it first")
    if shape is not None:
        pixels = pixels.resize(shape[::-1], Image.Resampling.BILINEAR)
    array = np.array(pixels).reshape(pixels.height, pixels.width, -1)
    return torch.from_numpy(array).permute(2, 0, 1)
