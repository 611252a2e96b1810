"""Live streams: any Python iterable of samples, finite or endless, checked on the host as it comes in."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor

from driftline.errors import CheckpointError, ConfigError, InputError, SourceError
from driftline.stream.batch import Batch, SegmentInfo
from driftline.stream.dataset import all_finite, as_input
from driftline.stream.events import Id, Label, Labels, Sample
from driftline.stream.pending import PendingLabels
from driftline.stream.reading import Reading, StatefulSource
from driftline.stream.recipe import NEVER
from driftline.stream.seeds import derive_seed, generator

Source = Iterable[object] | Callable[[], Iterable[object]]


@dataclass(frozen=True, eq=False)
class LiveStream:
    """A stream of unknown length; made by :func:`from_iterable`."""

    source: Source
    classes: tuple[str, ...] = ()
    seed: int = 0
    name: str = "live"
    delay: int = 0
    fraction: float = 1.0
    dtype: torch.dtype = torch.float32
    reading: Reading = field(default_factory=lambda: Reading(10_000, None))
    samples: int | None = None
    """Where it ends at the latest."""
    input_shape: tuple[int, ...] | None = None
    """Shape of a sample, where it is known beforehand."""

    def batches(
        self, batch_size: int = 1, start: int = 0, device: torch.device | str | None = None
    ) -> Iterator[Batch | Labels]:
        """Yield the samples from ``start`` on in batches of ``batch_size``, each checked before it is given out.

        Labels that come by id are given out as soon as there are ``batch_size`` of them, or behind the batch of samples
        that was being filled when they came.

        Raises
        ------
        InputError
            For a sample that cannot be used: NaN or Inf, another shape or dtype than the first, a bad label.
        SourceError
            When the source itself raises.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: must be at least 1")
        check = Entrance(self.name, len(self.classes), self.dtype)
        info = SegmentInfo(0, self.name, 0, None)
        reading = self.reading
        reading.begin(start)
        items = self._items(reading.items)
        held: list[tuple[Tensor, Tensor | None, Id | None]] = []
        ended = self.samples is not None and reading.position >= self.samples
        while not ended:
            try:
                item = next(items)
                reading.items += 1
            except StopIteration:
                ended = True
            except Exception as error:
                where = f"position {reading.position + len(held)}"
                raise SourceError(
                    f"{self.name}: the source raised {type(error).__name__} at {where}: {error}; {len(held)} samples "
                    "before it were waiting for their batch and were not played"
                ) from error
            if not ended and isinstance(item, Label):
                reading.labels.append(check.label(item, reading.position + len(held)))
            elif not ended:
                held.append(check(item, reading.position + len(held)))
                ended = reading.position + len(held) == self.samples
            # What was read has been given out, or is a label in the state, whenever somebody else has the floor.
            if held and (len(held) == batch_size or ended):
                batch = _to_batch(held, reading.position, info, device)
                reading.position, held = batch.stop, []
                yield batch
            while reading.labels and not held and (len(reading.labels) >= batch_size or ended):
                yield reading.take_labels(batch_size)

    def _items(self, start: int) -> Iterator[object]:
        try:
            source = self.source() if callable(self.source) else self.source
            items = iter(source)
        except Exception as error:
            raise SourceError(f"{self.name}: the source did not open: {type(error).__name__}: {error}") from error
        if isinstance(source, StatefulSource):
            return items
        if start and items is source and not callable(self.source):
            raise ConfigError(
                f"{self.name}: cannot go back to position {start} of a one-way iterator; "
                "give from_iterable a list, a function that returns a fresh iterator, or a source with a state_dict"
            )
        if start and not getattr(self.source, "repeats", True):
            raise ConfigError(
                f"{self.name}: cannot go back to position {start} of a source that gives another order each time; "
                "a loader that shuffles needs a generator= of its own, with the same seed"
            )
        return itertools.islice(items, start, None)

    @property
    def pending(self) -> PendingLabels:
        """Samples whose labels are still to come by id."""
        return self.reading.pending

    def state_dict(self) -> dict[str, object]:
        """Return where reading has got to, with labels on their way and the source's own place if it has one."""
        source = self.source.state_dict() if isinstance(self.source, StatefulSource) else None
        return {"reading": self.reading.state_dict(), "source": source}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When only one of state and source has a place of its own.
        """
        saved = cast("Mapping[str, object] | None", state["source"])
        if (saved is None) == isinstance(self.source, StatefulSource):
            raise CheckpointError(f"{self.name}: the run on disk was read from another kind of source")
        if isinstance(self.source, StatefulSource) and saved is not None:
            self.source.load_state_dict(saved)
        self.reading.load_state_dict(cast("Mapping[str, object]", state["reading"]))

    def notes(self) -> dict[str, object]:
        """Return what a record can say of the source after the run: items read, and what the source itself counted."""
        own = getattr(self.source, "notes", None)
        labels = {**self.pending.counts, "unknown": self.pending.unknown, "waiting": len(self.pending)}
        return {"items": self.reading.items, "labels": labels, **(own() if callable(own) else {})}

    def first(self, samples: int) -> LiveStream:
        """Return the stream up to so many samples; labels that come by id behind the last of them are not heard."""
        if samples < 1:
            raise ConfigError(f"first({samples}): must be at least 1 sample")
        return replace(self, samples=samples)

    def delay_labels(self, samples: int) -> LiveStream:
        """Return the stream with every label ``samples`` samples late."""
        if samples < 0:
            raise ConfigError(f"delay_labels({samples}): a label cannot arrive before its sample")
        return replace(self, delay=samples)

    def label_fraction(self, fraction: float) -> LiveStream:
        """Return the stream with only this share of the labels arriving."""
        if not 0 <= fraction <= 1:
            raise ConfigError(f"label_fraction({fraction}): must be between 0 and 1")
        return replace(self, fraction=fraction)

    def without_labels(self) -> LiveStream:
        """Return the stream with no label ever reaching the learner."""
        return self.label_fraction(0.0)

    def due(self, batch: Batch) -> Tensor | None:
        """Return the position at which each label of a batch arrives, see :meth:`Stream.due`."""
        if self.delay == 0 and self.fraction == 1.0 and batch.labelled == len(batch):
            return None
        due = torch.arange(batch.position, batch.stop) + self.delay
        if batch.y is None:
            return torch.full_like(due, NEVER)
        if batch.labelled < len(batch):
            due[batch.y.cpu() < 0] = NEVER
        if self.fraction < 1:
            for i in range(len(batch)):
                rng = generator(derive_seed(self.seed, "label", batch.position + i))
                if float(torch.rand((), generator=rng)) >= self.fraction:
                    due[i] = NEVER
        return due

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Name of the one domain, see :attr:`Stream.domain_names`."""
        return (self.name,)

    @property
    def domains_shown(self) -> list[tuple[int, ...]]:
        """The one domain of the one segment, see :attr:`Stream.domains_shown`."""
        return [(0,)]

    def domains(self, batch: Batch) -> Tensor:
        """Return the domain of each sample of a batch, see :meth:`Stream.domains`."""
        return torch.zeros(len(batch), dtype=torch.long)

    def describe(self) -> dict[str, object]:
        """Return what a record can say of a live stream."""
        return {
            "scenario": self.name,
            "live": True,
            "seed": self.seed,
            "delay": self.delay,
            "fraction": self.fraction,
            **({} if self.samples is None else {"samples": self.samples}),
        }


def from_iterable(
    source: Source,
    classes: int | Sequence[str] = (),
    name: str = "live",
    seed: int = 0,
    *,
    capacity: int = 10_000,
    expire_after: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> LiveStream:
    """Make a stream of any Python iterable, finite or endless.

    Parameters
    ----------
    source : iterable or callable
        Gives ``x`` or ``(x, y)`` for one sample at a time: x a tensor, array or list of shape (*input) (uint8
        means image bytes), y a class index, a regression target (float) or None when the truth is unknown.
        A function that returns such an iterable can be resumed, and so can a source that has ``state_dict`` and
        ``load_state_dict`` (:mod:`driftline.stream.sources`). Where labels come later, it gives
        :class:`~driftline.stream.Sample` with an ``id``, and :class:`~driftline.stream.Label` with the same.
    classes : int or sequence of str
        How many classes there are, or their names; 0 for none (regression or no labels).
    name : str
        For records and messages.
    seed : int
        Keys the draws of :meth:`LiveStream.label_fraction`.
    capacity : int
        Most samples that wait for a label by id; beyond it the oldest is given up and counted.
    expire_after : int, optional
        Samples after which one is given up whose label has not come.
    dtype : torch.dtype
        What float64 inputs become.

    Examples
    --------
    >>> import driftline
    >>> from driftline import from_iterable
    >>> readings = (([float(i), 1.0], i % 2) for i in range(5))
    >>> [batch.y.tolist() for batch in from_iterable(readings, classes=2).batches(2)]
    [[0, 1], [0, 1], [0]]

    Labels that come later, the first of them for the second sample:

    >>> from driftline.stream import Label, Sample
    >>> from driftline.learners import NearestClassMean
    >>> events = [Sample([0.0], id="a"), Sample([1.0], id="b"), Label("b", 1), Sample([2.0], id="c"), Label("a", 0)]
    >>> stream = from_iterable(events, classes=2)
    >>> for step in driftline.play(stream, NearestClassMean(classes=2), metrics=[driftline.metrics.OnlineAccuracy()]):
    ...     print(step.position, step.batch.y)
    1 None
    2 None
    2 tensor([1])
    3 None
    3 tensor([0])
    >>> stream.pending.counts["answered"], len(stream.pending)
    (2, 1)
    """
    names = [str(c) for c in range(classes)] if isinstance(classes, int) else [str(c) for c in classes]
    if not (callable(source) or isinstance(source, Iterable)):
        raise ConfigError(
            f"from_iterable needs an iterable or a function that returns one, got {type(source).__name__}"
        )
    if len(names) == 1 or (isinstance(classes, int) and classes < 0):
        raise ConfigError(f"classes={classes!r}: give at least two, or none for regression and unlabelled streams")
    if not dtype.is_floating_point:
        raise ConfigError(f"dtype={dtype}: float64 inputs can become another floating dtype only")
    return LiveStream(source, tuple(names), seed, name, dtype=dtype, reading=Reading(capacity, expire_after))


class Entrance:
    """Checks samples as they come in, against the first."""

    def __init__(self, name: str, classes: int, dtype: torch.dtype = torch.float32) -> None:
        self._name, self._classes, self._dtype = name, classes, dtype
        self._like: Tensor | None = None
        self._target: torch.Size | None = None

    def label(self, label: Label, position: int) -> tuple[Id, Tensor]:
        """Return a label that came by id."""
        where = f"{self._name}, position {position}, the label of {label.id!r}"
        return _name(label.id, where), self._label(label.y, where)

    def __call__(self, item: object, position: int) -> tuple[Tensor, Tensor | None, Id | None]:
        """Return a sample's x, y and id, as tensors; raise InputError when it cannot be used."""
        where = f"{self._name}, position {position}"
        name = None
        if isinstance(item, Sample):
            name, item = item.id, (item.x, item.y)
        x, y = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        x = self._tensor(x, where)
        if self._like is None:
            self._like = x.new_empty(x.shape)
        if x.shape != self._like.shape or x.dtype != self._like.dtype:
            raise InputError(
                f"{where}: sample of shape {tuple(x.shape)} and {x.dtype}, but the stream began with "
                f"{tuple(self._like.shape)} and {self._like.dtype}; convert it in the source"
            )
        if x.is_floating_point() and not all_finite(x):
            raise InputError(f"{where}: NaN or Inf in x; drop or repair such samples in the source")
        return x, None if y is None else self._label(y, where), None if name is None else _name(name, where)

    def _tensor(self, x: object, where: str) -> Tensor:
        try:
            # Python's floats are float64, which as_tensor would round.
            x = torch.as_tensor(x, dtype=self._dtype if _of_floats(x) else None)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{where}: x cannot become a tensor ({error})") from None
        if x.dtype == torch.float64:
            x = x.to(self._dtype)
        if x.dim() == 0 or x.numel() == 0 or x.is_complex() or x.dtype == torch.bool:
            raise InputError(f"{where}: x has shape {tuple(x.shape)} and {x.dtype}; expected a non-empty numeric array")
        return x

    def _label(self, y: object, where: str) -> Tensor:
        try:
            label = torch.as_tensor(y)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{where}: label {y!r} cannot become a tensor ({error})") from None
        if self._classes == 0:
            if not label.is_floating_point():
                raise InputError(
                    f"{where}: integer label {y!r}, but no classes were given; from_iterable(..., classes=N)"
                )
            if not all_finite(label):
                raise InputError(f"{where}: NaN or Inf in y")
            self._target = label.shape if self._target is None else self._target
            if label.shape != self._target:
                raise InputError(
                    f"{where}: target of shape {tuple(label.shape)}, but the stream began with {tuple(self._target)}"
                )
            return label.float() if label.dtype == torch.float64 else label
        if label.dim() or label.is_floating_point() or label.dtype == torch.bool:
            raise InputError(f"{where}: label {y!r} is not a class index")
        if not 0 <= int(label) < self._classes:
            raise InputError(f"{where}: label {int(label)} is out of range 0..{self._classes - 1}")
        return label.long()


def _of_floats(x: object) -> bool:
    return isinstance(x, (list, tuple)) and any(isinstance(value, float) for value in x)


def _name(name: object, where: str) -> Id:
    if isinstance(name, (int, str)) and not isinstance(name, bool):
        return name
    raise InputError(f"{where}: id {name!r} is neither an integer nor a string")


def _to_batch(
    held: list[tuple[Tensor, Tensor | None, Id | None]],
    position: int,
    info: SegmentInfo,
    device: torch.device | str | None,
) -> Batch:
    x = as_input(torch.stack([x for x, _, _ in held]))
    labels = [y for _, y, _ in held]
    ids = tuple(name if y is None else None for _, y, name in held)
    known = [y for y in labels if y is not None]
    y = None
    if known:
        if known[0].is_floating_point() and len(known) < len(labels):
            raise InputError(
                f"{info.name}, position {position}: regression targets must be given for all samples or none"
            )
        y = torch.stack([torch.tensor(-1) if label is None else label for label in labels])
    if device is not None:
        x, y = x.to(device), None if y is None else y.to(device)
    return Batch(x, y, position, info, len(known), ids=ids if any(name is not None for name in ids) else None)
