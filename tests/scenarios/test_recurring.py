import pytest

from driftline.errors import ScenarioError
from driftline.scenarios import recurring
from tests.scenarios.toy import class_sets, rows, toy


def test_tasks_return_in_turn_with_all_their_samples_in_a_new_order():
    stream = recurring(toy(), tasks=2, cycles=3)
    first, second = class_sets(stream)[:2]
    assert class_sets(stream) == [first, second] * 3
    visits = [s.rows.tolist() for s in stream.segments[::2]]
    assert sorted(visits[0]) == sorted(visits[1]) == sorted(visits[2])
    assert visits[0] != visits[1] != visits[2]


@pytest.mark.parametrize("cycles", [1, 3, 7])
def test_fresh_visits_share_no_sample(cycles):
    stream = recurring(toy(), tasks=5, cycles=cycles, fresh=True)
    assert sorted(rows(stream)) == list(range(60))
    assert len(stream.segments) == 5 * cycles


def test_domains_return_with_the_same_transforms():
    stream = recurring(toy(), by="domains", domains="permutation", tasks=2, cycles=2)
    shown = [s.recipes[0].transforms for s in stream.segments]
    assert shown[:2] == shown[2:]
    assert shown[0] != shown[1]


@pytest.mark.parametrize(
    ("given", "message"), [({"cycles": 0}, "cycles=0"), ({"by": "x"}, "must be one of"), ({"tasks": 8}, "5 classes")]
)
def test_bad_parameters_are_refused(given, message):
    with pytest.raises(ScenarioError, match=message):
        recurring(toy(), **given)
