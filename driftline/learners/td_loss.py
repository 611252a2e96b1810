"""Temporal differences: a critic learns to predict returns from its own predictions one step later.

Sutton, "Learning to predict by the methods of temporal differences" (1988), with the target network of Mnih et al.,
"Human-level control through deep reinforcement learning" (2015), and of Lillicrap et al. (2016), who let it follow.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.errors import ConfigError, InputError
from driftline.stream.transitions import Transitions

if TYPE_CHECKING:
    from driftline.learners.normalizer import InputNormalizer

State = dict[str, object]


class TDLoss:
    """Mean squared temporal-difference error, (r + gamma V'(s') - V(s))^2, with V' a target network.

    The loss of a :class:`~driftline.learners.GradientLearner` on streams of
    :class:`~driftline.stream.transitions.Transitions`; a replay memory keeps whole transitions then.

    Parameters
    ----------
    critic : nn.Module
        The model that is trained: states (B, S) to values (B, 1). Copied; make the loss before hooks are put on it.
    tau : float
        How far the target network goes towards the critic each time, in (0, 1]; 1 copies the critic.
    every : int
        Updates from one time to the next.
    normalizer : InputNormalizer, optional
        The learner's, if it has one: next states go through it too.

    Attributes
    ----------
    target : nn.Module
        The target network.

    Raises
    ------
    ConfigError
        For a number out of range.
    InputError
        For labels that are no transitions, or scores that are not one value for each.

    Examples
    --------
    >>> from driftline import models
    >>> from driftline.learners import GradientLearner, SlidingReplay, TDLoss
    >>> critic = models.mlp(1, 1, (16,))
    >>> adam = torch.optim.Adam(critic.parameters(), lr=0.01)
    >>> learner = GradientLearner(critic, adam, TDLoss(critic, tau=0.1), replay=SlidingReplay(100))
    >>> state, last = torch.tensor([[0.0]]), torch.tensor([[1.0]])
    >>> for _ in range(300):
    ...     learner.learn(state, torch.tensor([[1.0, 0.5, 0.0, 1.0]]))  # reward 1, then the last state
    ...     learner.learn(last, torch.tensor([[2.0, 0.0, 0.0, 0.0]]))  # reward 2, and the end
    >>> learner.predict(torch.cat((state, last))).round().flatten().tolist()
    [2.0, 2.0]
    """

    def __init__(
        self, critic: nn.Module, tau: float = 0.01, every: int = 1, normalizer: InputNormalizer | None = None
    ) -> None:
        if not 0 < tau <= 1:
            raise ConfigError(f"tau={tau}: must be above 0 and at most 1")
        if every < 1:
            raise ConfigError(f"every={every}: must be at least 1 update")
        self.critic, self.tau, self.every, self.normalizer = critic, tau, every, normalizer
        self.target = copy.deepcopy(critic).requires_grad_(False).eval()
        self.updates = 0

    def __call__(self, scores: Tensor, y: Tensor) -> Tensor:
        """Return the loss of values (B, 1); one that is to be trained on lets the target network follow first."""
        seen = Transitions.of(y)
        if scores.shape != (len(y), 1):
            raise InputError(
                f"TDLoss: scores of shape {tuple(scores.shape)} for {len(y)} transitions; the critic must give one "
                f"value for each, {(len(y), 1)}"
            )
        if scores.requires_grad:
            if self.updates and self.updates % self.every == 0:
                self._follow()
            self.updates += 1
        with torch.no_grad():
            following = seen.following if self.normalizer is None else self.normalizer(seen.following)
            wanted = seen.rewards + seen.discounts * self.target(following).squeeze(-1)
        return F.mse_loss(scores.squeeze(-1), wanted)

    @torch.no_grad()
    def _follow(self) -> None:
        for old, new in zip(self.target.parameters(), self.critic.parameters()):
            old.lerp_(new, self.tau)
        for buffer, now in zip(self.target.buffers(), self.critic.buffers()):
            buffer.copy_(now)

    def to(self, device: torch.device | str) -> Self:
        """Move the target network to ``device``."""
        self.target.to(device)
        return self

    def state_dict(self) -> State:
        """Return the target network, and how many updates there were."""
        return {"target": self.target.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        self.target.load_state_dict(cast(Mapping[str, Tensor], state["target"]))
        self.updates = cast(int, state["updates"])
