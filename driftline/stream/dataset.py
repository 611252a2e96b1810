"""Datasets: tensors in memory, checked once, so that nothing downstream has to check them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from driftline.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples, labels and class names, held as tensors.

    Construction checks everything the runtime relies on later: shapes agree, values are finite, labels are
    in range.

    Parameters
    ----------
    x : Tensor, shape (N, *input)
        Samples. ``uint8`` means image bytes: they stay bytes in memory and reach a learner as ``float32``
        in [0, 1]. Floating and integer tensors reach it as they are.
    y : Tensor, shape (N,), optional
        Class indices in ``[0, len(classes))`` of any integer dtype (kept as ``int64``), or floating
        regression targets of shape (N, *target). None: no truth is known.
    classes : sequence of str, optional
        Class names. Default: ``"0"``, ``"1"``, ... up to the largest label. Empty for regression.
    name : str
        Used in records and messages.
    splits : mapping of str to Dataset
        Named further parts, such as ``"test"``.
    source : mapping
        What :func:`driftline.data.load` needs to load this dataset again (JSON values).

    Raises
    ------
    DataError
        When x or y cannot be used. The message names the first offending row.

    Examples
    --------
    >>> import torch
    >>> data = Dataset(torch.zeros(4, 3), torch.tensor([0, 1, 1, 0]), name="toy")
    >>> data
    Dataset('toy', x: (4, 3) torch.float32, 2 classes)
    >>> len(data), data.classes, data.input_shape
    (4, ('0', '1'), (3,))
    """

    x: Tensor
    y: Tensor | None = None
    classes: Sequence[str] = ()
    name: str = "data"
    splits: Mapping[str, Dataset] = field(default_factory=dict)
    source: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_samples(self.x, f"{self.name}.x")
        object.__setattr__(self, "classes", tuple(str(c) for c in self.classes))
        object.__setattr__(self, "splits", dict(self.splits))
        for name, split in self.splits.items():
            if split.input_shape != self.input_shape:
                raise DataError(
                    f"{self.name}: samples of the {name!r} split have shape {split.input_shape}, these "
                    f"{self.input_shape}; bring both to one shape"
                )
        if self.y is None:
            return
        if not isinstance(self.y, Tensor):
            raise DataError(f"{self.name}.y: expected a torch.Tensor, got {type(self.y).__name__}")
        labels = len(self.y) if self.y.dim() else 1
        if labels != len(self.x):
            raise DataError(f"{self.name}: {len(self.x)} samples in x but {labels} labels in y")
        if self.y.is_floating_point() and not self.classes:
            object.__setattr__(self, "y", check_samples(self.y, f"{self.name}.y", at_least=1).to(self.x.device))
            return
        y = check_labels(self.y, len(self.classes) or None, f"{self.name}.y").to(self.x.device)
        if not self.classes:
            object.__setattr__(self, "classes", tuple(str(c) for c in range(int(y.max()) + 1)))
        if len(self.classes) == 1:
            raise DataError(
                f"{self.name}: only one class ({self.classes[0]!r}), so there is nothing to tell apart; "
                "give data with at least two classes, or name all of them with classes=[...]"
            )
        object.__setattr__(self, "y", y)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        y = "no labels" if self.y is None else f"{len(self.classes)} classes" if self.classes else "targets"
        parts = "".join(f", {name}: {len(split)}" for name, split in self.splits.items())
        return f"Dataset({self.name!r}, x: {tuple(self.x.shape)} {self.x.dtype}, {y}{parts})"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x.shape[1:])

    @property
    def test(self) -> Dataset | None:
        """The ``"test"`` split, or None."""
        return self.splits.get("test")

    def rows(self, index: Tensor) -> Tensor:
        """Samples at ``index`` (n,) as a learner sees them: bytes become float32 in [0, 1]."""
        return as_input(self.x.index_select(0, index))

    def to(self, device: torch.device | str) -> Dataset:
        """Return the dataset and its splits with their tensors on ``device`` (itself when they are there already)."""
        target = torch.empty(0, device=device).device
        if self.x.device == target:
            return self
        splits = {name: split.to(target) for name, split in self.splits.items()}
        return replace(self, x=self.x.to(target), y=None if self.y is None else self.y.to(target), splits=splits)

    def with_x(self, x: Tensor) -> Dataset:
        """Return this dataset with other samples (its splits are kept as they are)."""
        return replace(self, x=x)

    def standardize(self) -> Dataset:
        """Return a float dataset whose features have zero mean and unit variance on *this* part.

        The same shift and scale go to every split. Constant features are only centred.

        Examples
        --------
        >>> import torch
        >>> Dataset(torch.tensor([[0.0], [2.0]]), torch.tensor([0, 1])).standardize().x.flatten().tolist()
        [-1.0, 1.0]
        """
        x = as_input(self.x)
        x = x if x.is_floating_point() else x.float()
        mean, std = x.mean(0), x.std(0, correction=0)
        std = torch.where(std > 0, std, torch.ones_like(std))
        splits = {k: s.with_x((as_input(s.x) - mean) / std) for k, s in self.splits.items()}
        source = {**self.source, "standardize": True} if self.source else {}
        return replace(self, x=(x - mean) / std, splits=splits, source=source)


def as_input(x: Tensor) -> Tensor:
    """Stored samples as a learner sees them: image bytes become float32 in [0, 1], the rest is unchanged."""
    return x.float().div_(255.0) if x.dtype == torch.uint8 else x


def check_samples(x: object, where: str, at_least: int = 2, shape: tuple[int, ...] | None = None) -> Tensor:
    """Return ``x`` if it is a non-empty, finite tensor of samples, else raise.

    Parameters
    ----------
    x : object
        What was given as samples, (N, *input).
    where : str
        Names the samples in messages.
    at_least : int
        Smallest number of dimensions.
    shape : tuple of int, optional
        Shape that one sample must have.

    Raises
    ------
    DataError
    """
    if not isinstance(x, Tensor):
        raise DataError(f"{where}: expected a torch.Tensor, got {type(x).__name__}; use torch.as_tensor(...)")
    if x.dim() < at_least:
        raise DataError(f"{where}: expected (samples, features...), got shape {tuple(x.shape)}")
    if len(x) == 0:
        raise DataError(f"{where}: no samples (shape {tuple(x.shape)})")
    if shape is not None and tuple(x.shape[1:]) != shape:
        raise DataError(f"{where}: samples of shape {tuple(x.shape[1:])}, expected {shape}")
    if x.is_complex() or x.dtype == torch.bool:
        raise DataError(f"{where}: dtype {x.dtype} is not supported; convert to float32")
    if x.is_floating_point() and not all_finite(x):
        flat = torch.isfinite(x).reshape(len(x), -1).all(1)
        row = int((~flat).nonzero()[0])
        raise DataError(f"{where}: NaN or Inf in row {row} ({int((~flat).sum())} rows in all); clean the data")
    return x


def check_labels(y: object, classes: int | None, where: str) -> Tensor:
    """Return ``y`` as int64 class indices if they are integers in ``[0, classes)``, else raise.

    Raises
    ------
    DataError
    """
    if not isinstance(y, Tensor):
        raise DataError(f"{where}: expected a torch.Tensor of class indices, got {type(y).__name__}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise DataError(f"{where}: class indices must be integers, got {y.dtype}; use y.long()")
    if y.dim() != 1:
        raise DataError(f"{where}: expected shape (samples,), got {tuple(y.shape)}")
    low, high = int(y.min()), int(y.max())
    if low < 0 or (classes is not None and high >= classes):
        bad = (y < 0) | (y >= (classes if classes is not None else high + 1))
        row = int(bad.nonzero()[0])
        limit = f"0..{classes - 1}" if classes is not None else "0 or more"
        raise DataError(f"{where}: label {int(y[row])} in row {row} is out of range; labels must be {limit}")
    return y.long()


def all_finite(x: Tensor) -> bool:
    """Whether every value is finite: one pass over the data, a second only when the sum overflows."""
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())
