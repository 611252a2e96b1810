"""Parameters of scenarios, checked before anything is built: a message says what was given and what is possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from driftline.errors import ScenarioError
from driftline.stream.segment import Segment


def whole(name: str, value: object, low: int, high: int | None = None, why: str = "") -> None:
    """Raise unless ``value`` is a whole number from ``low`` to ``high``; ``why`` says where the bounds come from."""
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high)
    if not fits:
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ScenarioError(f"{name}={value!r}: must be a whole number {bounds}{why and f' ({why})'}")


def between(name: str, value: object, low: float, high: float = math.inf) -> None:
    """Raise unless ``value`` is a finite number from ``low`` to ``high``."""
    if not _is_number(value) or not low <= value <= high:
        bounds = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ScenarioError(f"{name}={value!r}: must be a number {bounds}")


def above(name: str, value: object, low: float) -> None:
    """Raise unless ``value`` is a finite number above ``low``."""
    if not _is_number(value) or not value > low:
        raise ScenarioError(f"{name}={value!r}: must be a number above {low:g}")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ScenarioError(f"{name}={value!r}: must be one of {', '.join(map(repr, choices))}")


def samples_per_task(data: Segment, samples: int | None) -> int:
    """Return how many samples each task plays: ``samples``, by default all of them."""
    if samples is None:
        return len(data)
    whole("samples", samples, 1, len(data), f"{data.dataset.name} has {len(data)} samples")
    return samples


def classes_in(data: Segment) -> Tensor:
    """Return the classes that occur in the data, ascending.

    Raises
    ------
    ScenarioError
        When there are no classes (no labels, or regression targets), or only one occurs.
    """
    labels = data.class_labels()
    present = torch.bincount(labels, minlength=data.num_classes).nonzero().flatten()
    if len(present) < 2:
        raise ScenarioError(
            f"{data.dataset.name}: only class {int(present[0])} occurs in its {len(data)} samples; "
            "this scenario needs at least two classes"
        )
    return present


def tasks_of_classes(tasks: object, classes: int, data: Segment) -> None:
    """Raise unless ``classes`` classes can be divided among ``tasks`` tasks."""
    whole("tasks", tasks, 1, classes, f"{data.dataset.name} has {classes} classes to divide")


def images(data: Segment, what: str) -> None:
    """Raise unless the samples are images of shape (H, W) or (C, H, W)."""
    shape = data.dataset.input_shape
    if len(shape) not in (2, 3) or not (data.dataset.x.is_floating_point() or data.dataset.x.dtype == torch.uint8):
        raise ScenarioError(
            f"{what}: needs images of shape (C, H, W), bytes or floating point; "
            f"{data.dataset.name} has samples of shape {shape} and dtype {data.dataset.x.dtype}"
        )


def unit_range(data: Segment, what: str) -> None:
    """Raise unless the samples are bytes, or lie in [0, 1]."""
    x = data.dataset.x
    if x.dtype != torch.uint8 and (float(x.min()) < 0 or float(x.max()) > 1):
        raise ScenarioError(
            f"{what}: needs values in [0, 1]; those of {data.dataset.name} go from {float(x.min()):g} "
            f"to {float(x.max()):g} (is it standardised?)"
        )
