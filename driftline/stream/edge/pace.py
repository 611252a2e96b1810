"""How much adapting fits into the latency budget: all of the batch, a part of it, or nothing."""

from __future__ import annotations

import math
from typing import Literal

from driftline.adapters.settings import at_least, one_of
from driftline.errors import ConfigError

WhenLate = Literal["skip", "smaller", "background"]

FORGET = 0.95
"""What is left of an old, higher cost at each new measurement: the estimate is a maximum that fades."""
PATIENCE = (4, 256)
"""Batches skipped before a quarter of one is tried all the same, so that one slow step does not stop adapting for long:
at first, and at most, when each try shows that there is still no time."""
FASTER = 0.8
"""A try that takes less than this of the one before is followed by another one."""

SHARES = (1, 2, 4)
"""A batch is cut to a quarter at most: what normalises by the batch is led astray by a few samples."""


class Pace:
    """Decides, before each adaptation, to how many of the collected samples there is time to adapt.

    Adapting may begin when the sample that arrives right then can still be answered in time, with those that wait
    already: cost of adapting + (waiting + 1) predictions <= budget. Costs are maxima of what was measured, which fade.
    Where nothing fits, the smallest part is tried after four batches, and what that takes is the cost from then on. A
    second try follows, and more as long as each is faster than the one before: what was not used for a while has to be
    read from disk again first. As long as they take too much, the next tries come after twice as many batches.

    Parameters
    ----------
    budget : float
        Seconds from a sample's arrival to its prediction.
    when_late : "skip", "smaller" or "background"
        What happens to a batch for which there is no time: nothing is learned from it; as much of it (its newest
        half, or quarter) as there is time for; "background": all of it, since another thread does it.

    Raises
    ------
    ConfigError
        For a budget that is not positive.

    Examples
    --------
    >>> pace = Pace(0.1, "smaller")
    >>> pace.predicted(0.01)
    >>> pace.adapted(16, 0.16)
    >>> pace.choose(16, waiting=0), pace.choose(16, waiting=3), pace.choose(16, waiting=7)
    (8, 4, 0)
    """

    def __init__(self, budget: float, when_late: WhenLate = "smaller") -> None:
        if not budget > 0:
            raise ConfigError(f"latency_budget={budget!r}: give the seconds in which a sample must be answered")
        one_of("when_late", when_late, ("skip", "smaller", "background"))
        self.budget, self.when_late = budget, when_late
        self.prediction = 0.0
        self.cost: dict[int, float] = {}
        self._skipped, self._patience = 0, PATIENCE[0]
        self._trying, self._again, self._last = False, False, math.inf

    def predicted(self, seconds: float) -> None:
        """Note what a prediction took."""
        self.prediction = max(seconds, FORGET * self.prediction)

    def adapted(self, samples: int, seconds: float) -> None:
        """Note what adapting to so many samples took."""
        if self._trying:
            self._trying, self._again, self._last = False, seconds < FASTER * self._last, seconds
            self.cost = {}
        self.cost[samples] = max(seconds, FORGET * self.cost.get(samples, 0.0))
        for fewer in self.cost:
            if fewer < samples:
                self.cost[fewer] = max(self.cost[fewer], seconds * fewer / samples)

    def choose(self, collected: int, waiting: int) -> int:
        """Return to how many samples to adapt now, 0 for none.

        Parameters
        ----------
        collected : int
            Samples to adapt to.
        waiting : int
            Samples that have arrived and are not answered yet.
        """
        at_least("collected", collected, 1)
        if self.when_late == "background":
            return collected
        room = self.budget - (waiting + 1) * self.prediction
        parts = SHARES if self.when_late == "smaller" else SHARES[:1]
        sizes = [collected // part for part in parts if collected >= part]
        for size in sizes:
            if self._expected(size) <= room:
                self._skipped, self._patience, self._again = 0, PATIENCE[0], False
                return size
        if room <= 0:
            return 0
        self._skipped += 1
        if not self._again:
            if self._skipped < self._patience:
                return 0
            self._patience, self._last = min(2 * self._patience, PATIENCE[1]), math.inf
        self._skipped, self._trying = 0, True
        return sizes[-1]

    def _expected(self, samples: int) -> float:
        """Return a cost: more samples cost at most in proportion, fewer are taken to."""
        fewer = [cost * samples / known for known, cost in self.cost.items() if known <= samples]
        if fewer:
            return min(fewer)
        return min((cost * samples / known for known, cost in self.cost.items()), default=0.0)
