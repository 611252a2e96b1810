"""Download named datasets with torchvision's downloaders, into the layouts that ``load`` reads."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from driftline.data import cifar
from driftline.data.arrays import Array
from driftline.data.catalogue import LOADERS, load, nearest
from driftline.data.files import DOWNLOADABLE, data_root
from driftline.errors import ConfigError, MissingDataError


def download(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """Fetch a dataset's files unless they are there, and check them by loading them.

    Parameters
    ----------
    name : str
        ``"mnist"``, ``"fashion-mnist"``, ``"usps"`` or ``"cifar-10"``.
    root : path, optional
        Folder to fill; made when missing. Default: ``$DRIFTLINE_DATA``, else ``~/.cache/driftline``.

    Returns
    -------
    Path
        The root; ``load(name, root)`` now works.

    Raises
    ------
    ConfigError
        The name cannot be downloaded, or torchvision is not installed.
    MissingDataError
        The download failed; the message has the reason.
    ChecksumError
        What is there, or what came, is not the published content.

    Notes
    -----
    CIFAR-10 comes as pickles, which torchvision reads after checking their MD5; driftline writes the binary version
    from the arrays. torchvision cuts USPS down to bytes, so its pixel values are read from the downloaded
    text instead.

    Examples
    --------
    >>> download("mnist", "data")  # doctest: +SKIP
    PosixPath('data')
    """
    if name not in DOWNLOADABLE:
        why = "has no downloader" if name in LOADERS else f"is unknown; {nearest(name)}".rstrip()
        raise ConfigError(f"download: {name!r} {why}; these can be downloaded: {', '.join(DOWNLOADABLE)}")
    folder = data_root(root)
    try:
        load(name, folder)
    except MissingDataError:
        _fetch(name, folder)
        load(name, folder)
    return folder


def _fetch(name: str, root: Path) -> None:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ConfigError('downloads need torchvision; pip install "driftline[vision]"') from error
    root.mkdir(parents=True, exist_ok=True)
    try:
        if name == "mnist":
            datasets.MNIST(root, download=True)
        elif name == "fashion-mnist":
            datasets.FashionMNIST(root, download=True)
        elif name == "usps":
            (root / "usps").mkdir(exist_ok=True)
            for train in (True, False):
                datasets.USPS(root / "usps", train=train, download=True)
            _write_usps(root / "usps")
        else:
            parts = [datasets.CIFAR10(root, train=train, download=True) for train in (True, False)]
            images, labels = (np.concatenate([getattr(part, key) for part in parts]) for key in ("data", "targets"))
            _write_cifar(root / cifar.FOLDER, images, labels)
    except (OSError, RuntimeError, ValueError) as error:
        raise MissingDataError(f"{name}: the download into {root} failed: {error}") from error


def _write_usps(folder: Path) -> None:
    """Text with values in [-1, 1] and labels 1..10 -> one npz with values in [0, 1] and labels 0..9."""
    from sklearn.datasets import load_svmlight_file

    arrays = {}
    for part, file in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        x, y = load_svmlight_file(str(folder / file), n_features=256, dtype=np.float32, zero_based=False)
        arrays[f"x_{part}"] = (x.toarray() + np.float32(1)) / np.float32(2)
        arrays[f"y_{part}"] = (y - 1).astype(np.uint8)
    unfinished = folder / "unfinished.npz"
    np.savez_compressed(unfinished, **arrays)
    unfinished.replace(folder / "usps_16x16.npz")


def _write_cifar(folder: Path, images: Array, labels: Array) -> None:
    """Images (60000, 32, 32, 3), the last 10 000 of them test -> the six files of the binary version."""
    folder.mkdir(exist_ok=True)
    for i, part in enumerate(cifar.PARTS):
        rows = slice(i * cifar.ROWS, (i + 1) * cifar.ROWS)
        pixels = images[rows].transpose(0, 3, 1, 2).reshape(cifar.ROWS, -1)
        unfinished = folder / "unfinished.bin"
        unfinished.write_bytes(np.hstack([labels[rows, None].astype(np.uint8), pixels]).tobytes())
        unfinished.replace(folder / f"{part}.bin")
