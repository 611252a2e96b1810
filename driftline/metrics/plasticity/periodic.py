"""What metrics share that look at the learner's network and its recent samples every so many samples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.metrics.base import Metric, Point
from driftline.metrics.plasticity.series import Recent, Series
from driftline.stream.live import LiveStream
from driftline.stream.step import Step
from driftline.stream.stream import Stream

Loss = Callable[[Tensor, Tensor], Tensor]


class PeriodicMetric(Metric):
    """Measures in the step that plays sample ``every``, 2 * ``every``, ..., on the most recent samples.

    A subclass says in ``names`` what it measures, and writes :meth:`measure`.

    Parameters
    ----------
    every : int
        Samples between measurements.
    samples : int
        Most recent samples with known truth that are looked at.
    """

    names: ClassVar[tuple[str, ...]]

    def __init__(self, every: int, samples: int) -> None:
        for name, number in (("every", every), ("samples", samples)):
            if number < 1:
                raise ConfigError(f"{name}={number}: must be at least 1 sample")
        self.every, self.samples = every, samples
        self._inputs, self._truth = Recent(samples), Recent(samples)
        self._series = Series(self.names)

    def begin(self, stream: Stream | LiveStream, batch_size: int) -> None:
        """Check that there is a truth."""
        if isinstance(stream, Stream) and all(r.truth is None for s in stream.segments for r in s.recipes):
            raise InputError(f"{type(self).__name__} needs a truth, and {stream.name!r} has none")

    def cuts(self, position: int, batch_size: int) -> int | None:
        """Return where the next measurement is due."""
        return (position // self.every + 1) * self.every

    @abstractmethod
    def measure(self, step: Step, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return one value () for each of the names, from inputs as the network gets them and their truth."""

    def update(self, step: Step) -> None:
        """Keep recent samples, and measure where it is due."""
        batch = step.batch
        if batch.position == 0:
            self.introduce(step)
        if batch.y is not None and batch.labelled:
            known: Tensor | slice = batch.y >= 0 if batch.labelled < len(batch) else slice(None)
            self._inputs.add(batch.x[known])
            self._truth.add(batch.y[known])
        if batch.position // self.every == batch.stop // self.every:
            return
        x, y = self._inputs.all(), self._truth.all()
        if x is None or y is None:
            return
        normalizer = getattr(step.learner, "normalizer", None)
        values = self.measure(step, x if normalizer is None else normalizer(x), y)
        self._series.add(batch.stop, values)

    def introduce(self, step: Step) -> None:
        """Raise, at the first step, when the learner has not what is to be measured."""
        self.network(step)
        if (replicas := getattr(step.learner, "replicas", None)) is not None:
            raise InputError(f"{type(self).__name__} measures one run, not {replicas} in lockstep")

    def network(self, step: Step) -> nn.Module:
        """Return the learner's network, or raise."""
        network = step.learner.network()
        if network is None:
            raise InputError(
                f"{type(self).__name__} looks at the learner's network, and {type(step.learner).__name__} shows none: "
                "let its network() return the model, or leave this metric out"
            )
        return network

    def value(self) -> dict[str, float]:
        """Return the latest measurement of each name (NaN before the first)."""
        return self._series.latest()

    def points(self, position: int) -> list[Point]:
        """Return the measurements made since the last call, each at its own position."""
        return self._series.take()

    def state_dict(self) -> dict[str, object]:
        """Return measurements and recent samples."""
        recent = {"inputs": self._inputs.state_dict(), "truth": self._truth.state_dict()}
        return {"series": self._series.state_dict(), **recent}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When something else was measured.
        """
        series = cast(Mapping[str, object], state["series"])
        if series["names"] != list(self.names):
            raise CheckpointError(f"the state has {series['names']}, this metric measures {list(self.names)}")
        self._series.load_state_dict(series)
        self._inputs.load_state_dict(cast(Mapping[str, object], state["inputs"]))
        self._truth.load_state_dict(cast(Mapping[str, object], state["truth"]))


@contextmanager
def bare(network: nn.Module) -> Iterator[nn.Module]:
    """Put a network into evaluation mode and take its hooks off, so that nobody sees what is tried with it.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(2, 1))
    >>> handle = network[0].register_forward_hook(lambda *given: print("seen"))
    >>> with bare(network):
    ...     scores = network(torch.zeros(1, 2))
    >>> network.training
    True
    """
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = list(network.modules())
    training = [module for module in modules if module.training]
    hooks = [(module.__dict__[kind], dict(module.__dict__[kind])) for module in modules for kind in kinds]
    for own, _ in hooks:
        own.clear()
    for module in training:
        module.training = False
    try:
        with torch.enable_grad():
            yield network
    finally:
        for own, before in hooks:
            own.update(before)
        for module in training:
            module.training = True
