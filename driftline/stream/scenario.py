"""Scenarios: plain Python generators of segments, turned into streams by ``@scenario``."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Concatenate, Generic, ParamSpec, cast, overload

import numpy as np
import torch
from torch import Tensor

from driftline.errors import ConfigError, ScenarioError
from driftline.stream.dataset import Dataset
from driftline.stream.seeds import generator
from driftline.stream.segment import Segment
from driftline.stream.stream import Stream

P = ParamSpec("P")
DataScript = Callable[Concatenate[Segment, torch.Generator, P], Iterator[Segment]]
OwnDataScript = Callable[Concatenate[torch.Generator, P], Iterator[Segment]]

MAX_SEGMENTS = 1_000_000


class Scenario(Generic[P]):
    """A callable ``scenario(data, seed=0, **parameters) -> Stream`` around a generator of segments.

    See :func:`scenario`.
    """

    needs_data: ClassVar[bool] = True
    """Whether it is called with a dataset, or makes its own data."""

    def __init__(self, script: DataScript[P] | OwnDataScript[P]) -> None:
        self._script = cast(Callable[..., Iterator[Segment]], script)
        functools.update_wrapper(self, self._script)
        self.name = script.__name__
        described = list(inspect.signature(script).parameters.values())[1 + self.needs_data :]
        self.parameters = {p.name: p for p in described}

    def __call__(self, data: Dataset, seed: int = 0, *args: P.args, **parameters: P.kwargs) -> Stream:
        """Return the stream of this scenario over ``data``.

        Raises
        ------
        ConfigError
            For an unknown or missing parameter.
        ScenarioError
            When the scenario cannot be built from this data.
        """
        if not isinstance(data, Dataset):
            raise ConfigError(
                f"{self.name}: data must be a driftline Dataset, got {type(data).__name__}; see driftline.load"
            )
        return self._stream((Segment.of(data),), seed, args, parameters)

    def _stream(
        self, first: tuple[Segment, ...], seed: int, args: tuple[object, ...], parameters: dict[str, object]
    ) -> Stream:
        rng = generator(seed)
        try:
            bound = inspect.signature(self._script).bind(*first, rng, *args, **parameters)
        except TypeError as error:
            known = ", ".join(self.parameters) or "none"
            raise ConfigError(f"{self.name}: {error}; its parameters are: {known}") from None
        bound.apply_defaults()
        segments = []
        script = self._script(*first, rng, *args, **parameters)
        if not isinstance(script, Iterable):
            raise ScenarioError(f"{self.name}: gave {type(script).__name__} instead of segments; use yield")
        for segment in script:
            if not isinstance(segment, Segment):
                raise ScenarioError(f"{self.name}: yielded {type(segment).__name__} instead of a segment of data")
            segments.append(segment)
            if len(segments) > MAX_SEGMENTS:
                raise ScenarioError(
                    f"{self.name}: more than {MAX_SEGMENTS} segments; an endless scenario needs from_iterable"
                )
        values = {name: plain(bound.arguments[name]) for name in self.parameters}
        return Stream(segments, seed, self.name, values)

    def __reduce__(self) -> str | tuple[object, ...]:
        return self._script.__qualname__

    def __repr__(self) -> str:
        return f"<scenario {self.name}({', '.join(self.parameters)})>"


class OwnDataScenario(Scenario[P]):
    """A callable ``scenario(seed=0, **parameters) -> Stream`` around a generator of segments of data it makes itself.

    See :func:`scenario`.
    """

    needs_data: ClassVar[bool] = False

    def __call__(self, seed: int = 0, *args: P.args, **parameters: P.kwargs) -> Stream:  # type: ignore[override]
        """Return the stream of this scenario.

        Raises
        ------
        ConfigError
            When a dataset is given; for an unknown or missing parameter.
        ScenarioError
            When the scenario cannot be built with these parameters.
        """
        if not isinstance(seed, int):
            raise ConfigError(
                f"{self.name} makes its own data; call it as {self.name}(seed=0, ...), not with a {type(seed).__name__}"
            )
        return self._stream((), seed, args, parameters)


@overload
def scenario(script: DataScript[P]) -> Scenario[P]: ...
@overload
def scenario(script: OwnDataScript[P]) -> OwnDataScenario[P]: ...
def scenario(script: DataScript[P] | OwnDataScript[P]) -> Scenario[P]:
    """Turn a generator of segments into a scenario.

    The generator gets all of the data as one :class:`~driftline.stream.Segment` in dataset order, and a random
    generator that starts at the seed; what it yields is played in order. One whose first parameter is called ``rng``
    gets no data, and yields segments of datasets that it makes itself: it is called without a dataset.

    Examples
    --------
    >>> import torch
    >>> from driftline import Dataset, Segment, scenario
    >>> @scenario
    ... def factory_floor(data, rng, late=2):
    ...     yield data.classes(0, 1).shuffle(rng).named("commissioning")
    ...     yield data.classes(2).delay_labels(late)
    ...     yield data.everything().shuffle(rng).without_labels()
    >>> data = Dataset(torch.rand(9, 4), torch.arange(9) % 3)
    >>> stream = factory_floor(data, seed=1, late=4)
    >>> len(stream), [s.name for s in stream.segments]
    (18, ['commissioning', 'segment 1', 'segment 2'])
    >>> @scenario
    ... def random_walk(rng, steps=100):
    ...     place = torch.randn(steps, 1, generator=rng).cumsum(0)
    ...     yield Segment.of(Dataset(place[:-1], place[1:, 0]))
    >>> len(random_walk(seed=1, steps=50))
    49
    """
    first = next(iter(inspect.signature(script).parameters), None)
    return OwnDataScenario(script) if first == "rng" else Scenario(script)


def plain(value: object) -> object:
    """Return a parameter as a JSON value for the record: tensors as lists, the rest by name."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        made_of = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__qualname__, **made_of}
    try:
        json.dumps(value)
    except TypeError:
        return getattr(value, "__qualname__", None) or type(value).__qualname__
    return value
