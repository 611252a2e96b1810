"""How many units of a layer are due at each step: known on the host, without reading anything from the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import cast

from driftline.errors import CheckpointError
from driftline.learners.draws import Draws
from driftline.learners.replicas import Setting

COINS_AT_ONCE = 256
"""Steps for which chance is drawn at once, for each layer."""


class RenewalCounter:
    """Counts a layer's eligible units, and from them the units to renew.

    A unit is eligible when its age, in steps since it was renewed, is above ``maturity``. Which units are renewed is
    decided on the device, but how many become eligible at a step follows from how many were renewed when.

    Parameters
    ----------
    units : int
        Units of the layer; none has been renewed yet, all have age 0.
    rate : float
        Expected number of renewals for each eligible unit and step, in [0, 1].
    maturity : int
        Steps for which a renewed unit is safe.
    accumulate : bool
        Whether fractions are carried to later steps; otherwise they are left to chance.
    released : bool
        Whether chance works as in the released code: a fraction above 1 is dropped.
    whole : bool
        Whether the rate counts for all units of the layer as soon as one is eligible.

    Examples
    --------
    >>> counter = RenewalCounter(units=10, rate=0.05, maturity=2)
    >>> [counter.due(step) for step in range(1, 8)]
    [0, 0, 0, 1, 0, 0, 1]
    """

    def __init__(
        self,
        units: int,
        rate: float,
        maturity: int,
        accumulate: bool = True,
        released: bool = False,
        whole: bool = False,
    ) -> None:
        self.units, self.rate, self.maturity = units, rate, maturity
        self.accumulate, self.released, self.whole = accumulate, released, whole
        self.eligible = 0
        self.carry = 0.0
        self.renewed = deque([(0, units)])
        """Step and number of past renewals whose units are not eligible again yet."""

    def due(self, step: int, coin: float = 1.0) -> int:
        """Return how many units to renew at a step; to be asked once at each, from 1 on.

        Parameters
        ----------
        step : int
            Number of the step.
        coin : float
            Chance, uniform in (0, 1), that is looked at without ``accumulate``.
        """
        renewed = self.renewed
        while renewed and step - renewed[0][0] > self.maturity:
            self.eligible += renewed.popleft()[1]
        if not self.eligible or not self.rate:
            return 0
        expected = self.rate * (self.units if self.whole else self.eligible)
        if self.accumulate:
            self.carry += expected
            count = min(int(self.carry), self.eligible)
            self.carry -= count
        else:
            count = int(expected)
            if not self.released or expected < 1:
                count += coin <= expected - count
        if count:
            self.eligible -= count
            renewed.append((step, count))
        return count

    def state_dict(self) -> dict[str, object]:
        """Return the counts."""
        return {"eligible": self.eligible, "carry": self.carry, "renewed": [list(pair) for pair in self.renewed]}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        self.eligible, self.carry = cast(int, state["eligible"]), cast(float, state["carry"])
        self.renewed = deque((step, count) for step, count in cast("list[tuple[int, int]]", state["renewed"]))


class Schedule:
    """The counters of several layers: one for each, or one for each replica where replicas do not renew alike.

    Parameters
    ----------
    units : sequence of int
        Units of each layer.
    rate, maturity : number or sequence
        One for all, or one for each replica.
    replicas : int, optional
        Number of replicas.
    accumulate, released, whole : bool
        See :class:`RenewalCounter`.
    """

    def __init__(
        self,
        units: Sequence[int],
        rate: Setting,
        maturity: Setting,
        replicas: int | None = None,
        *,
        accumulate: bool = True,
        released: bool = False,
        whole: bool = False,
    ) -> None:
        apart = isinstance(rate, Sequence) or isinstance(maturity, Sequence) or not accumulate
        count = (replicas or 1) if apart else 1
        rates = rate if isinstance(rate, Sequence) else [rate] * count
        maturities = maturity if isinstance(maturity, Sequence) else [maturity] * count
        self.accumulate = accumulate
        self.counters = [
            [RenewalCounter(n, r, int(m), accumulate, released, whole) for r, m in zip(rates, maturities)]
            for n in units
        ]
        self._coins: dict[int, tuple[int, list[list[float]]]] = {}

    def due(self, step: int, draws: Draws, lanes: Sequence[int]) -> list[list[int]]:
        """Return how many units to renew in each layer at a step: one number, or one for each replica.

        Parameters
        ----------
        step : int
            Number of the step; each from 1 on is asked for once.
        draws : Draws
            Where chance comes from, without ``accumulate``.
        lanes : sequence of int
            Part of the address of each layer's draws.
        """
        if self.accumulate:
            return [[counter.due(step) for counter in counters] for counters in self.counters]
        block, place = divmod(step, COINS_AT_ONCE)
        counts = []
        for lane, counters in zip(lanes, self.counters):
            if lane not in self._coins or self._coins[lane][0] != block:
                drawn = draws.uniform(block, COINS_AT_ONCE, lane).view(-1, COINS_AT_ONCE)
                self._coins[lane] = (block, drawn.tolist())
            coins = self._coins[lane][1]
            counts.append([counter.due(step, coins[r][place]) for r, counter in enumerate(counters)])
        return counts

    def state_dict(self) -> list[list[dict[str, object]]]:
        """Return all counts."""
        return [[counter.state_dict() for counter in counters] for counters in self.counters]

    def check_state(self, state: object) -> None:
        """Raise unless a state is one of as many layers and replicas.

        Raises
        ------
        CheckpointError
        """
        saved = [len(counters) for counters in cast("list[list[object]]", state)]
        if saved != (own := [len(counters) for counters in self.counters]):
            raise CheckpointError(
                f"the state counts renewals of {saved} replicas in each layer, here it is {own}: it was saved with "
                "another number of replicas, or with settings that differ between them where these do not"
            )

    def load_state_dict(self, state: list[list[Mapping[str, object]]]) -> None:
        """Continue from a :meth:`state_dict`."""
        self._coins.clear()
        for counters, saved in zip(self.counters, state):
            for counter, own in zip(counters, saved):
                counter.load_state_dict(own)
