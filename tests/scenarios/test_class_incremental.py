import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from driftline.errors import ScenarioError
from driftline.scenarios import class_incremental
from driftline.stream import Dataset
from tests.scenarios.toy import class_sets, rows, toy


@settings(max_examples=20, deadline=None)
@given(classes=st.integers(2, 9), tasks=st.integers(1, 9), seed=st.integers(0, 99))
def test_each_class_is_in_one_task_and_tasks_are_even(classes, tasks, seed):
    data = toy(samples=40, classes=classes)
    if tasks > classes:
        with pytest.raises(ScenarioError, match=rf"tasks={tasks}: .*toy has {classes} classes"):
            class_incremental(data, seed=seed, tasks=tasks)
        return
    stream = class_incremental(data, seed=seed, tasks=tasks)
    sets = class_sets(stream)
    assert len(sets) == tasks
    assert sorted(c for s in sets for c in s) == list(range(classes))
    assert max(map(len, sets)) - min(map(len, sets)) <= 1
    assert sorted(rows(stream)) == list(range(40))


def test_a_given_order_is_followed_and_leaves_out_what_it_does_not_name():
    stream = class_incremental(toy(classes=5), tasks=2, order=[4, 0, 2])
    assert class_sets(stream) == [{0, 4}, {2}]


def test_the_datasets_order_is_kept_without_shuffling():
    stream = class_incremental(toy(), tasks=5, order="sorted", shuffle=False)
    assert class_sets(stream) == [{0}, {1}, {2}, {3}, {4}]
    assert all(torch.equal(s.rows, s.rows.sort().values) for s in stream.segments)


def test_random_order_depends_on_the_seed():
    orders = {tuple(map(tuple, class_sets(class_incremental(toy(), seed=s, tasks=5)))) for s in range(20)}
    assert len(orders) > 10


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({"first": 4, "increment": 2}, [4, 2, 2, 1]),
        ({"increment": 4}, [4, 4, 1]),
        ({"first": 5, "tasks": 3}, [5, 2, 2]),
        ({"first": 9, "tasks": 1}, [9]),
        ({"first": 9, "increment": 3}, [9]),
        ({}, [2, 2, 2, 2, 1]),
    ],
)
def test_sizes_of_tasks(given, sizes):
    assert [len(s) for s in class_sets(class_incremental(toy(classes=9), **given))] == sizes


def test_classes_that_do_not_occur_are_not_divided():
    data = Dataset(torch.rand(6, 2), torch.tensor([0, 3, 0, 3, 5, 5]), classes=list("abcdef"), name="gaps")
    assert class_sets(class_incremental(data, tasks=3, order="sorted")) == [{0}, {3}, {5}]
    with pytest.raises(ScenarioError, match=r"tasks=4: .*from 1 to 3 \(gaps has 3 classes to divide\)"):
        class_incremental(data, tasks=4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": 0}, r"tasks=0: must be a whole number from 1 to 5"),
        ({"tasks": 2.5}, r"tasks=2.5: must be a whole number"),
        ({"tasks": True}, r"tasks=True: must be a whole number"),
        ({"tasks": 3, "increment": 1}, r"give one of them"),
        ({"increment": 6}, r"increment=6: must be a whole number from 1 to 5"),
        ({"first": 0, "increment": 1}, r"first=0: must be a whole number from 1 to 5"),
        ({"first": 4, "tasks": 3}, r"first=4 of 5 classes leaves 1 for the other 2 of tasks=3"),
        ({"first": 5, "tasks": 2}, r"leaves 0 for the other 1"),
        ({"first": 2, "tasks": 1}, r"leaves 3 for the other 0"),
        ({"order": "alphabetical"}, r"order='alphabetical': must be one of 'random', 'sorted'"),
        ({"order": [0, 0, 1]}, r"must name each class that is to be played once"),
        ({"order": []}, r"must name each class"),
        ({"order": [0, 7]}, r"no class 7 in toy; its classes are \[0, 1, 2, 3, 4\]"),
    ],
)
def test_impossible_parameters_are_named_with_their_range(given, message):
    with pytest.raises(ScenarioError, match=message):
        class_incremental(toy(), **given)
