"""The datasets that have a name, and ``load``, which reads any of them or a path."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from driftline.data import cifar, cifar_c, images, shifts, tables
from driftline.data.arrays import from_npz, with_source
from driftline.data.delimited import from_csv
from driftline.data.files import data_root
from driftline.data.folder import from_folder
from driftline.data.scaling import both_ends, scale
from driftline.errors import ConfigError
from driftline.stream.dataset import Dataset

LOADERS: dict[str, Callable[..., Dataset]] = {
    "digits": images.digits,
    "image-segments": tables.image_segments,
    "phishing": tables.phishing,
    "trump-approval": tables.trump_approval,
    "mnist": images.mnist,
    "fashion-mnist": images.fashion_mnist,
    "usps": images.usps,
    "qmnist": shifts.qmnist,
    "mnist-usps": shifts.mnist_usps,
    "cifar-10": cifar.cifar_10,
    "cifar10-c": cifar_c.cifar_10_c,
    "cifar-10-jpeg": shifts.cifar_10_jpeg,
    "elec2": tables.elec2,
    "weather": tables.weather,
    "outdoor": tables.outdoor,
    "keystroke": tables.keystroke,
}


def names() -> dict[str, str]:
    """Return the named datasets, each with one line that says what it is.

    Examples
    --------
    >>> names()["digits"]
    'Handwritten digits, 8x8 grey, 1 438 + 359; comes with scikit-learn, needs no files.'
    """
    return {name: (inspect.getdoc(loader) or "").partition("\n")[0] for name, loader in LOADERS.items()}


def load(
    name: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    split: str = "train",
    standardize: bool = False,
    input_range: Sequence[float] | None = None,
    **options: object,
) -> Dataset:
    """Load a dataset by name, or from the path of an ``.npz`` or ``.csv`` file or of a folder of images.

    Parameters
    ----------
    name : str or path
        A key of :func:`names`; a path ending in ``.npz`` (see :func:`from_npz`) or ``.csv`` (see :func:`from_csv`); or
        a folder (see :func:`from_folder`). A relative path is looked for here, then under the root.
    root : path, optional
        Folder of the data files. Default: ``$DRIFTLINE_DATA``, else ``~/.cache/driftline``.
    split : str
        ``"train"`` returns the train part with the others in ``splits``; another name returns that part alone.
    standardize : bool
        Return :meth:`Dataset.standardize` of that part.
    input_range : (low, high), optional
        Move inputs from [0, 1] to this range, such as (-1, 1): see :func:`scale`.
    **options
        Further arguments of the dataset: ``partial`` (cifar-10), ``corruption``, ``severity``, ``folder`` (cifar10-c),
        ``writers`` (qmnist), ``size`` (mnist-usps),
        ``classes`` (.npz), ``target``, ``kind``, ``columns`` and ``delimiter`` (.csv), ``size`` and ``mode`` (folders).

    Returns
    -------
    Dataset
        Its ``source`` is the arguments given here, ``root`` left out, so ``load(**data.source, root=...)``
        repeats it.

    Raises
    ------
    MissingDataError
        The files are not there; the message says which, where, and how to get them.
    ChecksumError
        A file is cut short, damaged, or not the published one.
    DataError
        A file's content cannot be used, or inputs are not in [0, 1] and ``input_range`` is given.
    ConfigError
        Unknown name, split or option, or both ``standardize`` and ``input_range``.

    Examples
    --------
    >>> data = load("digits")
    >>> data.x.shape, len(data.test), data.source
    (torch.Size([1438, 1, 8, 8]), 359, {'name': 'digits'})
    >>> load("digits", split="test").source
    {'name': 'digits', 'split': 'test'}
    """
    name = os.fspath(name)
    read, place = _reader(name, data_root(root))
    accepted = list(inspect.signature(read).parameters)[1:]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ConfigError(f"{name}: unknown option {', '.join(unknown)}; it takes {', '.join(accepted) or 'none'}")
    data = read(place, **options)
    data = with_source(data, {**options, **data.source, "name": name})
    if split != "train":
        if split not in data.splits:
            raise ConfigError(f"{name}: no split {split!r}; it has {', '.join(['train', *data.splits])}")
        data = data.splits[split]
    if input_range is not None:
        if standardize:
            raise ConfigError(f"{name}: standardize and input_range={input_range!r}: give one of them")
        return scale(data, *both_ends(input_range))
    return data.standardize() if standardize else data


def _reader(name: str, root: Path) -> tuple[Callable[..., Dataset], Path]:
    """Return the function that reads ``name``, and the folder or file it starts from."""
    if name in LOADERS:
        return LOADERS[name], root
    path = Path(name).expanduser()
    readers: dict[str, Callable[..., Dataset]] = {".npz": from_npz, ".csv": from_csv}
    if path.suffix not in readers and len(path.parts) == 1 and not path.is_dir():
        raise ConfigError(
            f"unknown dataset {name!r}; {nearest(name)}the names are {', '.join(LOADERS)}, "
            "or give the path of an .npz or .csv file or of a folder of images"
        )
    if not path.exists() and (root / path).exists():
        path = root / path
    return readers.get(path.suffix, from_folder), path


def nearest(name: str) -> str:
    """Return ``"did you mean 'x'? "`` for the closest dataset name, or nothing when none is close."""
    close = difflib.get_close_matches(name.lower().replace("_", "-"), LOADERS, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""
