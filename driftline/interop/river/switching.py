"""River's drift detectors decide which of two adapters answers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Self, cast

import torch
from river import base
from torch import Tensor, nn

from driftline.adapters.base import Adapter
from driftline.errors import CheckpointError, ConfigError
from driftline.interop.river.detectors import alarm, check_detector, loaded, saved
from driftline.learners.base import State


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
        check_detector(detector)
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
        if alarm(self.detector, (1 - scores.softmax(1).amax(1)).nan_to_num(1.0).tolist()):
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
        return {**states, "alarms": self.alarms, **saved(self.detector)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        if set(state) != {"first", "second", "alarms", "detector", "river"}:
            raise CheckpointError(f"the state has parts {sorted(state)}, which are not a {type(self).__name__}'s")
        detector = loaded(state, self.detector)
        first, second = self.adapters
        before = copy.deepcopy(first.state_dict())
        first.load_state_dict(cast(State, state["first"]))
        try:
            second.load_state_dict(cast(State, state["second"]))
        except Exception:
            first.load_state_dict(before)
            raise
        self.detector, self.alarms = detector, cast(int, state["alarms"])
