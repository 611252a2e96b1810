"""What a detector of drift is given, and how its state is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from river import base
from torch import Tensor

from driftline.errors import CheckpointError, ConfigError
from driftline.interop.river import pickles
from driftline.learners.base import State


def check_detector(detector: object) -> None:
    """Raise ConfigError unless it is a detector of River."""
    if not isinstance(detector, (base.DriftDetector, base.BinaryDriftDetector)):
        raise ConfigError(f"{type(detector).__name__} is no drift detector of River")


def alarm(detector: Any, values: list[Any]) -> bool:
    """Give values to a detector; return whether any of them raised the alarm."""
    heard = False
    for value in values:
        detector.update(value)
        heard |= detector.drift_detected
    return heard


def saved(detector: object) -> State:
    """Return a detector as part of a state."""
    content = torch.frombuffer(bytearray(pickles.save(detector)), dtype=torch.uint8)
    return {"detector": content, "river": pickles.VERSION}


def loaded(state: Mapping[str, object], like: Any) -> Any:
    """Return the detector in a state, which must be of the class of another.

    Raises
    ------
    CheckpointError
        When it is not.
    """
    detector = pickles.load(cast(Tensor, state["detector"]).cpu().numpy().tobytes(), str(state["river"]))
    if type(detector) is not type(like):
        raise CheckpointError(f"the state has a {type(detector).__name__}, not a {type(like).__name__}")
    return detector
