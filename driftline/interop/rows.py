"""Map-style datasets, whose items are read one by one: into memory, or when they are played."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from driftline.errors import DataError, InputError, SourceError
from driftline.interop import randomness

MEMORY = 2 << 30
"""Bytes up to which samples are held in memory, unless told otherwise."""


class Rows(Protocol):
    """What ``torch.utils.data.Dataset`` promises."""

    def __len__(self) -> int:
        """Return the number of items."""

    def __getitem__(self, index: int) -> object:
        """Return an item."""


@dataclass(frozen=True)
class Item:
    """A sample, with its label and task label where there are any."""

    x: Tensor
    y: Tensor | None
    task: int | None


def item(rows: Rows, index: int, where: str) -> Item:
    """Read an item: ``x``, ``(x, y)`` or ``(x, y, task)``.

    Raises
    ------
    DataError
        For anything else, naming what was found.
    SourceError
        When the dataset itself raises.
    """
    try:
        found = rows[index]
    except Exception as error:
        raise SourceError(f"{where}, item {index}: the dataset raised {type(error).__name__}: {error}") from error
    where = f"{where}, item {index}"
    if not isinstance(found, (tuple, list)):
        return Item(_sample(found, where), None, None)
    if len(found) == 1:
        return Item(_sample(found[0], where), None, None)
    if not 2 <= len(found) <= 3:
        kinds = ", ".join(type(part).__name__ for part in found)
        raise DataError(f"{where}: a tuple of {len(found)} ({kinds}); expected (x, y) or (x, y, task label)")
    x, y, *rest = found
    return Item(_sample(x, where), _label(y, where), _task(rest[0], where) if rest else None)


def _sample(x: object, where: str) -> Tensor:
    if not isinstance(x, (Tensor, np.ndarray, list, tuple, float, int, np.generic)):
        hint = "; give the dataset a transform that makes tensors, such as torchvision's ToTensor()"
        raise DataError(f"{where}: x is a {type(x).__name__}, not a tensor{hint}")
    try:
        x = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: x cannot become a tensor ({error})") from None
    x = x.float() if x.dtype == torch.float64 else x
    return x.reshape(1) if x.dim() == 0 else x


def _label(y: object, where: str) -> Tensor:
    if isinstance(y, dict):
        raise DataError(
            f"{where}: y is a dict of {', '.join(map(str, y))}, as for detection; only class indices and numbers "
            "can be labels"
        )
    try:
        label = torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: y, a {type(y).__name__}, cannot become a tensor ({error})") from None
    if label.is_floating_point():
        return label.float() if label.dtype == torch.float64 else label
    if label.is_complex() or label.dtype == torch.bool or label.numel() != 1:
        raise DataError(f"{where}: y has shape {tuple(label.shape)} and {label.dtype}; expected one class index")
    return label.reshape(()).long()


def _task(task: object, where: str) -> int:
    label = torch.as_tensor(task) if isinstance(task, (Tensor, np.ndarray, int, np.generic)) else None
    if label is None or label.numel() != 1 or label.is_floating_point():
        raise DataError(f"{where}: the third part, a {type(task).__name__}, is no task label")
    return int(label)


def draws(rows: Rows, where: str = "data") -> bool:
    """Whether reading an item draws from the global random generators, as augmentations do.

    Raises
    ------
    DataError, SourceError
        As :func:`item`.

    Examples
    --------
    >>> class Noisy(list):
    ...     def __getitem__(self, index):
    ...         return torch.rand(2)
    >>> draws([torch.zeros(2)]), draws(Noisy([0]))
    (False, True)
    """
    before = randomness.now()
    try:
        item(rows, 0, where)
        return not randomness.same(before, randomness.now())
    finally:
        randomness.set_now(before)


def fits(parts: Sequence[tuple[Rows, str]], memory: int) -> bool:
    """Whether all items of these datasets take at most ``memory`` bytes, judged by the first of each."""
    sizes = []
    for rows, where in parts:
        x = item(rows, 0, where).x
        sizes.append(len(rows) * math.prod(x.shape) * x.element_size())
    return sum(sizes) <= memory


@dataclass(frozen=True)
class Read:
    """Items read into memory: x (N, *input), y (N, ...) or None, tasks (N,) or None."""

    x: Tensor
    y: Tensor | None
    tasks: Tensor | None


def read(rows: Rows, where: str, index: Sequence[int] | None = None) -> Read:
    """Read items, all of one form.

    Raises
    ------
    DataError
        For an item that cannot be used, or of another form than the first.
    """
    wanted = range(len(rows)) if index is None else index
    if not len(wanted):
        raise DataError(f"{where}: no samples")
    first = item(rows, wanted[0], where)
    x = first.x.new_empty((len(wanted), *first.x.shape))
    y = None if first.y is None else first.y.new_empty((len(wanted), *first.y.shape))
    tasks = None if first.task is None else torch.empty(len(wanted), dtype=torch.long)
    for place, number in enumerate(wanted):
        got = first if place == 0 else item(rows, number, where)
        if _form(got) != _form(first):
            raise DataError(
                f"{where}, item {number}: {_form(got)}, but the first is {_form(first)}; bring all to one form"
            )
        x[place] = got.x
        if y is not None and got.y is not None:
            y[place] = got.y
        if tasks is not None and got.task is not None:
            tasks[place] = got.task
    return Read(x, y, tasks)


def _form(one: Item) -> str:
    y = "no label" if one.y is None else f"y of {tuple(one.y.shape)} {one.y.dtype}"
    task = "" if one.task is None else ", a task label"
    return f"x of {tuple(one.x.shape)} {one.x.dtype}, {y}{task}"


class ReadRows:
    """A transform that turns row numbers (B, 1) into the samples of those rows, read when they are wanted.

    Parameters
    ----------
    parts : sequence of Rows
        Datasets, numbered through.
    labels : Tensor, shape (N,), optional
        What the labels were said to be; each item read is held against them.
    name : str
        For messages.

    Raises
    ------
    InputError
        When called, for an item whose label is another one than said.
    """

    def __init__(self, parts: Sequence[Rows], labels: Tensor | None, name: str) -> None:
        self.rows: ConcatDataset[object] = ConcatDataset(parts)  # type: ignore[arg-type]
        self.labels, self.name = labels, name

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return samples (B, *input); what the dataset draws from global generators is keyed by the one given."""
        index = x.flatten().tolist()
        if generator is None:
            got = read(self.rows, self.name, index)
        else:
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
            with randomness.lent(randomness.seeds(seed)):
                got = read(self.rows, self.name, index)
        if self.labels is not None and (got.y is None or not torch.equal(got.y, self.labels[index])):
            raise InputError(
                f"{self.name}: the labels of items {index[:5]}... are not the dataset's `targets`; read it into memory "
                "(resident=True), which takes labels from the items"
            )
        return got.x.to(x.device)
