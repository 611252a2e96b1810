"""PyTorch's datasets and loaders as streams: map-style ones are finite and seekable, others are read as they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

from driftline.data.arrays import build
from driftline.errors import ConfigError, DataError
from driftline.interop.rows import MEMORY, ReadRows, Rows, draws, fits, read
from driftline.stream.dataset import Dataset as OurDataset
from driftline.stream.live import LiveStream, from_iterable
from driftline.stream.segment import Segment
from driftline.stream.stream import Stream


def from_torch(
    source: Dataset[Any] | DataLoader[Any],
    classes: int | Sequence[str] = (),
    *,
    test: Dataset[Any] | None = None,
    resident: bool | None = None,
    memory: int = MEMORY,
    seed: int = 0,
    name: str = "torch",
) -> Stream | LiveStream:
    """Make a stream of a PyTorch dataset or loader.

    Parameters
    ----------
    source : Dataset, IterableDataset or DataLoader
        Items are ``x`` or ``(x, y)``, those of a loader batches of them (torchdata's ``StatefulDataLoader`` too); y
        is a class index or a floating target. A map-style dataset makes a :class:`Stream` in the dataset's order,
        whose words (``shuffle``, ``corrupt``, ...) are there through :func:`dataset_of`; the others make a
        :class:`LiveStream`.
    classes : int or sequence of str
        How many classes there are, or their names. Default: of a map-style dataset, up to the largest label;
        otherwise none (regression or no labels).
    test : Dataset, optional
        Held-out data, map-style; only with a map-style source.
    resident : bool, optional
        Whether to read a map-style dataset into memory, or each item when it is played. Default: into memory when it
        fits and reading draws no random numbers. Read when played, random augmentations are keyed by seed and
        position; in memory, each sample keeps what was drawn once.
    memory : int
        Bytes that count as fitting.
    seed : int
        Keys every draw.
    name : str
        For records and messages.

    Raises
    ------
    DataError
        For items that cannot be used.
    ConfigError
        For anything but a dataset or loader, or a test set beside a source that is not map-style.

    Notes
    -----
    A live stream is resumed by reading its source again up to the position, which a loader that shuffles can only
    do with a ``generator=`` of its own, seeded anew; without one, going on from a position is refused.

    Examples
    --------
    >>> from torch.utils.data import TensorDataset
    >>> pairs = TensorDataset(torch.arange(6.0).unsqueeze(1), torch.arange(6) % 3)
    >>> stream = from_torch(pairs)
    >>> len(stream), stream.classes
    (6, ('0', '1', '2'))
    >>> [batch.y.tolist() for batch in from_torch(DataLoader(pairs, batch_size=4), classes=3).batches(3)]
    [[0, 1, 2], [0, 1, 2]]
    """
    if isinstance(source, DataLoader) or hasattr(source, "batch_sampler"):
        _no_test(test)
        return from_iterable(LoaderSamples(cast("DataLoader[Any]", source), name), classes, name, seed)
    if isinstance(source, IterableDataset):
        _no_test(test)
        return from_iterable(_Again(source), classes, name, seed)
    if not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        raise ConfigError(
            f"{name}: {type(source).__name__} is neither a dataset of PyTorch nor a loader; for other iterables there "
            "is driftline.from_iterable"
        )
    segment = dataset_of(source, classes, test=test, resident=resident, memory=memory, name=name)
    return Stream([segment.named(name)], seed, name)


def dataset_of(
    source: Dataset[Any],
    classes: int | Sequence[str] = (),
    *,
    test: Dataset[Any] | None = None,
    resident: bool | None = None,
    memory: int = MEMORY,
    name: str = "torch",
) -> Segment:
    """Return a map-style dataset as a segment, to be cut and mixed by scenarios; parameters as for :func:`from_torch`.

    Examples
    --------
    >>> from torch.utils.data import TensorDataset
    >>> pairs = TensorDataset(torch.arange(6.0).unsqueeze(1), torch.arange(6) % 3)
    >>> dataset_of(pairs).classes(0, 2).labels().tolist()
    [0, 2, 0, 2]
    """
    parts = {"train": (cast(Rows, source), name)}
    if test is not None:
        parts["test"] = (cast(Rows, test), f"{name}/test")
    for rows, where in parts.values():
        if len(rows) == 0:
            raise DataError(f"{where}: no samples")
    random = any(draws(rows, where) for rows, where in parts.values())
    if resident is None:
        resident = not random and fits(list(parts.values()), memory)
    labels = [str(c) for c in range(classes)] if isinstance(classes, int) else [str(c) for c in classes]
    if resident:
        whole = {key: read(rows, where) for key, (rows, where) in parts.items()}
        return Segment.of(_together({key: (r.x, r.y) for key, r in whole.items()}, labels, name))
    ys = {key: labels_of(rows, where) for key, (rows, where) in parts.items()}
    offset, numbers = 0, {}
    for key, (rows, _) in parts.items():
        numbers[key] = torch.arange(offset, offset + len(rows)).unsqueeze(1)
        offset += len(rows)
    known = [y for y in ys.values() if y is not None]
    reader = ReadRows([r for r, _ in parts.values()], torch.cat(known) if len(known) == len(ys) else None, name)
    whole_data = _together({key: (numbers[key], ys[key]) for key in parts}, labels, name)
    return Segment.of(whole_data).transform(reader, random=random)


def labels_of(rows: Rows, where: str) -> Tensor | None:
    """Return the labels of a dataset: its ``targets``, where it has them, else those of its items, all read once."""
    targets = getattr(rows, "targets", None)
    if targets is not None and len(targets) == len(rows):
        return torch.as_tensor(targets if isinstance(targets, Tensor) else list(targets))
    return read(rows, where).y


def _together(parts: Mapping[str, tuple[Tensor, Tensor | None]], classes: list[str], name: str) -> OurDataset:
    return build(name, parts, classes)


def _no_test(test: object) -> None:
    if test is not None:
        raise ConfigError("test= goes with a map-style dataset; for a live stream there is HeldOut(test=...)")


class _Again:
    """Begins an iterable dataset anew."""

    def __init__(self, source: IterableDataset[Any]) -> None:
        self.source = source

    def __call__(self) -> Iterator[object]:
        return iter(self.source)


class LoaderSamples:
    """The samples of a loader's batches, one by one."""

    def __init__(self, loader: DataLoader[Any], name: str) -> None:
        self.loader, self.name = loader, name

    def __call__(self) -> Iterator[object]:
        """Begin anew."""
        for number, batch in enumerate(self.loader):
            yield from self._cut(batch, number)

    def _cut(self, batch: object, number: int) -> Iterator[object]:
        where = f"{self.name}, batch {number} of the loader"
        if getattr(self.loader, "batch_size", 1) is None and getattr(self.loader, "batch_sampler", None) is None:
            yield tuple(batch) if isinstance(batch, list) else batch
        elif isinstance(batch, (tuple, list)) and len(batch) == 1:
            yield from self._cut(batch[0], number)
        elif isinstance(batch, Tensor):
            yield from batch
        elif isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
            x, y = batch
            if len(x) != len(y):
                raise DataError(f"{where}: {len(x)} samples and {len(y)} labels")
            yield from zip(x, y)
        else:
            parts = batch if isinstance(batch, (tuple, list)) else [batch]
            kinds = ", ".join(type(part).__name__ for part in parts)
            raise DataError(f"{where}: found {kinds}; expected a tensor x or a pair of tensors (x, y)")

    @property
    def repeats(self) -> bool:
        """Whether the order can be the same again."""
        sampler = getattr(self.loader, "sampler", None)
        return not isinstance(sampler, RandomSampler) or sampler.generator is not None
