import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from driftline.errors import ScenarioError
from driftline.scenarios import i_blurry
from driftline.stream import Dataset
from tests.golden import golden, golden_names
from tests.scenarios.toy import class_sets, rows, toy


def counts(stream, classes):
    return np.stack([np.bincount(s.labels().numpy(), minlength=classes) for s in stream.segments])


def in_major_order(table):
    """Split counts[task, class] into (home counts, counts elsewhere), of classes that occur in several tasks."""
    shared = table[:, (table > 0).sum(0) > 1]
    home = shared.max(0)
    away = np.sort(shared, 0)[:-1]
    return home, away


def published_splits():
    names = golden_names("scenarios", "iblurry_statistics_*")
    if names[0].startswith("absent"):
        return [(names[0], "")]
    return [(name, split) for name in names for split in golden("scenarios", name)[1]["splits"]]


@pytest.mark.parametrize(("case", "split"), published_splits())
def test_counts_per_task_and_class_have_the_statistics_of_the_published_splits(case, split):
    arrays, _ = golden("scenarios", case)
    table = arrays[f"counts_{split}"]
    tasks, classes = table.shape
    n, m = (int(part[1:]) for part in split.split("_")[2:4])
    y = torch.arange(classes).repeat_interleave(int(table.sum()) // classes)
    data = Dataset(torch.zeros(len(y), 1), y)
    ours = counts(i_blurry(data, seed=1, tasks=tasks, disjoint=n, blurry=m), classes)

    assert ours.sum(1).tolist() == table.sum(1).tolist()
    assert ((ours > 0).sum(0) == 1).sum() == ((table > 0).sum(0) == 1).sum()
    if m == 0:
        return
    per_class = len(y) // classes
    # A sample of a blurry class lands in a given foreign task with probability m/T: five binomial deviations.
    p = m / 100 / tasks
    for seen in (ours, table):
        home, away = in_major_order(seen)
        assert np.abs(away - per_class * p).max() < 5 * np.sqrt(per_class * p * (1 - p))
        stays = 1 - p * (tasks - 1)
        assert np.abs(home - per_class * stays).max() < 5 * np.sqrt(per_class * stays * (1 - stays))


@pytest.mark.parametrize("case", golden_names("scenarios", "iblurry_cifar10_*"))
def test_within_a_task_the_order_is_a_shuffle_as_in_the_published_sequences(case):
    arrays, _ = golden("scenarios", case)
    published = np.split(arrays["label_sequence"], np.cumsum(arrays["task_sizes"])[:-1])
    n, m = (int(part[1:]) for part in case.split("_")[3:5])
    y = torch.as_tensor(arrays["label_sequence"]).long().sort().values
    stream = i_blurry(Dataset(torch.zeros(len(y), 1), y), seed=3, disjoint=n, blurry=m)
    for sequence in [*published, *(s.labels().numpy() for s in stream.segments)]:
        share = np.bincount(sequence) / len(sequence)
        expected = float((share**2).sum())
        seen = float((sequence[1:] == sequence[:-1]).mean())
        # Five deviations of a mean of len(sequence) nearly independent comparisons.
        assert abs(seen - expected) < 5 * np.sqrt(expected * (1 - expected) / len(sequence))


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=2, max_size=8),
    tasks=st.integers(1, 8),
    disjoint=st.integers(0, 100),
    blurry=st.integers(0, 100),
    seed=st.integers(0, 1000),
)
def test_every_sample_is_played_once_and_disjoint_classes_stay_in_one_task(sizes, tasks, disjoint, blurry, seed):
    tasks = min(tasks, len(sizes))
    stream = i_blurry(toy(sizes=sizes), seed=seed, tasks=tasks, disjoint=disjoint, blurry=blurry)
    assert sorted(rows(stream)) == list(range(sum(sizes)))
    in_tasks = [sum(c in s for s in class_sets(stream)) for c in range(len(sizes))]
    settled = len(sizes) * disjoint // 100
    assert sum(count == 1 for count in in_tasks) >= settled
    if blurry == 0 or disjoint == 100:
        assert set(in_tasks) == {1}


def test_bad_parameters_are_refused():
    with pytest.raises(ScenarioError, match=r"blurry=200: must be a number from 0 to 100"):
        i_blurry(toy(), blurry=200)
    with pytest.raises(ScenarioError, match=r"tasks=6: .* \(toy has 5 classes to divide\)"):
        i_blurry(toy(), tasks=6)
