"""A study: the same run for many seeds and settings, as the replicas of one learner in lockstep."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from driftline.errors import ConfigError
from driftline.stream.live import LiveStream
from driftline.stream.replicas import ReplicaStream
from driftline.stream.stream import Stream

if TYPE_CHECKING:
    from driftline.learners.base import Learner

Streams = Stream | Sequence[Stream] | Callable[[int], Stream]
"""One that all replicas see, one for each seed, or a function that makes it from a seed."""


@dataclass(frozen=True)
class Study:
    """Which replica has which seed and settings.

    Parameters
    ----------
    seeds : sequence of int
        Of the runs for each combination of settings.
    grid : mapping of str to sequence
        Values of settings; every combination is run with every seed.

    Examples
    --------
    >>> study = Study([0, 1], {"lr": [0.1, 0.2]})
    >>> study.replica_seeds, study.settings
    ([0, 1, 0, 1], [{'lr': 0.1}, {'lr': 0.1}, {'lr': 0.2}, {'lr': 0.2}])
    """

    seeds: Sequence[int]
    grid: Mapping[str, Sequence[object]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", list(self.seeds))
        if not self.seeds or not all(isinstance(s, int) and not isinstance(s, bool) for s in self.seeds):
            raise ConfigError(f"seeds={list(self.seeds)!r}: give at least one whole number")
        for name, values in self.grid.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ConfigError(f"grid: {name}={values!r}; give a list of at least one value")

    @property
    def settings(self) -> list[dict[str, object]]:
        """The settings of each replica."""
        combinations = itertools.product(*self.grid.values())
        return [dict(zip(self.grid, values)) for values in combinations for _ in self.seeds]

    @property
    def replica_seeds(self) -> list[int]:
        """The seed of each replica."""
        return list(self.seeds) * (len(self.settings) // len(self.seeds))

    def learner(self, make: Callable[..., Learner]) -> Learner:
        """Make a learner for each replica, and one of them all.

        Raises
        ------
        ConfigError
            When ``make`` is not a function of a seed (and the settings of the grid) that returns a learner.
        """
        from driftline.learners import in_lockstep
        from driftline.learners.base import Learner

        if isinstance(make, Learner) or not callable(make):
            raise ConfigError(
                "with seeds= give a function that makes a new learner, make(seed) or make(seed, **settings of the "
                f"grid); got {type(make).__name__}"
            )
        learners = [make(seed, **settings) for seed, settings in zip(self.replica_seeds, self.settings)]
        for learner in learners:
            if not isinstance(learner, Learner):
                raise ConfigError(f"with seeds= the function must return a learner; it gave {type(learner).__name__}")
        return in_lockstep(learners, self.replica_seeds)

    def stream(self, streams: Streams) -> ReplicaStream:
        """Return the stream for the replicas.

        Raises
        ------
        ConfigError
            When there is not one stream for each seed, or they cannot be played in lockstep.
        """
        if isinstance(streams, LiveStream):
            raise ConfigError(f"{streams.name!r} is live, and replicas play finite streams only")
        replicas = len(self.settings)
        if isinstance(streams, Stream):
            return ReplicaStream([streams], replicas)
        made = [streams(seed) for seed in self.seeds] if callable(streams) else list(streams)
        for stream in made:
            if not isinstance(stream, Stream):
                raise ConfigError(f"with seeds= every stream must be a finite one; got {type(stream).__name__}")
        if len(made) != len(self.seeds):
            raise ConfigError(f"{len(made)} streams for {len(self.seeds)} seeds; give one for each, or one for all")
        return ReplicaStream(made * (replicas // len(made)), replicas)

    def describe(self) -> dict[str, object]:
        """Return seed and settings of each replica, for the record."""
        from driftline.stream.scenario import plain

        return {"seeds": self.replica_seeds, "settings": cast(list[object], plain(self.settings))}
