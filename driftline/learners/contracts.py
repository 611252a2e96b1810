"""What the parts of a :class:`~driftline.learners.GradientLearner` must have, and what they may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.learners.base import State

Loss = Callable[[Tensor, Tensor], Tensor]
Penalty = Callable[[nn.Module], Tensor]


class DirectPenalty(Protocol):
    """A penalty that adds its gradient itself."""

    def add_gradients(self, model: nn.Module) -> None:
        """Add the penalty's gradient to each parameter's ``grad``."""


class LabelledPenalty(Protocol):
    """A penalty that also depends on labels."""

    def see(self, y: Tensor) -> None:
        """Take the labels of the batch that the model sees next."""


class Renewer(Protocol):
    """Changes a model after an optimizer step."""

    def renew(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Renew parts of the model and of the optimizer's state."""


class EarlyRenewer(Protocol):
    """A renewer that also looks at gradients before the optimizer does."""

    def before_step(self, model: nn.Module) -> None:
        """Take notice of the gradients, or change them."""


class TaskPart(Protocol):
    """A part that wants to know the task."""

    def begin_task(self, task: int, classes: Tensor | None = None) -> None:
        """Take notice that samples of a task come from now on."""


class TaskModel(Protocol):
    """A part by which a model is another one for each task."""

    def as_task(self, model: nn.Module, task: int) -> AbstractContextManager[None]:
        """Let the model be that of a task for a while."""


class Schedule(Protocol):
    """Changes the optimizer's settings from step to step, as torch's schedulers do."""

    def step(self) -> object:
        """Change them for the next update."""


class Stateful(Protocol):
    """A part whose state travels with the learner's."""

    def state_dict(self) -> State:
        """Return the state."""

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a state."""
