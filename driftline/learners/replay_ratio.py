"""How many updates a step makes: the contract, and a fixed number that may be a fraction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Protocol, cast

from torch import nn

from driftline.errors import ConfigError

State = dict[str, object]


class ReplayRatio(Protocol):
    """Decides how many updates a step makes.

    One that also has ``watching(model)``, a context manager, has it entered around the forward pass of each update, so
    that it sees hidden units without a pass of its own.
    """

    def ratio(self, position: int, model: nn.Module) -> int:
        """Return the number of updates for the batch that begins at this sample."""


class FixedReplayRatio:
    """The same number of updates at every step; a fraction is spread evenly, the first update at the first step.

    Parameters
    ----------
    updates : float
        Updates per step, at least 0: 0.5 is one at every second step, 1.5 two and one in turn.

    Raises
    ------
    ConfigError
        For a number below 0 or not finite.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> half, more = FixedReplayRatio(0.5), FixedReplayRatio(1.5)
    >>> [half.ratio(n, model) for n in range(4)], [more.ratio(n, model) for n in range(4)]
    ([1, 0, 1, 0], [2, 1, 2, 1])
    """

    def __init__(self, updates: float) -> None:
        if not 0 <= updates < math.inf:
            raise ConfigError(f"replay_ratio={updates}: must be 0 or more updates per batch")
        self.updates = updates
        self.steps = 0

    def ratio(self, position: int, model: nn.Module) -> int:
        """Return the number of updates of the next step."""
        updates = updates_of(self.steps, self.updates)
        self.steps += 1
        return updates

    def state_dict(self) -> State:
        """Return how many steps there were."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        self.steps = cast(int, state["steps"])


def updates_of(step: int, ratio: float) -> int:
    """Return how many updates step ``step`` (from 0) makes, so that ``n`` steps make n times the ratio, rounded up.

    Examples
    --------
    >>> [updates_of(step, 0.3) for step in range(10)]
    [1, 0, 0, 1, 0, 0, 1, 0, 0, 0]
    """
    # 0.1 is no sum of powers of two: in floating point, thirty times 0.1 is more than 3.
    exact = Fraction(ratio).limit_denominator(10_000)
    return math.ceil((step + 1) * exact) - math.ceil(step * exact)
