import pytest
import torch

from driftline.errors import ScenarioError
from driftline.scenarios import random_labels
from tests.scenarios.toy import toy


def test_a_sample_has_one_label_throughout_a_task_and_an_unrelated_one_in_the_next():
    data = toy(samples=600)
    stream = random_labels(data, tasks=2, epochs=3)
    tables = []
    for segment in stream.segments:
        pairs = dict(zip(segment.rows.tolist(), segment.labels().tolist()))
        assert len(set(zip(segment.rows.tolist(), segment.labels().tolist()))) == len(pairs) == 600
        tables.append(torch.tensor([pairs[i] for i in range(600)]))
    # Five classes agree by chance in 120 of 600 cases, give or take 10: five deviations.
    for other in (data.y, tables[1]):
        assert abs(int((tables[0] == other).sum()) - 120) < 50


def test_labels_are_drawn_evenly():
    stream = random_labels(toy(sizes=[590, 10]), tasks=1, epochs=1)
    # 300 of 600, give or take 12: five deviations.
    assert abs(int(stream.labels().sum()) - 300) < 61


def test_shuffled_labels_are_those_of_the_samples_that_are_played():
    data = toy(sizes=[50, 9, 1])
    stream = random_labels(data, tasks=3, samples=55, epochs=1, labels="shuffled")
    own = data.y[stream.segments[0].rows].sort().values
    played = [segment.labels() for segment in stream.segments]
    assert all(torch.equal(labels.sort().values, own) for labels in played)
    assert not torch.equal(played[0], data.y[stream.segments[0].rows])


def test_the_same_samples_return_in_every_epoch_and_task_in_another_order():
    stream = random_labels(toy(), tasks=2, samples=20, epochs=3)
    visits = [part.tolist() for s in stream.segments for part in s.rows.split(20)]
    assert len({frozenset(v) for v in visits}) == 1
    assert len({tuple(v) for v in visits}) == 6


def test_truth_of_unseen_samples_is_undefined():
    assert random_labels(toy(), tasks=1).held_out() == [None]


@pytest.mark.parametrize("given", [{"tasks": 0}, {"epochs": 0}, {"samples": 0}, {"labels": "real"}])
def test_bad_parameters_are_refused(given):
    with pytest.raises(ScenarioError, match="must be (a whole number|one of 'drawn', 'shuffled')"):
        random_labels(toy(), **given)
