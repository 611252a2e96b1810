import itertools

import pytest
import torch

from driftline.errors import ScenarioError
from driftline.scenarios.draws import task_samples
from driftline.stream.seeds import generator
from driftline.stream.segment import Segment
from tests.scenarios.toy import toy


def tasks(count, samples, draw):
    drawn = task_samples(Segment.of(toy()), generator(0), samples, draw)
    return [segment.rows.tolist() for segment in itertools.islice(drawn, count)]


def test_each_task_draws_from_all_samples_without_repeats():
    drawn = tasks(30, 25, "per_task")
    assert all(len(set(rows)) == 25 for rows in drawn)
    # 750 of 60 draws each: all rows come up but with probability 60 * (35 / 60) ** 30 < 1e-5.
    assert set().union(*drawn) == set(range(60))
    assert set(drawn[0]) & set(drawn[1])


def test_passes_go_on_over_the_borders_of_tasks_each_in_a_new_order():
    rows = [row for task in tasks(12, 25, "passes") for row in task]
    visits = [tuple(rows[start : start + 60]) for start in range(0, 300, 60)]
    assert all(sorted(visit) == list(range(60)) for visit in visits)
    assert len(set(visits)) == 5


def test_with_replacement_a_sample_may_come_twice_in_a_task():
    [rows] = tasks(1, 600, "replacement")
    counts = torch.bincount(torch.tensor(rows), minlength=60)
    # Ten each on average, give or take 3.1: six deviations.
    assert counts.min() > 0 and 10 < counts.max() < 30


def test_the_default_is_one_pass_for_each_task():
    assert [sorted(rows) for rows in tasks(2, None, "per_task")] == [list(range(60))] * 2


@pytest.mark.parametrize("given", [{"samples": 0}, {"samples": 1.5}, {"samples": 5, "draw": "some"}])
def test_bad_settings_are_refused_at_once(given):
    with pytest.raises(ScenarioError, match="must be"):
        task_samples(Segment.of(toy()), generator(0), **given)
