"""More replay for a while after a detector of drift has raised the alarm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import nn

from driftline.errors import ConfigError
from driftline.learners.base import Learner, State
from driftline.learners.gradient import GradientLearner


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
    >>> import torch
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
