import pytest
import torch

from driftline.errors import ScenarioError
from driftline.scenarios import permuted_inputs
from tests.scenarios.toy import toy


def test_every_task_has_its_own_permutation_and_the_first_none():
    stream = permuted_inputs(toy(), tasks=4)
    permutations = [s.recipes[0].transforms for s in stream.segments]
    assert permutations[0] == ()
    assert len({p[0].function for p in permutations[1:]}) == 3


def test_the_first_task_can_be_permuted_too():
    assert permuted_inputs(toy(), tasks=1, first_identity=False).segments[0].recipes[0].transforms


def test_a_permuted_sample_keeps_its_values_and_label():
    data = toy()
    segment = permuted_inputs(data, tasks=2).segments[1]
    x, y = permuted_inputs(data, tasks=2).read(60, 120)
    original = data.x[segment.rows]
    assert torch.equal(x.flatten(1).sort().values, original.flatten(1).sort().values)
    assert torch.equal(y, data.y[segment.rows])
    moved = x.flatten(1)[0].argsort().argsort()
    assert not torch.equal(moved, original.flatten(1)[0].argsort().argsort())


def test_samples_are_drawn_anew_for_each_task_without_repeats():
    stream = permuted_inputs(toy(), tasks=3, samples=25)
    subsets = [frozenset(s.rows.tolist()) for s in stream.segments]
    assert [len(s) for s in subsets] == [25, 25, 25]
    assert len(set(subsets)) == 3


@pytest.mark.parametrize("compound", [False, True])
def test_a_permutation_is_applied_to_the_permuted_inputs_only_when_asked(compound):
    stream = permuted_inputs(toy(), seed=3, tasks=3, first_identity=False, compound=compound)
    fresh = permuted_inputs(toy(), seed=3, tasks=3, first_identity=False)
    orders, drawn = ([s.recipes[0].transforms[0].function.permutation for s in t.segments] for t in (stream, fresh))
    x = torch.arange(16)
    shown = x
    for order, new in zip(orders, drawn):
        shown = (shown if compound else x)[new]
        assert torch.equal(x[order], shown)


def test_a_task_longer_than_the_data_is_played_in_several_passes():
    [segment] = permuted_inputs(toy(), tasks=1, samples=130).segments
    assert len(segment) == 130
    assert sorted(segment.rows[:60].tolist()) == sorted(segment.rows[60:120].tolist()) == list(range(60))
    assert not torch.equal(segment.rows[:60], segment.rows[60:120])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": 0}, "tasks=0: .*at least 1"),
        ({"samples": 0}, "samples=0: .*at least 1"),
        ({"draw": "all"}, "draw='all': must be one of 'per_task', 'passes', 'replacement'"),
    ],
)
def test_bad_parameters_are_refused(given, message):
    with pytest.raises(ScenarioError, match=message):
        permuted_inputs(toy(), **given)
