"""River's drift detectors decide when a learner starts afresh, or replays more, and which of two adapters answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import torch
from river import base
from torch import Tensor, nn

from driftline.adapters.base import Adapter
from driftline.errors import CheckpointError, ConfigError
from driftline.interop.river import pickles
from driftline.learners.base import Learner, State
from driftline.learners.gradient import GradientLearner

Respond = Callable[[Learner], None]


class DriftResponse(Learner):
    """A learner whose errors a detector of River watches; at each alarm something is done to it.

    Parameters
    ----------
    learner : Learner
        Of classes.
    detector : river.base.DriftDetector or river.base.BinaryDriftDetector
        Given 1 for each sample that is predicted wrong when its label comes, else 0.
    respond : callable, optional
        ``respond(learner)`` at an alarm, such as :class:`ReplayMore`. Default: back to the state it has now.

    Attributes
    ----------
    alarms : int
        So far.

    Notes
    -----
    :meth:`learn` predicts the batch first, so that labels that come late are watched too: a second forward pass beside
    that of the prediction.

    Examples
    --------
    >>> from river import drift
    >>> from driftline.interop.river import DriftResponse
    >>> from driftline.learners import NearestClassMean
    >>> learner = DriftResponse(NearestClassMean(classes=2), drift.ADWIN())
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> for step in range(200):
    ...     learner.learn(x, torch.tensor([0, 1]) if step < 100 else torch.tensor([1, 0]))
    >>> learner.alarms > 0, learner.predict(x).argmax(1).tolist()
    (True, [1, 0])
    """

    def __init__(self, learner: Learner, detector: base.DriftDetector, respond: Respond | None = None) -> None:
        self.learner, self.detector, self.respond = learner, detector, respond
        self.alarms = 0
        self._start = copy.deepcopy(learner.state_dict())

    @property
    def input_shape(self) -> tuple[int, ...] | None:  # type: ignore[override]
        """That of the learner."""
        return self.learner.input_shape

    @property
    def num_classes(self) -> int | None:  # type: ignore[override]
        """That of the learner."""
        return self.learner.num_classes

    def predict(self, x: Tensor) -> Tensor:
        """Return the learner's scores."""
        self.learner.trusted = self.trusted
        return self.learner.predict(x)

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Watch the batch's errors, respond to an alarm, and learn."""
        self.learner.trusted = self.trusted
        self.learner.check(x, y)
        wrong = (self.learner.predict(x).argmax(1) != y).tolist()
        if _alarm(self.detector, wrong):
            self.alarms += 1
            if self.respond is None:
                self.learner.load_state_dict(copy.deepcopy(self._start))
            else:
                self.respond(self.learner)
        self.learner.learn(x, y)

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Raise if the learner cannot use a batch."""
        self.learner.trusted = self.trusted
        self.learner.check(x, y)

    def network(self) -> nn.Module | None:
        """Return the learner's model."""
        return self.learner.network()

    def to(self, device: torch.device | str) -> Self:
        """Move the learner to ``device``."""
        self.learner.to(device)
        return self

    def describe(self) -> dict[str, object]:
        """Return learner, detector and response (JSON values)."""
        respond = "reset" if self.respond is None else getattr(self.respond, "__name__", type(self.respond).__name__)
        parameters = {"learner": self.learner.describe(), "detector": repr(self.detector), "respond": respond}
        return {"name": type(self).__name__, "parameters": parameters}

    def state_dict(self) -> State:
        """Return the states of learner, detector and response."""
        state = {"learner": self.learner.state_dict(), "alarms": self.alarms, "start": self._start}
        own: object = getattr(self.respond, "state_dict", dict)()
        return {**state, "respond": own, **_saved(self.detector)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        if set(state) != {"learner", "alarms", "start", "respond", "detector", "river"}:
            raise CheckpointError(f"the state has parts {sorted(state)}, which are not a {type(self).__name__}'s")
        detector = _loaded(state, self.detector)
        self.learner.load_state_dict(cast(State, state["learner"]))
        self.detector, self.alarms = detector, cast(int, state["alarms"])
        self._start = copy.deepcopy(cast(State, state["start"]))
        load = getattr(self.respond, "load_state_dict", None)
        if load is not None:
            load(cast(State, state["respond"]))


class ReplayMore:
    """More updates per batch for a while after an alarm; also to be given to the learner as its replay ratio.

    Parameters
    ----------
    ratio, usual : int
        Updates per batch after an alarm, and else.
    samples : int
        How long.

    Examples
    --------
    >>> from river import drift
    >>> from driftline import models
    >>> from driftline.interop.river import DriftResponse, ReplayMore
    >>> from driftline.learners import GradientLearner, ReservoirReplay
    >>> model, more = models.mlp(4, 3), ReplayMore(ratio=4, samples=500)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    >>> learner = GradientLearner(model, sgd, replay=ReservoirReplay(100), replay_ratio=more)
    >>> watched = DriftResponse(learner, drift.ADWIN(), more)
    """

    def __init__(self, ratio: int, samples: int, usual: int = 1) -> None:
        if min(ratio, usual) < 0 or samples < 1:
            raise ConfigError(f"ratio={ratio}, usual={usual}, samples={samples}: must be 0 or more, and at least 1")
        self.updates, self.samples, self.usual = ratio, samples, usual
        self._until = 0

    def __call__(self, learner: Learner) -> None:
        """Begin to replay more."""
        if not isinstance(learner, GradientLearner) or learner.replay_ratio is not self:
            raise ConfigError("ReplayMore must also be the learner's replay_ratio=")
        self._until = learner.position + self.samples

    def ratio(self, position: int, model: nn.Module) -> int:
        """Return the number of updates for the batch that begins at this sample."""
        return self.updates if position < self._until else self.usual

    def state_dict(self) -> State:
        """Return how long it goes on."""
        return {"until": self._until}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        self._until = cast(int, state["until"])


class SwitchingAdapter(Adapter):
    """Two adapters, of which one answers until a detector of River sees its confidence change; then the other does.

    Parameters
    ----------
    first, second : Adapter
        Each with a model of its own; the one that takes over is reset to its source model.
    detector : river.base.DriftDetector
        Given each sample's uncertainty, 1 minus its largest probability.

    Examples
    --------
    >>> from river import drift
    >>> from driftline import models
    >>> from driftline.adapters import Source, Tent
    >>> from driftline.interop.river import SwitchingAdapter
    >>> quiet, moved = (models.mlp(4, 3, normalization="batch") for _ in range(2))
    >>> adapter = SwitchingAdapter(Source(quiet), Tent(moved), drift.ADWIN())
    >>> adapter.adapt(torch.rand(8, 4)).shape, adapter.alarms
    (torch.Size([8, 3]), 0)
    """

    def __init__(self, first: Adapter, second: Adapter, detector: base.DriftDetector) -> None:
        self.adapters, self.detector = (first, second), detector
        self.alarms = 0
        self._new = detector.clone()

    @property
    def current(self) -> Adapter:
        """The one that answers now."""
        return self.adapters[self.alarms % 2]

    @property
    def num_classes(self) -> int | None:  # type: ignore[override]
        """That of the adapter that answers now."""
        return self.current.num_classes

    def predict(self, x: Tensor) -> Tensor:
        """Return scores of the one that answers now."""
        self.current.trusted = self.trusted
        return self.current.predict(x)

    def adapt(self, x: Tensor) -> Tensor:
        """Let the one that answers now adapt, and watch how sure it is."""
        self.current.trusted = self.trusted
        scores = self.current.adapt(x)
        if _alarm(self.detector, (1 - scores.softmax(1).amax(1)).tolist()):
            self.alarms += 1
            self.current.reset()
        return scores

    def check(self, x: Tensor) -> None:
        """Raise if a batch cannot be used."""
        self.current.trusted = self.trusted
        self.current.check(x)

    def reset(self) -> None:
        """Return to the beginning."""
        for adapter in self.adapters:
            adapter.reset()
        self.alarms, self.detector = 0, self._new.clone()

    def network(self) -> nn.Module | None:
        """Return the model of the one that answers now."""
        return self.current.network()

    def to(self, device: torch.device | str) -> Self:
        """Move both to ``device``."""
        for adapter in self.adapters:
            adapter.to(device)
        return self

    def describe(self) -> dict[str, object]:
        """Return adapters and detector (JSON values)."""
        parameters = {"adapters": [a.describe() for a in self.adapters], "detector": repr(self._new)}
        return {"name": type(self).__name__, "parameters": parameters}

    def state_dict(self) -> State:
        """Return the states of both adapters and the detector."""
        states = {"first": self.adapters[0].state_dict(), "second": self.adapters[1].state_dict()}
        return {**states, "alarms": self.alarms, **_saved(self.detector)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        if set(state) != {"first", "second", "alarms", "detector", "river"}:
            raise CheckpointError(f"the state has parts {sorted(state)}, which are not a {type(self).__name__}'s")
        detector = _loaded(state, self.detector)
        for adapter, name in zip(self.adapters, ("first", "second")):
            adapter.load_state_dict(cast(State, state[name]))
        self.detector, self.alarms = detector, cast(int, state["alarms"])


def _alarm(detector: Any, values: list[Any]) -> bool:
    """Give values to a detector; return whether any of them raised the alarm."""
    alarm = False
    for value in values:
        detector.update(value)
        alarm |= detector.drift_detected
    return alarm


def _saved(detector: object) -> State:
    content = torch.frombuffer(bytearray(pickles.save(detector)), dtype=torch.uint8)
    return {"detector": content, "river": pickles.VERSION}


def _loaded(state: Mapping[str, object], like: Any) -> Any:
    detector = pickles.load(cast(Tensor, state["detector"]).cpu().numpy().tobytes(), str(state["river"]))
    if type(detector) is not type(like):
        raise CheckpointError(f"the state has a {type(detector).__name__}, not a {type(like).__name__}")
    return detector
