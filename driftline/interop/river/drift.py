"""River's drift detectors decide when a learner starts afresh, or replays more."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Self, cast

import torch
from river import base
from torch import Tensor, nn

from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.interop.river.detectors import alarm, check_detector, loaded, saved
from driftline.interop.river.replay_more import ReplayMore
from driftline.learners.base import Learner, State
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
        check_detector(detector)
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
        if alarm(self.detector, wrong):
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
        return {**state, "respond": own, **saved(self.detector)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        if set(state) != {"learner", "alarms", "start", "respond", "detector", "river"}:
            raise CheckpointError(f"the state has parts {sorted(state)}, which are not a {type(self).__name__}'s")
        own = cast(State, state["respond"])
        load = getattr(self.respond, "load_state_dict", None)
        if (state["start"] is None) != (self._start is None) or bool(own) != (load is not None):
            raise CheckpointError(f"the state is of a {type(self).__name__} that responds to an alarm in another way")
        detector = loaded(state, self.detector)
        self.learner.load_state_dict(cast(State, state["learner"]))
        self.detector, self.alarms = detector, cast(int, state["alarms"])
        self._start = copy.deepcopy(cast("State | None", state["start"]))
        if load is not None:
            load(own)
