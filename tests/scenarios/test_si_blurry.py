import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from driftline.errors import ScenarioError
from driftline.scenarios import si_blurry
from driftline.stream import Dataset
from tests.golden import golden, golden_names
from tests.scenarios.toy import class_sets, rows, toy

pytestmark = pytest.mark.filterwarnings("ignore:si_blurry:RuntimeWarning")


@pytest.mark.parametrize("case", golden_names("scenarios", "siblurry_c*"))
def test_sequences_equal_those_of_the_published_sampler(case):
    arrays, config = golden("scenarios", case)
    y = torch.as_tensor(arrays["labels"])
    data = Dataset(torch.zeros(len(y), 1), y, classes=[str(i) for i in range(config["num_classes"])])
    stream = si_blurry(
        data,
        seed=config["seed"],
        tasks=config["num_tasks"],
        disjoint=config["n"],
        blurry=config["m"],
        stochastic=config["varing_NM"],
        blur_selection="first",
    )
    assert np.array_equal(rows(stream), arrays["indices"])
    sizes = {f"task {i}": size for i, size in enumerate(arrays["task_sizes"].tolist()) if size}
    assert {s.name: len(s) for s in stream.segments} == sizes
    home = homes(arrays)
    assert {s.name: set(s.judged) for s in stream.segments} == {name: home[name] for name in sizes}


def homes(arrays):
    """Classes of each task, as recorded."""
    found = {}
    for kind in ("disjoint", "blurry"):
        parts = np.split(arrays[f"{kind}_classes"], np.cumsum(arrays[f"{kind}_classes_sizes"])[:-1])
        for i, part in enumerate(parts):
            found.setdefault(f"task {i}", set()).update(part.tolist())
    return found


@settings(max_examples=30, deadline=None)
@given(
    classes=st.integers(2, 8),
    tasks=st.integers(1, 8),
    disjoint=st.integers(0, 100),
    blurry=st.integers(0, 100),
    selection=st.sampled_from(["random", "first"]),
    seed=st.integers(0, 1000),
)
def test_kept_samples_are_played_once_and_few_classes_are_left_out(classes, tasks, disjoint, blurry, selection, seed):
    data = toy(samples=50, classes=classes)
    tasks = min(tasks, classes)
    options = {"tasks": tasks, "disjoint": disjoint, "blurry": blurry, "blur_selection": selection}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        stream = si_blurry(data, seed=seed, **options)
        fixed = si_blurry(data, seed=seed, stochastic=False, **options)
    kept = set().union(*class_sets(stream))
    assert len(kept) > classes - 2 * tasks
    assert sorted(rows(stream)) == [i for i in range(50) if int(data.y[i]) in kept]
    assert len(set(rows(fixed))) == len(rows(fixed)) > len(rows(stream)) - tasks


@pytest.mark.parametrize("stochastic", [True, False])
def test_nothing_leaks_at_zero_percent(stochastic):
    sets = class_sets(si_blurry(toy(classes=10), blurry=0, stochastic=stochastic))
    assert sum(map(len, sets)) == 10


@pytest.mark.parametrize("stochastic", [True, False])
def test_no_class_is_blurry_when_all_are_disjoint(stochastic):
    sets = class_sets(si_blurry(toy(classes=10), disjoint=100, blurry=50, stochastic=stochastic))
    assert sum(map(len, sets)) == 10


def test_first_selection_degenerates_on_sorted_data_and_random_does_not():
    y = torch.arange(100).repeat_interleave(20)
    data = Dataset(torch.zeros(2000, 1), y)

    def leaking_classes(selection):
        stream = si_blurry(data, seed=1, tasks=5, stochastic=False, blur_selection=selection)
        return sum(sum(c in s for s in class_sets(stream)) > 1 for c in range(100))

    assert leaking_classes("first") <= 10
    assert leaking_classes("random") >= 35


def test_random_selection_keeps_the_classes_and_sizes_of_the_published_draws():
    first, random = (si_blurry(toy(classes=10), seed=2, blur_selection=s) for s in ("first", "random"))
    assert [(s.judged, len(s)) for s in first.segments] == [(s.judged, len(s)) for s in random.segments]


def test_tasks_are_judged_on_home_classes_and_a_homeless_one_on_nothing():
    data = toy(samples=400, classes=4)
    data = Dataset(data.x, data.y, splits={"test": toy(samples=20, classes=4)})
    for seed in range(40):
        stream = si_blurry(data, seed=seed, tasks=4, disjoint=0, blurry=100)
        for segment, held_out in zip(stream.segments, stream.held_out()):
            if not segment.judged:
                assert held_out is None
                return
            assert set(held_out.labels().tolist()) == set(segment.judged)
    pytest.fail("no seed gave a task without classes of its own")


@pytest.mark.filterwarnings("error")
def test_classes_left_out_are_warned_of():
    with pytest.warns(RuntimeWarning, match="2 of the 5 classes of toy are in no task"):
        si_blurry(toy(), tasks=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": 6}, r"tasks=6: must be a whole number from 1 to 5 \(toy has 5 classes to divide\)"),
        ({"tasks": 0}, r"tasks=0: must be a whole number"),
        ({"disjoint": 101}, r"disjoint=101: must be a number from 0 to 100"),
        ({"blurry": -1}, r"blurry=-1: must be a number from 0 to 100"),
        ({"blurry": float("nan")}, r"blurry=nan: must be a number"),
        ({"blurry": "10"}, r"blurry='10': must be a number"),
        ({"blur_selection": "last"}, r"blur_selection='last': must be one of 'random', 'first'"),
    ],
)
def test_impossible_parameters_are_named_with_their_range(given, message):
    with pytest.raises(ScenarioError, match=message):
        si_blurry(toy(), **given)
