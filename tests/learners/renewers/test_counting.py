from __future__ import annotations

import itertools
import math

import pytest
import torch

from driftline.errors import CheckpointError
from driftline.learners.draws import Draws
from driftline.learners.renewers.counting import COINS_AT_ONCE, RenewalCounter, Schedule


def eligible_by_ages(due, units, maturity):
    """Eligible units at each step, from the ages of all units; any of the eligible may be renewed."""
    ages, counts = [0] * units, []
    for count in due:
        ages = [age + 1 for age in ages]
        old = [i for i, age in enumerate(ages) if age > maturity]
        counts.append(len(old))
        for i in old[:count]:
            ages[i] = 0
    return counts


@pytest.mark.parametrize("maturity", [0, 3, 20])
@pytest.mark.parametrize("rate", [1 / 1024, 1 / 16, 1 / 2, 1.0])
def test_renewals_are_the_whole_part_of_rate_times_eligible_units(rate, maturity):
    counter = RenewalCounter(units=13, rate=rate, maturity=maturity)
    due = [counter.due(step) for step in range(1, 400)]
    eligible = eligible_by_ages(due, 13, maturity)
    # The rates are powers of two, of which sums are exact.
    expected = [math.floor(rate * total) for total in itertools.accumulate(eligible)]
    assert list(itertools.accumulate(due)) == expected
    assert sum(due) > 0 and not any(due[:maturity])


def test_never_more_units_are_due_than_are_eligible():
    counter = RenewalCounter(units=5, rate=1.0, maturity=2, whole=True)
    for step in range(1, 50):
        before = counter.eligible
        assert 0 <= counter.due(step) <= 5 and counter.eligible >= 0 and before <= 5


@pytest.mark.parametrize(("rate", "expected"), [(0.05, 0.5), (0.13, 1.3), (0.2, 2.0)])
def test_left_to_chance_the_expected_number_is_kept(rate, expected):
    counter = RenewalCounter(units=10, rate=rate, maturity=0, accumulate=False)
    coins = Draws(0, "coins").uniform(0, 20000).tolist()
    counts = [counter.due(step, coin) for step, coin in enumerate(coins, start=1)]
    # Five standard deviations of a mean of 20000 fractions.
    assert sum(counts) / len(counts) == pytest.approx(expected, abs=5 * 0.5 / math.sqrt(20000))


def test_the_released_chance_drops_the_fraction_above_one():
    counter = RenewalCounter(units=10, rate=0.19, maturity=0, accumulate=False, released=True)
    assert {counter.due(step, coin=0.01) for step in range(1, 50)} == {1}


def test_a_rate_of_zero_is_never_due():
    counter = RenewalCounter(units=10, rate=0.0, maturity=0, accumulate=False)
    assert not any(counter.due(step, coin=0.0) for step in range(1, 50))


def test_one_counter_serves_replicas_that_renew_alike():
    assert [len(c) for c in Schedule([3, 4], 0.1, 5, replicas=3).counters] == [1, 1]
    assert [len(c) for c in Schedule([3, 4], [0.1, 0.2, 0.3], 5, replicas=3).counters] == [3, 3]
    assert [len(c) for c in Schedule([3, 4], 0.1, 5, replicas=3, accumulate=False).counters] == [3, 3]


def test_each_replica_is_due_when_it_would_be_alone():
    rates, maturities, seeds = [0.1, 0.02, 0.3], [3, 5, 9], [4, 5, 6]
    together = Schedule([7, 9], rates, maturities, replicas=3, accumulate=False)
    draws = Draws(seeds, "coins", replicas=3)
    alone = [Schedule([7, 9], r, m, accumulate=False) for r, m in zip(rates, maturities)]
    own = [Draws(seed, "coins") for seed in seeds]
    for step in range(1, 2 * COINS_AT_ONCE):
        all_three = together.due(step, draws, [0, 1])
        each = [schedule.due(step, one, [0, 1]) for schedule, one in zip(alone, own)]
        assert all_three == [[one[layer][0] for one in each] for layer in (0, 1)]


def test_a_state_continues_within_a_block_of_chance():
    first, second = (Schedule([7], 0.1, 3, accumulate=False) for _ in range(2))
    draws = Draws(0, "coins")
    for step in range(1, 301):
        first.due(step, draws, [0])
    second.load_state_dict(first.state_dict())
    assert [first.due(s, draws, [0]) for s in range(301, 600)] == [second.due(s, draws, [0]) for s in range(301, 600)]


def test_a_state_of_other_replicas_is_refused():
    state = Schedule([3], [0.1, 0.2], 5, replicas=2).state_dict()
    with pytest.raises(CheckpointError, match=r"of \[2\] replicas in each layer, here it is \[1\]"):
        Schedule([3], 0.1, 5, replicas=2).check_state(state)


def test_a_state_is_plain_values():
    state = Schedule([3], 0.1, 5).state_dict()
    assert state == [[{"eligible": 0, "carry": 0.0, "renewed": [[0, 3]]}]]
    assert not any(isinstance(v, torch.Tensor) for v in state[0][0].values())
