"""A guard that sees an adapter collapse, without labels, and takes it back to its last good state."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.adapters.base import Adapter
from driftline.adapters.classifier import ClassifierTap
from driftline.adapters.losses import entropy
from driftline.adapters.model import frozen
from driftline.adapters.settings import at_least, between
from driftline.adapters.wrapper import Wrapper
from driftline.errors import ConfigError, InputError
from driftline.stream.modules import evaluate

KEPT_EVENTS = 20
"""Rollbacks that are described; the earlier ones are only counted."""


class Detector(Protocol):
    """A drift detector, such as those of ``river.drift``."""

    drift_detected: bool

    def update(self, x: float) -> object:
        """Take in a value."""


class CollapseGuard(Wrapper):
    """Watch an adapter beside the source model on the same samples; when it goes astray, return to a good state.

    Four signals are followed as running averages over the batches. Each is compared with what the source model gives
    for the very same samples, so that a stream that is hard, or of few classes, is not taken for a collapse:

    - entropy: of the predictions, mean. It crosses when it has risen by the share ``entropy`` of the way from the
      source's to that of guessing, ln C.
    - marginal: entropy of the mean prediction. It crosses below ``marginal`` times the source's: few classes are
      predicted where the source sees many.
    - drift: distance between the mean features of adapter and source, each over the root mean square length of its own
      features, since adapting stretches them without harm. It crosses at ``drift``.
    - accuracy: an estimate of the accuracy that is possible, 1 - (disagreement - source error), with the source's error
      taken to be 1 - its mean confidence. Where two models disagree at least one is wrong, so that an adapter that
      disagrees more than the source errs must err itself. It crosses below ``accuracy``.

    An adapter whose own loss or scores become NaN or Inf has collapsed, too. The batch at which a collapse is seen is
    predicted anew by the good state. The adapter then rests for ``pause`` batches: the same steps would make it
    collapse again, which is seen some batches late each time.

    Parameters
    ----------
    inner : Adapter
        Who is guarded.
    entropy, marginal, drift, accuracy : float or None
        Levels, see above: 0 to 1 (``drift``: above 0, at most 2); None: the signal is not watched.
    momentum : float
        Weight of the newest batch in the running averages, above 0 to 1. Choose it smaller for small batches.
    detector : callable, optional
        Makes a drift detector, such as ``river.drift.ADWIN``, that watches how far the features of each batch are from
        the source's, the distance under drift before it is averaged. Its alarm is one more signal, by itself or beside
        the others, when drift is above what it was in the last good state. It is made anew at each rollback and reset,
        and when a state is loaded.
    every : int
        Batches between two copies of the adapter's state, at least 1. A copy counts as good once so many further
        batches have come during which no signal was more than half-way to its level.
    pause : int
        Batches after a rollback that are predicted without adapting to them, at least 0.
    source : nn.Module, optional
        The source model, copied. Default: a copy of the adapter's network as it is now.
    classifier : str, optional
        Name of the linear layer whose input is the features. Default: the last; without one, drift is not watched.

    Attributes
    ----------
    events : list of dict
        The last rollbacks: ``batch`` (number since the source model, from 0), ``signal``, ``value``, ``level``, and
        ``to``, the number of batches the state returned to had met.
    rollbacks : int
        All of them.
    signals : dict of str to float
        The signals' values at the last batch; NaN while unknown.

    Raises
    ------
    ConfigError
        For a level out of range, or an adapter without a network when no ``source`` is given.

    Warns
    -----
    UserWarning
        At the first rollback since the source model.

    Notes
    -----
    No published method; SAR returns to the source when its loss becomes small, and AETTA (Lee et al., CVPR 2024)
    estimates accuracy by disagreement under dropout, at several more forward passes. Here the cost is one forward pass
    of the source and two copies of the state. It is blind to errors that the source shares, and where the source is
    confidently wrong it may hold back an adapter that is right: set ``accuracy=None`` then. Values of signals wait for
    the device at each batch.
    The levels are a choice, made on Tent at step sizes from 0.01 to 0.3 with three small networks (digits with batch
    normalisation, MNIST with batch and with group normalisation; corruptions at severity 3 and 5, batches of 16 and 50,
    labels mixed and in runs): where Tent ended within 3 points of its source's accuracy or above it, drift came to 0.35
    at most, and where it lost 40 points or more, to 0.41 to 0.81, together with accuracy and marginal. Losses of 10 to
    20 points mostly stay below all levels: it is a guard against collapse, not against slow harm.
    :class:`driftline.metrics.Rollbacks` puts each rollback into a run's record.
    Single samples: the source must be able to predict them; otherwise put the guard inside a ``SlidingWindow``.

    Examples
    --------
    >>> from driftline.adapters import CollapseGuard, Tent
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    >>> adapter = CollapseGuard(Tent(model, lr=1e-3))
    >>> for x in torch.randn(20, 50, 4):
    ...     scores = adapter.adapt(x)
    >>> adapter.rollbacks, sorted(adapter.signals)
    (0, ['accuracy', 'drift', 'entropy', 'marginal'])
    """

    def __init__(
        self,
        inner: Adapter,
        entropy: float | None = 0.5,
        marginal: float | None = 0.5,
        drift: float | None = 0.4,
        accuracy: float | None = 0.6,
        detector: Callable[[], Detector] | None = None,
        momentum: float = 0.3,
        every: int = 10,
        pause: int = 20,
        source: nn.Module | None = None,
        classifier: str | None = None,
    ) -> None:
        for name, level in (("entropy", entropy), ("marginal", marginal), ("accuracy", accuracy)):
            if level is not None:
                between(name, level, 0, 1)
        if drift is not None and not 0 < drift <= 2:
            raise ConfigError(f"drift={drift}: must be above 0 and at most 2, or None")
        between("momentum", momentum, 0, 1)
        if momentum == 0:
            raise ConfigError("momentum=0: must be above 0, or no batch would count")
        at_least("every", every, 1)
        at_least("pause", pause, 0)
        super().__init__(inner)
        if source is not None and not isinstance(source, nn.Module):
            raise ConfigError(f"source={source!r}: give the source model, a module")
        network = inner.network() if source is None else source
        if network is None:
            raise ConfigError(
                f"source=None: {type(inner).__name__} has no network to compare with; give the source model"
            )
        self.entropy, self.marginal, self.drift, self.accuracy = entropy, marginal, drift, accuracy
        self.momentum, self.every, self.pause, self.classifier = momentum, every, pause, classifier
        self.source = frozen(network)
        has_linear = any(isinstance(module, nn.Linear) for module in network.modules())
        self._tap = ClassifierTap(self.source, classifier) if has_linear or classifier else None
        makes = detector is None or (callable(detector) and callable(getattr(detector(), "update", None)))
        if not makes or (detector is not None and self._tap is None):
            raise ConfigError(
                f"detector={detector!r}: give what makes a drift detector, such as river.drift.ADWIN, "
                "and a network with a linear classifier, whose features it watches"
            )
        self.detector = detector
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.batches = self.rollbacks = self._quiet = self._rest = 0
        self._adapted = True
        self.events: list[dict[str, object]] = []
        self.signals: dict[str, float] = {}
        self._averages: dict[str, Tensor] = {}
        self._start_detecting()
        # Always two copies, so that memory stays the same.
        self._good, self._candidate = self._copy(0), self._copy(0)

    def _start_detecting(self) -> None:
        self._detecting, self._alarm = None if self.detector is None else self.detector(), False

    def _copy(self, met: int) -> dict[str, object]:
        """Return the adapter as it is after so many batches."""
        return copy.deepcopy({"batches": met, "averages": self._averages, "inner": self.inner.state_dict()})

    def adapt(self, x: Tensor) -> Tensor:
        """Let the inner adapter adapt to samples (B, *input); return its scores, or those of the last good state."""
        self.check(x)
        if self._rest:
            scores = self.inner.predict(x)
            self._rest -= 1
            self.batches += 1
            self._adapted = False
            return scores
        features, reference = self._source(x)
        found: list[Tensor] = []
        try:
            with self._listening(found, len(x)):
                scores = self.inner.adapt(x)
        except InputError:
            # The samples are fine and so is the source: it is the adapter that cannot use them any more.
            if not bool(torch.isfinite(reference).all()):
                raise
            scores = torch.full_like(reference, torch.nan)
        self._take_in(scores, reference, found[0] if found else None, features)
        reached = self._reached()
        worst = max(reached, key=reached.__getitem__)
        if reached[worst] >= 1:
            self._roll_back(worst)
            scores = self.inner.predict(x)
        else:
            self._keep(reached[worst] < 0.5)
        self.batches += 1
        self._adapted = True
        return scores

    @property
    def adapted(self) -> bool:
        """Whether the last batch was adapted to, if only to be undone; False while the adapter rests."""
        return self._adapted and super().adapted

    def _source(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the source's features and scores."""
        return (None, evaluate(self.source, x)) if self._tap is None else self._tap.features(x)

    @contextmanager
    def _listening(self, found: list[Tensor], count: int) -> Iterator[None]:
        """Note the features that the adapter's own forward passes make of the batch."""
        network = self.inner.network()
        layer = None
        if self._tap is not None and network is not None:
            layer = dict(network.named_modules()).get(self._tap.name)
        if layer is None:
            yield
            return

        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if len(inputs[0]) == count:
                found.append(inputs[0].detach())

        handle = layer.register_forward_pre_hook(note)
        try:
            yield
        finally:
            handle.remove()

    def _take_in(self, scores: Tensor, reference: Tensor, features: Tensor | None, others: Tensor | None) -> None:
        """Move the running averages."""
        ours, theirs = F.softmax(scores, 1), F.softmax(reference, 1)
        new = {
            "entropy": entropy(scores).mean(),
            "source entropy": entropy(reference).mean(),
            "mean": ours.mean(0),
            "source mean": theirs.mean(0),
            "disagreement": (scores.argmax(1) != reference.argmax(1)).to(scores.dtype).mean(),
            "source confidence": theirs.amax(1).mean(),
        }
        if features is not None and others is not None:
            for name, values in (("", features), ("source ", others)):
                new[f"{name}features"] = values.flatten(1).mean(0)
                new[f"{name}square"] = values.flatten(1).square().sum(1).mean()
        if self._detecting is not None and "features" in new and math.isfinite(moved := _distance(new)):
            self._detecting.update(moved)
            self._alarm = self._detecting.drift_detected
        for name, value in new.items():
            before = self._averages.get(name)
            self._averages[name] = value if before is None else torch.lerp(before, value, self.momentum)

    def _reached(self) -> dict[str, float]:
        """Set ``signals``; return how far each has come from the source's value (0) to its level (1)."""
        mean = self._averages
        most = math.log(max(2, len(mean["mean"])))
        ours, theirs = float(mean["entropy"]), float(mean["source entropy"])
        spread, source_spread = float(_spread(mean["mean"])), float(_spread(mean["source mean"]))
        possible = 1 - max(0.0, float(mean["disagreement"]) + float(mean["source confidence"]) - 1)
        moved = _distance(mean)
        self.signals = {"entropy": ours, "marginal": spread, "drift": moved, "accuracy": possible}
        reached = {"not finite": 0.0 if math.isfinite(ours) and math.isfinite(spread) else math.inf}
        if self.entropy is not None:
            reached["entropy"] = (ours - theirs) / max(self.entropy * (most - theirs), 1e-3)
        if self.marginal is not None:
            # The constant keeps a stream of one class, where both are near 0, from crossing by chance.
            reached["marginal"] = (source_spread - spread) / ((1 - self.marginal) * source_spread + 0.05)
        if self.drift is not None and "features" in mean:
            reached["drift"] = moved / self.drift
        if self.detector is not None:
            good = _distance(cast(Mapping[str, Tensor], self._good["averages"]))
            reached["detector"] = math.inf if self._alarm and not moved <= good else 0.0
        if self.accuracy is not None:
            reached["accuracy"] = (1 - possible) / max(1 - self.accuracy, 1e-3)
        return {name: math.inf if math.isnan(value) else value for name, value in reached.items()}

    def _roll_back(self, signal: str) -> None:
        level = None if signal in ("not finite", "detector") else getattr(self, signal)
        value = self.signals.get("drift" if signal == "detector" else signal, math.nan)
        to = cast(int, self._good["batches"])
        event = {"batch": self.batches, "signal": signal, "value": value, "level": level, "to": to}
        self.events = [*self.events, event][-KEPT_EVENTS:]
        self.rollbacks += 1
        self.inner.load_state_dict(cast(Mapping[str, object], self._good["inner"]))
        self._averages = copy.deepcopy(cast(dict[str, Tensor], self._good["averages"]))
        self._candidate, self._quiet, self._rest = copy.deepcopy(self._good), 0, self.pause
        self._start_detecting()
        if self.rollbacks == 1:
            warnings.warn(
                f"{type(self.inner).__name__} has collapsed at batch {self.batches} "
                f"({signal} {value:.3g}, level {level}) "
                f"and was taken back to its state after {to} batches; further rollbacks are listed in events",
                stacklevel=3,
            )

    def _keep(self, quiet: bool) -> None:
        """Count quiet batches; from time to time take the last copy for good and make a new one."""
        if not quiet:
            if self._quiet:
                self._candidate, self._quiet = copy.deepcopy(self._good), 0
            return
        if self._quiet % self.every == 0:
            self._good, self._candidate = self._candidate, self._copy(self.batches + 1)
        self._quiet += 1

    def reset(self) -> None:
        """Return to the source model, and forget what was seen."""
        super().reset()
        self._begin_anew()

    def own_state(self) -> dict[str, object]:
        """Return averages, events, and the copies of the adapter."""
        return {
            "batches": self.batches,
            "rollbacks": self.rollbacks,
            "quiet": self._quiet,
            "rest": self._rest,
            "adapted": self._adapted,
            "events": self.events,
            "signals": self.signals,
            "averages": dict(self._averages),
            "good": self._good,
            "candidate": self._candidate,
        }

    def load_own_state(self, state: Mapping[str, object]) -> None:
        """Continue from an :meth:`own_state`."""
        state = copy.deepcopy(dict(state))
        self._start_detecting()
        self.batches, self.rollbacks = cast(int, state["batches"]), cast(int, state["rollbacks"])
        self._quiet, self._rest = cast(int, state["quiet"]), cast(int, state["rest"])
        self._adapted = bool(state["adapted"])
        self.events = cast(list[dict[str, object]], state["events"])
        self.signals = cast(dict[str, float], state["signals"])
        device = next((t.device for t in (*self.source.parameters(), *self.source.buffers())), torch.device("cpu"))
        averages = cast(dict[str, Tensor], state["averages"])
        self._averages = {name: value.to(device) for name, value in averages.items()}
        self._good = cast(dict[str, object], state["good"])
        self._candidate = cast(dict[str, object], state["candidate"])

    def to(self, device: torch.device | str) -> Self:
        """Move everything to ``device``; the copies follow when they are made anew or returned to."""
        super().to(device)
        self.source.to(device)
        self._averages = {name: value.to(device) for name, value in self._averages.items()}
        for kept in (self._good, self._candidate):
            averages = cast(dict[str, Tensor], kept["averages"])
            kept["averages"] = {name: value.to(device) for name, value in averages.items()}
        return self


def _spread(probabilities: Tensor) -> Tensor:
    """Return the entropy of probabilities (C,), in nats."""
    spread: Tensor = torch.special.entr(probabilities).sum()
    return spread


def _distance(averages: Mapping[str, Tensor]) -> float:
    """Return how far the adapter's mean features are from the source's, each in its own length; NaN without any."""
    if "features" not in averages:
        return math.nan
    ours, theirs = (_unit(averages[f"{name}features"], averages[f"{name}square"]) for name in ("", "source "))
    return float((ours - theirs).norm())


def _unit(features: Tensor, square: Tensor) -> Tensor:
    """Return mean features over their root mean square length; zero where all of them are."""
    return features / square.sqrt().clamp_min(1e-12)
