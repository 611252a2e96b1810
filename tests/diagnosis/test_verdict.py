import random

import pytest

from driftline.diagnosis.verdict import FEWEST_TASKS, interval, judge
from driftline.errors import DataError

GUESS = 0.1


def tasks(count, seed, fall=0.0, noise=0.02, level=0.0):
    """Scores of a learner and of a fresh network on tasks of uneven difficulty."""
    draw = random.Random(seed)
    fresh = [0.8 + draw.gauss(0, 0.05) for _ in range(count)]
    own = [f + level * (i > 0) - fall * i / (count - 1) + draw.gauss(0, noise) * (i > 0) for i, f in enumerate(fresh)]
    return own, fresh, [GUESS] * count


def states(count, **given):
    return [judge(*tasks(count, seed, **given)).state for seed in range(200)]


def test_without_a_loss_at_most_one_stream_in_twenty_is_called_losing():
    found = states(12)
    # 5 % of 200 are 10, with a standard deviation of 3.
    assert found.count("losing plasticity") <= 16
    assert found.count("holding") > 50
    assert states(40).count("holding") > 150


def test_a_large_loss_is_found_and_never_called_holding():
    found = states(12, fall=0.3)
    assert found.count("losing plasticity") > 190
    assert "holding" not in found


def test_falling_behind_from_the_second_task_on_is_a_loss_too():
    assert states(12, level=-0.2).count("losing plasticity") > 190


def test_a_change_smaller_than_the_margin_is_no_loss_however_sure():
    assert set(states(40, fall=0.01, noise=0.0005)) == {"holding"}


def test_much_noise_and_few_tasks_cannot_tell():
    assert states(5, noise=0.2).count("cannot tell") > 150
    assert set(states(FEWEST_TASKS - 1, fall=0.5)) == {"cannot tell"}


def test_tasks_on_which_nothing_can_be_learned_cannot_tell():
    scores = [0.1, 0.09, 0.08, 0.07, 0.06, 0.05]
    assert judge(scores, [0.1] * 6, [0.1] * 6).state == "cannot tell"


def test_how_hard_tasks_are_does_not_matter():
    own, fresh, guess = tasks(12, 0, fall=0.3)
    harder = [0.02 * i for i in range(12)]
    easy, hard = judge(own, fresh, guess), judge(*([v - h for v, h in zip(s, harder)] for s in (own, fresh, guess)))
    assert easy.trend.mean == pytest.approx(hard.trend.mean)
    assert easy.state == hard.state


def test_an_interval_has_the_width_of_students_t():
    found = interval([1.0, 2.0, 3.0, 4.0])
    # t(3) at 97.5 % is 3.1824; the standard error is 1.29099 / 2.
    assert found.high - found.mean == pytest.approx(3.18245 * 0.645497, rel=1e-4)
    assert interval([1.0, 2.0, 3.0, 4.0], 0.99).high > found.high


def test_scores_of_different_lengths_are_refused():
    with pytest.raises(DataError, match="2 scores, 3 of a fresh network"):
        judge([0.1, 0.2], [0.1, 0.2, 0.3], [0.0, 0.0])
