"""River's data sets, generators and readers as streams, with labels that come as River's evaluation lets them come."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from river.datasets import base as datasets

from driftline.errors import ConfigError, InputError
from driftline.stream.events import Label, Sample
from driftline.stream.live import LiveStream, from_iterable

Row = Mapping[Hashable, Any]
Moment = str | Callable[[Any], Any]
Delay = Any
"""A constant, the name of a feature, or ``delay(x, y)``; None from such a function: the label never comes."""


def stream(
    dataset: Iterable[tuple[Any, ...]] | Callable[[], Iterable[tuple[Any, ...]]],
    classes: Sequence[Hashable] | None = None,
    features: Sequence[Hashable] | None = None,
    *,
    moment: Moment | None = None,
    delay: Delay = None,
    name: str | None = None,
    dtype: torch.dtype = torch.float64,
    capacity: int = 10_000,
    expire_after: int | None = None,
) -> LiveStream:
    """Make a stream of a data set of River, or of anything that gives ``(x, y)`` with a dictionary x.

    With ``moment`` or ``delay`` a sample is predicted when it comes and its label follows at ``moment + delay``, in the
    order of ``river.stream.simulate_qa``: before the first sample whose moment is not earlier, and after the last
    sample whatever is left. Where River's order depends on the moments coming in order when the delay is a constant,
    labels here are always ordered by when they are due.

    Parameters
    ----------
    dataset : iterable or callable
        Gives ``(x, y)`` or ``(x, y, extra)``, of which the extra part is not used. A one-way iterator can be played
        once; a function that returns one can be resumed.
    classes : sequence, optional
        The labels of the classes, in the order of their indices; ``()`` for numbers to predict. Default: for River's
        own classification data sets, the labels in sorted order, which reads the data once.
    features : sequence, optional
        Which entries of x are used, in this order. Default: those of the first sample. An entry that a sample lacks is
        0.
    moment : str or callable, optional
        When a sample comes: the name of an entry of x, or ``moment(x)``. Default: its number in the stream.
    delay : optional
        A constant (such as a number of samples, or a ``timedelta``), the name of an entry of x, or ``delay(x, y)``,
        which returns None for a label that never comes.
    name : str, optional
        For records and messages.
    dtype : torch.dtype
        Of the values; River's own are float64.
    capacity, expire_after
        See :func:`driftline.from_iterable`.

    Raises
    ------
    ConfigError
        When the classes are not known.

    Examples
    --------
    >>> import driftline
    >>> from river import datasets, metrics, naive_bayes
    >>> from driftline.interop import river
    >>> phishing = river.stream(datasets.Phishing(), delay=50)
    >>> learner = river.RiverLearner(naive_bayes.GaussianNB(), classes=[False, True])
    >>> accuracy = river.RiverMetric(metrics.Accuracy())
    >>> report = driftline.run(phishing, learner, metrics=[accuracy])
    >>> report.results["river_accuracy"] > 0.8
    True
    """
    if isinstance(dataset, datasets.Dataset):
        classes = _classes(dataset) if classes is None else classes
        name = type(dataset).__name__ if name is None else name
    if classes is None:
        raise ConfigError("the classes are not known: name them with classes=[...], or () for numbers to predict")
    rows = _Rows(dataset, {label: index for index, label in enumerate(classes)}, features, moment, delay)
    repeatable = callable(dataset) or iter(dataset) is not dataset
    names = [str(label) for label in classes]
    source = rows if repeatable else iter(rows())
    options = {"capacity": capacity, "expire_after": expire_after, "dtype": dtype}
    return from_iterable(source, names, name or "river", **options)  # type: ignore[arg-type]


def _classes(dataset: datasets.Dataset) -> Sequence[Hashable]:
    if dataset.task not in (datasets.BINARY_CLF, datasets.MULTI_CLF):
        return ()
    if dataset.n_samples is None:
        raise ConfigError(f"{type(dataset).__name__} has no end: name its classes with classes=[...]")
    return sorted({y for _, y in dataset})


class _Rows:
    """Calling it reads the data from the beginning."""

    def __init__(
        self,
        dataset: Any,
        classes: Mapping[Hashable, int],
        features: Sequence[Hashable] | None,
        moment: Moment | None,
        delay: Delay,
    ) -> None:
        self.dataset, self.classes, self.features = dataset, classes, features
        self.moment, self.delay = moment, delay

    def __call__(self) -> Iterator[Sample | Label]:
        rows = self.dataset() if callable(self.dataset) else self.dataset
        if self.moment is None and self.delay is None:
            for x, y, *_ in rows:
                yield Sample(self._values(x), self._target(y))
            return
        count = itertools.count()
        due: list[tuple[Any, int, Any]] = []
        for x, y, *_ in rows:
            i = next(count)
            now = i if self.moment is None else x[self.moment] if isinstance(self.moment, str) else self.moment(x)
            while due and due[0][0] <= now:
                _, which, target = heapq.heappop(due)
                yield Label(which, target)
            wait = self._wait(x, y)
            if wait is not None:
                heapq.heappush(due, (now + wait, i, self._target(y)))
            yield Sample(self._values(x), id=i)
        while due:
            _, which, target = heapq.heappop(due)
            yield Label(which, target)

    def _wait(self, x: Row, y: object) -> Any:
        if callable(self.delay):
            return self.delay(x, y)
        return x[self.delay] if isinstance(self.delay, str) else 0 if self.delay is None else self.delay

    def _values(self, x: Row) -> list[float]:
        if self.features is None:
            self.features = list(x)
        try:
            return [float(x.get(name, 0.0)) for name in self.features]
        except (TypeError, ValueError):
            wrong = {name: value for name, value in x.items() if not isinstance(value, (int, float))}
            raise InputError(
                f"features {wrong} are not numbers; choose others with features=[...], or encode"
            ) from None

    def _target(self, y: object) -> object:
        if not self.classes:
            return float(y)  # type: ignore[arg-type]
        if y not in self.classes:
            raise InputError(f"label {y!r} is none of the classes {list(self.classes)}")
        return self.classes[y]
