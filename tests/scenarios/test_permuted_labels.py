import pytest
import torch

import driftline
from driftline.errors import ScenarioError
from driftline.scenarios import permuted_labels
from driftline.stream import Dataset
from tests.scenarios.toy import toy


def test_labels_change_names_class_by_class_and_inputs_stay():
    data = toy()
    stream = permuted_labels(data, seed=1, tasks=4)
    mappings = []
    for segment in stream.segments:
        pairs = set(zip(data.y[segment.rows].tolist(), segment.labels().tolist()))
        assert len(pairs) == 5
        assert len({new for _, new in pairs}) == 5
        mappings.append(frozenset(pairs))
        assert segment.recipes[0].transforms == ()
    assert mappings[0] == {(c, c) for c in range(5)}
    assert len(set(mappings)) > 2


def test_only_classes_that_occur_trade_labels():
    data = Dataset(torch.rand(6, 2), torch.tensor([0, 2, 4, 0, 2, 4]), classes=list("abcde"))
    stream = permuted_labels(data, tasks=5, first_identity=False)
    assert [sorted(set(s.labels().tolist())) for s in stream.segments] == [[0, 2, 4]] * 5


def test_held_out_labels_are_permuted_alike():
    digits = driftline.load("digits")
    segment = permuted_labels(digits, tasks=2, samples=300).segments[1]
    mapping = segment.recipes[0].relabel
    assert torch.equal(segment.held_out().labels(), mapping[digits.test.y])


@pytest.mark.parametrize("compound", [False, True])
def test_a_permutation_is_applied_to_the_permuted_labels_only_when_asked(compound):
    stream = permuted_labels(toy(), seed=3, tasks=4, first_identity=False, compound=compound)
    fresh = permuted_labels(toy(), seed=3, tasks=4, first_identity=False)
    y = shown = torch.arange(5)
    for segment, new in zip(stream.segments, fresh.segments):
        shown = new.recipes[0].relabel[shown if compound else y]
        assert torch.equal(segment.recipes[0].relabel, shown)


def test_tasks_can_go_on_through_the_data_where_the_one_before_stopped():
    stream = permuted_labels(toy(), tasks=3, samples=20, draw="passes")
    assert sorted(row for s in stream.segments for row in s.rows.tolist()) == list(range(60))


def test_bad_parameters_are_refused():
    with pytest.raises(ScenarioError, match=r"tasks=0: .*at least 1"):
        permuted_labels(toy(), tasks=0)
