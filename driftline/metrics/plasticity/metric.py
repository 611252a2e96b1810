"""Can the learner still learn? Its hidden units, features, weights and updates, looked at every so many samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from driftline.errors import CheckpointError, ConfigError, InputError, unknown
from driftline.metrics.base import Metric, Point
from driftline.metrics.plasticity.series import Recent, Series
from driftline.plasticity import ranks, units, weights
from driftline.plasticity.units import Count, Kind
from driftline.plasticity.watch import hidden_layers, watching
from driftline.stream.live import LiveStream
from driftline.stream.step import Step
from driftline.stream.stream import Stream

RANKS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "effective_rank": ranks.effective_rank,
    "stable_rank": ranks.stable_rank,
    "srank": ranks.srank,
    "approximate_rank": ranks.approximate_rank,
}
UNITS = ("dormant_units", "dead_units", "rarely_active_units", "active_units")
SIZES = ("weight_magnitude", "gradient_norm", "update_norm")
STEPWISE = ("gradient_norm", "update_norm", "sample_plasticity")
"""Quantities that belong to one step."""
QUANTITIES = (*UNITS, *RANKS, *SIZES, "sample_plasticity")
DEFAULT = tuple(name for name in QUANTITIES if name not in ("rarely_active_units", "approximate_rank"))


class Plasticity(Metric):
    """Whether the network can still learn: dormant and dead units, ranks, weights, updates; every so many samples.

    A measurement takes place in the step that plays sample ``every``, 2 * ``every``, ..., after the learner has met
    the batch. It makes one forward pass with the most recent inputs (the probe batch) through ``learner.predict`` and
    looks at the network's activation modules while that happens, and one with the step's own batch for
    ``sample_plasticity``.

    Parameters
    ----------
    every : int
        Samples between measurements; 1 measures at every step.
    samples : int
        Most recent inputs that hidden units and ranks are measured on. Ranks cannot be larger than this.
    quantities : sequence of str, optional
        Which of :data:`QUANTITIES` to measure. Default: all but ``rarely_active_units`` and ``approximate_rank``;
        without a loss, ``sample_plasticity`` then stays NaN.
    threshold : float
        Score at or below which a unit is dormant (tau of Sokar et al., who use 0.025 and 0.1).
    pooling : "units" or "layers"
        Whether a share of units is that of all units together, or the mean of the layers' own shares.
    layers : sequence of str, optional
        Names (of ``named_modules()``) of the modules whose outputs are hidden units. Default: all activation modules
        of torch's, a final one among them. Functions such as ``F.relu`` in a network's code cannot be seen.

    Raises
    ------
    InputError
        At the first step, when the learner shows no network, or has no loss and ``sample_plasticity`` was asked for.
    ConfigError
        For a bad setting; at the first step, when there are no activation modules and no ``layers`` were given.

    Notes
    -----
    ``sample_plasticity`` follows Elsayed and Mahmood, "Addressing loss of plasticity and catastrophic forgetting in
    continual learning" (2024), who measure it at every step (``every=1``). Definitions and sources of the others
    are those of the functions of the same names in :mod:`driftline.plasticity`. Singular values make the
    host wait for a CUDA device, once per measurement.

    Examples
    --------
    >>> import torch, driftline
    >>> from driftline.learners import GradientLearner
    >>> from driftline.metrics.plasticity import Plasticity
    >>> stream = driftline.scenarios.iid(driftline.load("digits"))
    >>> network = driftline.models.mlp((1, 8, 8), classes=10, hidden=(32, 16))
    >>> learner = GradientLearner(network, torch.optim.SGD(network.parameters(), lr=0.05))
    >>> for step in driftline.play(stream, learner, metrics=[Plasticity(every=500)]):
    ...     pass
    >>> values = step.metrics()
    >>> values["dead_units"] < 0.2, 3 < values["effective_rank"] < 16, 0 <= values["sample_plasticity"] <= 1
    (True, True, True)
    """

    looks_first: ClassVar[bool] = True
    definitions: ClassVar[Mapping[str, str]] = {
        "dormant_units": "share of hidden units whose mean absolute activation on the recent inputs is at most "
        "`threshold` times their layer's mean",
        "dead_units": "share of hidden units that are exactly 0 on all recent inputs",
        "rarely_active_units": "share of hidden units that are not 0 on less than 1 % of the recent inputs",
        "active_units": "share of hidden activations on the recent inputs, all layers together, that are above 0 "
        "(tanh: at most 0.99 in size; sigmoid: within 0.01 and 0.99)",
        "effective_rank": "exp of the entropy of the shares of the singular values of the last layer's inputs",
        "stable_rank": "squared Frobenius norm by squared spectral norm of the last layer's inputs",
        "srank": "how many of the largest singular values of the last layer's inputs make up 99 % of their sum",
        "approximate_rank": "how many of the largest squared singular values of the last layer's inputs make up 99 % "
        "of their sum",
        "weight_magnitude": "mean absolute value of all parameters",
        "gradient_norm": "Euclidean norm of the gradients of the last update, as the learner left them",
        "update_norm": "Euclidean norm of the change of all parameters in one step",
        "sample_plasticity": "share of its loss on a batch that learning from it took away, within 0 and 1; undefined "
        "where labels come late or never",
        "sample_plasticity_mean": "mean of all measurements of sample_plasticity",
    }

    def __init__(
        self,
        every: int = 1000,
        samples: int = 128,
        quantities: Sequence[str] | None = None,
        *,
        threshold: float = 0.025,
        pooling: units.Pooling = "units",
        layers: Sequence[str] | None = None,
    ) -> None:
        for name, number in (("every", every), ("samples", samples)):
            if number < 1:
                raise ConfigError(f"{name}={number}: must be at least 1 sample")
        if not threshold >= 0:
            raise ConfigError(f"threshold={threshold}: must be 0 or more")
        if pooling not in ("units", "layers"):
            raise ConfigError(f'pooling={pooling!r}: must be "units" or "layers"')
        if isinstance(quantities, str) or isinstance(layers, str):
            raise ConfigError(f"quantities={quantities!r}, layers={layers!r}: give a list of names")
        if quantities is not None and not quantities:
            raise ConfigError(f"quantities=[]: name at least one of {', '.join(QUANTITIES)}")
        for name in quantities or ():
            if name not in QUANTITIES:
                raise unknown("quantity", name, QUANTITIES)
        self.every, self.samples, self.threshold, self.pooling = every, samples, threshold, pooling
        self.quantities = None if quantities is None else tuple(dict.fromkeys(quantities))
        self.layers = None if layers is None else tuple(layers)
        self._wanted = self.quantities or DEFAULT
        self._on_probe = any(name in (*UNITS, *RANKS) for name in self._wanted)
        self._of_weights = "update_norm" in self._wanted
        self._recent = Recent(samples)
        self._series = Series(self._wanted)
        self._old: list[Tensor] = []
        self._introduced = False
        self._batch_size = 1

    def describe(self) -> dict[str, object]:
        """Return name and parameters, the names of quantities and layers among them."""
        layers = None if self.layers is None else list(self.layers)
        return {**super().describe(), "quantities": list(self._wanted), "layers": layers}

    def begin(self, stream: Stream | LiveStream, batch_size: int) -> None:
        """Note how large a step is."""
        self._batch_size = batch_size

    def cuts(self, position: int, batch_size: int) -> int | None:
        """Return where playing is to stop next, so that the step measured is seen alone."""
        due = self._due(position)
        if not any(name in STEPWISE for name in self._wanted):
            return due
        # Batches may be smaller at a segment's end, so more than one may begin just before the step measured.
        return due - batch_size if position < due - batch_size else position + batch_size

    def _due(self, position: int) -> int:
        return (position // self.every + 1) * self.every

    def before(self, step: Step) -> None:
        """Remember the weights, where a measurement is due."""
        if not self._introduced:
            self._introduce(step)
        position = step.batch.position
        if self._of_weights and position % self.every + self._batch_size >= self.every:
            self._old = [p.detach().clone() for p in self._network(step).parameters()]

    def _introduce(self, step: Step) -> None:
        """Check that the learner has what is to be measured, before anything is learned."""
        network = self._network(step)
        if (replicas := getattr(step.learner, "replicas", None)) is not None:
            raise InputError(
                f"Plasticity measures one run, not {replicas} in lockstep: one for each learner.replica(i)"
            )
        if self._on_probe:
            hidden_layers(network, self.layers)
        if any(name in SIZES for name in self._wanted) and next(network.parameters(), None) is None:
            raise InputError(f"{type(network).__name__} has no parameters; choose quantities=[...] without {SIZES}")
        asked = self.quantities is not None and "sample_plasticity" in self.quantities
        if asked and getattr(step.learner, "loss", None) is None:
            raise InputError(
                f"sample_plasticity needs the learner's loss, and {type(step.learner).__name__} has no attribute "
                "`loss`; choose other quantities=[...]"
            )
        self._introduced = True

    def _network(self, step: Step) -> nn.Module:
        network = step.learner.network()
        if network is None:
            raise InputError(
                f"Plasticity looks at the learner's network, and {type(step.learner).__name__} shows none: let its "
                "network() return the model, or leave this metric out"
            )
        return network

    def update(self, step: Step) -> None:
        """Keep recent inputs, and measure where it is due."""
        batch = step.batch
        # Samples still to come before a measurement; plain numbers, because this is asked at every step.
        ahead = self.every - batch.position % self.every - batch.x.shape[0]
        if ahead < self.samples and self._on_probe:
            self._recent.add(batch.x)
        if ahead > 0:
            return
        step.learner.trusted = True
        try:
            with torch.no_grad():
                found = self._measure(step)
        finally:
            step.learner.trusted = False
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=batch.x.device)
        self._series.add(batch.stop, [found.get(name, nothing) for name in self._wanted])
        self._old = []
        if batch.stop <= self._due(batch.stop) - self.samples:
            self._recent.clear()

    def _measure(self, step: Step) -> dict[str, Tensor]:
        """Return every quantity that there is to measure."""
        network, wanted = self._network(step), self._wanted
        found = self._look(step, network) if self._on_probe else {}
        parameters = list(network.parameters())
        if "weight_magnitude" in wanted:
            found["weight_magnitude"] = weights.weight_magnitude(parameters)
        if "gradient_norm" in wanted:
            found["gradient_norm"] = weights.gradient_norm(parameters)
        if "update_norm" in wanted and [p.shape for p in self._old] == [p.shape for p in parameters]:
            found["update_norm"] = weights.update_norm(self._old, parameters)
        if "sample_plasticity" in wanted and (plasticity := _sample_plasticity(step)) is not None:
            found["sample_plasticity"] = plasticity
        return found

    def _look(self, step: Step, network: nn.Module) -> dict[str, Tensor]:
        """Return what the hidden units do with the probe batch."""
        measures: dict[str, Callable[[Tensor, Kind], Count]] = {
            "dormant_units": lambda h, kind: units.counted(units.is_dormant(h, self.threshold)),
            "dead_units": lambda h, kind: units.counted(units.is_dead(h)),
            "rarely_active_units": lambda h, kind: units.counted(units.is_rarely_active(h)),
            "active_units": lambda h, kind: units.counted(units.is_active(h, kind)),
        }
        counts: dict[str, list[Count]] = {name: [] for name in measures if name in self._wanted}

        def count(hidden: Tensor, kind: Kind) -> None:
            for name, found in counts.items():
                found.append(measures[name](hidden, kind))

        with watching(network, count, self.layers) as glance:
            step.learner.predict(cast(Tensor, self._recent.all()))
        found: dict[str, Tensor] = {}
        for name, of_layers in counts.items():
            if of_layers:
                found[name] = units.pooled(of_layers, "units" if name == "active_units" else self.pooling)
        functions = {name: of for name, of in RANKS.items() if name in self._wanted}
        if functions and glance.features is not None:
            values = ranks.singular_values(glance.features)
            found |= {name: of(values) for name, of in functions.items()}
        return found

    def value(self) -> dict[str, float]:
        """Return the latest measurement of each quantity, and the mean of ``sample_plasticity``."""
        values = self._series.latest()
        if "sample_plasticity" in values:
            values["sample_plasticity_mean"] = self._series.means()["sample_plasticity"]
        return values

    def points(self, position: int) -> list[Point]:
        """Return the measurements made since the last call, each at its own position."""
        return self._series.take()

    def state_dict(self) -> dict[str, object]:
        """Return the measurements not yet taken, the latest, the means, and recent inputs."""
        return {"series": self._series.state_dict(), "recent": self._recent.state_dict()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When other quantities were measured.
        """
        series = cast(Mapping[str, object], state["series"])
        if series["names"] != list(self._wanted):
            raise CheckpointError(f"the state has quantities {series['names']}, this metric {list(self._wanted)}")
        self._series.load_state_dict(series)
        self._recent.load_state_dict(cast(Mapping[str, object], state["recent"]))
        self._old = []


def _sample_plasticity(step: Step) -> Tensor | None:
    """Return how much of its loss on the step's batch the step took away; None where that is undefined."""
    loss = cast("Callable[[Tensor, Tensor], Tensor] | None", getattr(step.learner, "loss", None))
    y = step.batch.y
    if loss is None or y is None or step.prediction is None or step.stream.due(step.batch) is not None:
        return None
    y = y if y.is_floating_point() else y.long()
    after = step.learner.predict(step.batch.x)
    # A loss may count what it is shown; it is to forget what it was shown here.
    state = copy.deepcopy(loss.state_dict()) if hasattr(loss, "state_dict") else None
    plasticity = weights.sample_plasticity(loss(step.prediction, y).mean(), loss(after, y).mean())
    if state is not None:
        cast(nn.Module, loss).load_state_dict(state)
    return plasticity
