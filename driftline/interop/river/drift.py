"""River's drift detectors decide when a learner starts afresh, or replays more, and which of two adapters answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import torch
from river import base
from torch import Tensor, nn

from driftline.adapters.base import Adapter
from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.interop.river import pickles
from driftline.learners.base import Learner, State
from driftline.learners.gradient import GradientLearner
from driftline.stream.parts import describe_part

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

    Raises
    ------
    ConfigError
        When the detector is none of River's, the learner has replicas (put watched learners into
        :func:`driftline.learners.in_lockstep` instead), or a :class:`ReplayMore` is not the learner's.
    InputError
        When there are numbers to predict.

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
        _check_detector(detector)
        if learner.replicas is not None:
            raise ConfigError("a detector watches one learner; give each its own, and put them together in_lockstep")
        if isinstance(respond, ReplayMore):
            respond.check(learner)
        self.learner, self.detector, self.respond = learner, detector, respond
        self.alarms = 0
        self._start = copy.deepcopy(learner.state_dict()) if respond is None else None
        self._device: torch.device | str | None = None

    @property
    def trusted(self) -> bool:
        """That of the learner."""
        return self.learner.trusted

    @trusted.setter
    def trusted(self, value: bool) -> None:
        self.learner.trusted = value

    @property
    def input_shape(self) -> tuple[int, ...] | None:  # type: ignore[override]
        """That of the learner."""
        return self.learner.input_shape

    @property
    def num_classes(self) -> int | None:  # type: ignore[override]
        """That of the learner."""
        return self.learner.num_classes

    @property
    def task_aware(self) -> bool:
        """Whether the learner wants to be told the task."""
        return self.learner.task_aware

    def begin_task(self, task: int, classes: Tensor | None = None) -> None:
        """Tell the learner that samples of a task come from now on."""
        self.learner.begin_task(task, classes)

    def predict_task(self, x: Tensor, task: int) -> Tensor:
        """Return the learner's scores for samples of a task."""
        return self.learner.predict_task(x, task)

    def predict(self, x: Tensor) -> Tensor:
        """Return the learner's scores."""
        return self.learner.predict(x)

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Watch the batch's errors, respond to an alarm, and learn."""
        self.check(x, y)
        wrong = (self.learner.predict(x).argmax(1) != y).tolist()
        if _alarm(self.detector, wrong):
            self.alarms += 1
            if self.respond is None:
                self.learner.load_state_dict(copy.deepcopy(cast(State, self._start)))
                if self._device is not None:
                    self.learner = self.learner.to(self._device)
            else:
                self.respond(self.learner)
        self.learner.learn(x, y)

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Raise if the learner cannot use a batch."""
        self.learner.check(x, y)
        if y is not None and y.is_floating_point():
            raise InputError(f"{type(self).__name__}, y: {y.dtype}; its detector watches errors of classes")

    def network(self) -> nn.Module | None:
        """Return the learner's model."""
        return self.learner.network()

    def to(self, device: torch.device | str) -> Self:
        """Move the learner to ``device``."""
        self.learner, self._device = self.learner.to(device), device
        return self

    def describe(self) -> dict[str, object]:
        """Return learner, detector and response (JSON values)."""
        respond = "reset" if self.respond is None else describe_part(self.respond)
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
        own = cast(State, state["respond"])
        load = getattr(self.respond, "load_state_dict", None)
        if (state["start"] is None) != (self._start is None) or bool(own) != (load is not None):
            raise CheckpointError(f"the state is of a {type(self).__name__} that responds to an alarm in another way")
        detector = _loaded(state, self.detector)
        self.learner.load_state_dict(cast(State, state["learner"]))
        self.detector, self.alarms = detector, cast(int, state["alarms"])
        self._start = copy.deepcopy(cast("State | None", state["start"]))
        if load is not None:
            load(own)


class ReplayMore:
    """More updates per batch for a while after an alarm; also to be given to the learner as its replay ratio.

    Parameters
    ----------
    updates, usual : int
        Updates per batch after an alarm, and else.
    samples : int
        How long; an alarm while it goes on begins it anew.

    Examples
    --------
    >>> from river import drift
    >>> from driftline import models
    >>> from driftline.interop.river import DriftResponse, ReplayMore
    >>> from driftline.learners import GradientLearner, ReservoirReplay
    >>> model, more = models.mlp(4, 3), ReplayMore(updates=4, samples=500)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    >>> learner = GradientLearner(model, sgd, replay=ReservoirReplay(100), replay_ratio=more)
    >>> watched = DriftResponse(learner, drift.ADWIN(), more)
    """

    def __init__(self, updates: int, samples: int, usual: int = 1) -> None:
        if min(updates, usual) < 0 or samples < 1:
            raise ConfigError(f"updates={updates}, usual={usual}, samples={samples}: at least 0, 0 and 1")
        self.updates, self.samples, self.usual = updates, samples, usual
        self._until = 0

    def __call__(self, learner: Learner) -> None:
        """Begin to replay more."""
        self._until = self.check(learner).position + self.samples

    def check(self, learner: Learner) -> GradientLearner:
        """Return the learner when it asks this part how much to replay, else raise."""
        if not isinstance(learner, GradientLearner) or learner.replay_ratio is not self:
            raise ConfigError("ReplayMore must also be the learner's replay_ratio=")
        return learner

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
        Given each sample's uncertainty, 1 minus its largest probability. It begins anew after each alarm, since the one
        that takes over is as sure as it is, whatever the other was.

    Raises
    ------
    ConfigError
        When the detector is none of River's, or both adapters have the same model.

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
        _check_detector(detector)
        if first.network() is not None and first.network() is second.network():
            raise ConfigError("both adapters have the same model; give the second one a copy")
        self.adapters, self.detector = (first, second), detector
        self.alarms = 0
        self._new = detector.clone()

    @property
    def current(self) -> Adapter:
        """The one that answers now."""
        return self.adapters[self.alarms % 2]

    @property
    def trusted(self) -> bool:
        """That of the adapter that answers now."""
        return self.current.trusted

    @trusted.setter
    def trusted(self, value: bool) -> None:
        for adapter in self.adapters:
            adapter.trusted = value

    @property
    def input_shape(self) -> tuple[int, ...] | None:  # type: ignore[override]
        """That of the adapter that answers now."""
        return self.current.input_shape

    @property
    def num_classes(self) -> int | None:  # type: ignore[override]
        """That of the adapter that answers now."""
        return self.current.num_classes

    def predict(self, x: Tensor) -> Tensor:
        """Return scores of the one that answers now."""
        return self.current.predict(x)

    def adapt(self, x: Tensor) -> Tensor:
        """Let the one that answers now adapt, and watch how sure it is."""
        scores = self.current.adapt(x)
        # Scores that are no numbers are no answer, and one value that is none would blind the detector for ever.
        if _alarm(self.detector, (1 - scores.softmax(1).amax(1)).nan_to_num(1.0).tolist()):
            self.alarms += 1
            self.current.reset()
            self.detector = self._new.clone()
        return scores

    def check(self, x: Tensor) -> None:
        """Raise if a batch cannot be used."""
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
        first, second = self.adapters
        self.adapters = first.to(device), second.to(device)
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
        first, second = self.adapters
        before = copy.deepcopy(first.state_dict())
        first.load_state_dict(cast(State, state["first"]))
        try:
            second.load_state_dict(cast(State, state["second"]))
        except Exception:
            first.load_state_dict(before)
            raise
        self.detector, self.alarms = detector, cast(int, state["alarms"])


def _check_detector(detector: object) -> None:
    if not isinstance(detector, (base.DriftDetector, base.BinaryDriftDetector)):
        raise ConfigError(f"{type(detector).__name__} is no drift detector of River")


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
