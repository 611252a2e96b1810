from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from avalanche.benchmarks import (
    CLScenario,
    benchmark_from_datasets,
    nc_benchmark,
    ni_benchmark,
    split_online_stream,
)
from avalanche.benchmarks.scenarios.online import split_continuous_linear_decay_stream
from avalanche.benchmarks.utils import AvalancheDataset, _make_taskaware_classification_dataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from torch.utils.data import Dataset, TensorDataset

import driftline
from driftline.errors import ConfigError, DataError
from driftline.interop.avalanche import from_avalanche
from driftline.learners import GradientLearner, NearestClassMean
from driftline.metrics import HeldOut, OnlineAccuracy
from tests.interop.avalanche.digits import DATA, ORDER, benchmark, datasets, network, stream, tensor_dataset


def played(source, learner):
    metrics = [OnlineAccuracy(), HeldOut(every=100)]
    [*_, step] = driftline.play(source, learner, batch_size=10, metrics=metrics)
    return step.metrics(), metrics[1].matrix


@pytest.mark.parametrize("resident", [True, False])
def test_a_benchmark_gives_what_our_own_scenario_gives_in_the_same_order(resident):
    theirs, ours = from_avalanche(benchmark(), resident=resident), stream()
    assert len(theirs) == len(ours)
    for a, b in zip(theirs.batches(7), ours.batches(7)):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and a.position == b.position
    for make in (
        NearestClassMean,
        lambda: GradientLearner(network(), lambda parameters: torch.optim.SGD(parameters, lr=0.1)),
    ):
        values, matrix = played(theirs, make())
        expected, expected_matrix = played(ours, make())
        assert values == pytest.approx(expected, nan_ok=True)
        np.testing.assert_array_equal(matrix, expected_matrix)


def test_a_classic_benchmark_is_sorted_by_class_unless_shuffled():
    train, test = datasets()
    classic = nc_benchmark(train, test, 5, task_labels=False, fixed_class_order=ORDER)
    by_class = from_avalanche(classic)
    for segment in by_class.segments:
        assert len(torch.unique_consecutive(segment.labels())) == 2
    assert {int(y) for y in by_class.segments[1].labels()} == {*ORDER[2:4]}
    mixed = from_avalanche(classic, shuffle=True, seed=1)
    assert not torch.equal(mixed.read(0, 60)[1], by_class.read(0, 60)[1])
    for a, b in zip(mixed.segments, by_class.segments):
        assert torch.equal(a.labels().sort().values, b.labels().sort().values)


def test_the_seek_law_holds_when_items_are_read_as_they_are_played():
    made = from_avalanche(benchmark(), resident=False)
    x, y = made.read(95, 215)
    assert torch.equal(torch.cat([b.x for b in made.batches(9, start=95)])[:120], x)
    assert torch.equal(y, stream().read(95, 215)[1])


class Noisy(Dataset):
    """Pixels with fresh noise at each look, as an augmentation makes it."""

    def __init__(self, count):
        self.targets = DATA.y[:count].tolist()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return DATA.x[index] + 0.1 * torch.randn(DATA.x[index].shape), self.targets[index]


def test_random_augmentations_are_drawn_anew_but_the_same_for_the_same_seed_and_position():
    noisy = benchmark_from_datasets(train=[_make_taskaware_classification_dataset(Noisy(200))])
    made, again, other = (from_avalanche(noisy, seed=seed) for seed in (1, 1, 2))
    before = torch.random.get_rng_state()
    x = made.read(0, 200)[0]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(x, torch.cat([batch.x for batch in again.batches(33)]))
    assert not torch.equal(x, other.read(0, 200)[0])
    assert 0.05 < float((x - DATA.x[:200]).std()) < 0.15


def test_what_does_not_fit_in_memory_is_read_as_it_is_played():
    needed = (300 + 100) * 64 * 4
    shapes = [from_avalanche(benchmark(), memory=m).segments[0].dataset.x.shape[1:] for m in (needed, needed - 1)]
    assert shapes == [DATA.x.shape[1:], (1,)]


def test_pieces_of_an_online_stream_are_put_together_again():
    whole = benchmark()
    online = split_online_stream(whole.train_stream, experience_size=7, shuffle=False)
    made = from_avalanche(CLScenario([online, whole.test_stream]))
    assert [s.name for s in made.segments] == [f"experience {i}" for i in range(5)]
    assert torch.equal(made.read(0, 300)[0], stream().read(0, 300)[0])
    assert [len(s.held_out()) for s in made.segments] == [len(s.held_out()) for s in stream().segments]


def test_the_same_experience_again_is_a_segment_of_its_own():
    first = benchmark().train_stream[:1]
    twice = itertools.chain(*(split_online_stream(first, experience_size=20) for _ in range(2)))
    assert len(from_avalanche(twice).segments) == 2


def test_experiences_that_fade_into_each_other_are_one_segment_with_all_held_out_samples():
    whole = benchmark()
    fading = split_continuous_linear_decay_stream(
        whole.train_stream, experience_size=10, iters_per_virtual_epoch=3, beta=4, shuffle=False
    )
    made = from_avalanche(CLScenario([fading, whole.test_stream]))
    assert [len(s) for s in made.segments] == [150]
    assert len(made.segments[0].held_out()) == 100


def test_one_test_experience_is_held_out_for_all_segments_once():
    train, test = datasets()
    made = from_avalanche(ni_benchmark(train, test, n_experiences=3, task_labels=False, seed=0))
    assert len(made.segments) == 3 and len({id(s.dataset.test) for s in made.segments}) == 1
    metrics = played(made, NearestClassMean())[0]
    assert metrics["held_out_accuracy"] > 0.7


def test_task_labels_name_domains_and_segments():
    made = from_avalanche(benchmark(tasks=True))
    assert [s.name for s in made.segments] == [f"experience {i}, task {i}" for i in range(5)]
    assert made.domain_names == tuple(f"task {i}" for i in range(5))
    assert made.classes == ("0", "1")  # each task numbers its classes from 0


def test_samples_of_several_tasks_in_one_experience_keep_their_domains():
    x, tasks = DATA.x[:20], [3, 5] * 10
    data = _make_taskaware_classification_dataset(
        TensorDataset(x, DATA.y[:20]), targets=DATA.y[:20].tolist(), task_labels=tasks
    )
    made = from_avalanche(benchmark_from_datasets(train=[data]))
    batch = next(made.batches(20))
    assert [made.domain_names[d] for d in made.domains(batch)] == [f"task {t}" for t in tasks]
    assert torch.equal(batch.x, x)


def test_items_without_task_labels_are_played():
    pairs = AvalancheDataset(
        [TensorDataset(DATA.x[:50], DATA.y[:50])], data_attributes=[DataAttribute(DATA.y[:50].tolist(), "targets")]
    )
    assert len(pairs[0]) == 2
    for resident in (True, False):
        made = from_avalanche(benchmark_from_datasets(train=[pairs], test=[pairs]), resident=resident)
        x, y = made.read(0, 50)
        assert torch.equal(x, DATA.x[:50]) and torch.equal(y, DATA.y[:50])


def test_streams_that_are_neither_played_nor_held_out_are_named():
    train, test = datasets()
    whole = benchmark_from_datasets(train=[train], test=[test], valid=[test])
    with pytest.warns(UserWarning, match="neither played nor held out: valid"):
        from_avalanche(whole)
    with pytest.warns(UserWarning, match="neither played nor held out: test"):
        made = from_avalanche(whole, test="valid")
    assert len(made.held_out()[0]) == 100


class Items(Dataset):
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


X = torch.zeros(3)


@pytest.mark.parametrize(
    "items, message",
    [
        ([(X, {"boxes": X, "labels": X})], "y is a dict of boxes, labels, as for detection"),
        ([(X, 0.5)], "experience 0: y is torch.float32, as for regression"),
        ([(X, 1, 0, 7)], r"item 0: a tuple of 4 \(Tensor, int, int, int\); expected \(x, y\) or"),
        ([(X, 1), (X, 0, 0)], "item 1: .* a task label, but the first is"),
        ([(X, 1), (torch.zeros(4), 0)], r"item 1: x of \(4,\) torch.float32.*bring all to one form"),
        ([X, X], "items are x alone"),
        ([("a photograph", 1)], "x is a str, not a tensor; give the dataset a transform"),
        ([(X, "cat")], "y, a str, cannot become a tensor"),
        ([(X, torch.tensor([0, 1]))], r"y has shape \(2,\)"),
        ([(X, 1, "a task")], "the third part, a str, is no task label"),
        ([(X, -1), (X, 0)], "label -1; classes are numbered from 0"),
    ],
)
def test_what_is_not_classification_is_refused_by_name(items, message):
    data = AvalancheDataset([Items(*items)])
    with pytest.raises(DataError, match=message):
        from_avalanche(benchmark_from_datasets(train=[data]), resident=True)


def test_labels_that_are_not_those_of_the_items_are_found_when_they_are_read():
    lying = AvalancheDataset([Items((X, 0), (X, 1))], data_attributes=[DataAttribute([0, 0], "targets")])
    other = AvalancheDataset([Items((X, 1), (X, 1))], data_attributes=[DataAttribute([1, 1], "targets")])
    made = from_avalanche(benchmark_from_datasets(train=[lying, other]), resident=False)
    with pytest.raises(DataError, match="are not the dataset's `targets`"):
        list(made.batches(2))


class Strange:
    def logging(self):
        return self


def test_bad_arguments_are_refused_by_name():
    whole = benchmark()
    with pytest.raises(ConfigError, match="unknown stream 'tests'; did you mean 'test'"):
        from_avalanche(whole, test="tests")
    with pytest.raises(ConfigError, match="int is no benchmark"):
        from_avalanche(3)
    with pytest.raises(ConfigError, match="item 0 of the stream is a int, not an experience"):
        from_avalanche([3])
    with pytest.raises(DataError, match="Strange 0 has no dataset"):
        from_avalanche([Strange()])
    with pytest.raises(ConfigError, match="which stream is to be played.*first, second"):
        from_avalanche(benchmark_from_datasets(first=[datasets()[0]], second=[datasets()[0]]))
    with pytest.raises(DataError, match="experience 1 has no samples"):
        empty = tensor_dataset(DATA.x[:4], DATA.y[:4]).subset([])
        from_avalanche(benchmark_from_datasets(train=[datasets()[0], empty]))
