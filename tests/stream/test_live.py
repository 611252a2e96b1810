from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from driftline.errors import ConfigError, InputError, SourceError
from driftline.stream import NEVER, from_iterable

NAN = float("nan")


def counting(classes=2):
    """Endless samples (i, i), labelled i modulo ``classes``."""
    for i in itertools.count():
        yield [float(i), float(i)], i % classes


def all_dues(stream, batch_size):
    dues = []
    for batch in stream.batches(batch_size):
        due = stream.due(batch)
        dues += list(range(batch.position, batch.stop)) if due is None else due.tolist()
    return dues


def test_an_endless_source_is_read_no_further_than_asked():
    drawn = []

    def source():
        for item in counting():
            drawn.append(item)
            yield item

    batches = from_iterable(source, classes=2).batches(3)
    assert [next(batches).x[:, 0].tolist() for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]
    assert len(drawn) == 6


def test_the_last_batch_of_a_finite_source_may_be_smaller():
    stream = from_iterable(list(itertools.islice(counting(), 5)), classes=2)
    batches = list(stream.batches(2))
    assert [(b.position, len(b), b.ends_segment, b.segment.stop) for b in batches] == [
        (0, 2, False, None),
        (2, 2, False, None),
        (4, 1, False, None),
    ]
    assert list(from_iterable([], classes=2).batches(2)) == []


@pytest.mark.parametrize(
    "x, shape, dtype",
    [
        ([1, 2], (2,), torch.int64),
        (np.ones((2, 3)), (2, 3), torch.float32),  # float64 is what Python gives, not what models take
        (torch.ones(4, dtype=torch.float16), (4,), torch.float16),
        (np.full((1, 2, 2), 255, dtype=np.uint8), (1, 2, 2), torch.float32),
    ],
)
def test_tensors_arrays_and_lists_are_samples(x, shape, dtype):
    batch = next(from_iterable([x]).batches())
    assert batch.x.shape == (1, *shape)
    assert batch.x.dtype == dtype
    assert batch.x.max() <= 2
    assert batch.y is None and batch.labelled == 0


@pytest.mark.parametrize("y", [1, np.int64(1), np.uint8(1), torch.tensor(1), torch.tensor(1, dtype=torch.int32)])
def test_any_integer_is_a_label(y):
    batch = next(from_iterable([([0.0], y)], classes=2).batches())
    assert batch.y.tolist() == [1]
    assert batch.y.dtype == torch.int64


def test_unknown_truth_is_minus_one_among_known_and_none_where_nothing_is_known():
    source = [([0.0], 1), ([1.0], None), [2.0], ([3.0], None), ([4.0], 0)]
    first, second, third = from_iterable(source, classes=2).batches(2)
    assert first.y.tolist() == [1, -1] and first.labelled == 1
    assert second.y is None and second.labelled == 0
    assert third.y.tolist() == [0] and third.labelled == 1


def test_targets_of_regression_keep_their_shape():
    batch = next(from_iterable([([0.0], [0.5, 1.5]), ([1.0], np.array([2.0, 3.0]))]).batches(2))
    assert batch.y.dtype == torch.float32
    assert batch.y.tolist() == [[0.5, 1.5], [2.0, 3.0]]


GOOD = ([1.0, 2.0], 0)


@pytest.mark.parametrize(
    "bad, message",
    [
        (([1.0, NAN], 0), "NaN or Inf in x; drop or repair such samples"),
        (([1.0, float("inf")], 0), "NaN or Inf in x"),
        (([1.0, 2.0, 3.0], 0), r"sample of shape \(3,\) and torch.float32, but the stream began with \(2,\)"),
        ((torch.tensor([1, 2]), 0), "and torch.int64, but the stream began with .* torch.float32"),
        (("text", 0), "x cannot become a tensor"),
        (([[1.0], [1.0, 2.0]], 0), "x cannot become a tensor"),
        ((1.0, 0), r"x has shape \(\) and torch.float32"),
        (([], 0), r"x has shape \(0,\)"),
        ((torch.tensor([True, False]), 0), "torch.bool; expected a non-empty numeric array"),
        ((None, 0), "x cannot become a tensor"),
        (([1.0, 2.0], 2), r"label 2 is out of range 0\.\.1"),
        (([1.0, 2.0], -1), r"label -1 is out of range 0\.\.1"),
        (([1.0, 2.0], 0.5), "label 0.5 is not a class index"),
        (([1.0, 2.0], True), "label True is not a class index"),
        (([1.0, 2.0], [0]), r"label \[0\] is not a class index"),
        (([1.0, 2.0], "cat"), "label 'cat' cannot become a tensor"),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_sample_that_cannot_be_used_is_refused_naming_its_position(bad, message, batch_size):
    stream = from_iterable([GOOD, GOOD, GOOD, bad, GOOD], classes=2, name="sensor")
    with pytest.raises(InputError, match=f"sensor, position 3: .*{message}"):
        list(stream.batches(batch_size))


def test_labels_of_a_stream_without_classes_are_targets():
    with pytest.raises(InputError, match="integer label 1, but no classes were given"):
        list(from_iterable([([1.0], 1)]).batches())
    with pytest.raises(InputError, match="position 1: NaN or Inf in y"):
        list(from_iterable([([1.0], 1.0), ([1.0], NAN)]).batches())
    with pytest.raises(InputError, match="position 0: regression targets must be given for all samples or none"):
        list(from_iterable([([1.0], 1.0), ([1.0], None)]).batches(2))
    with pytest.raises(InputError, match=r"position 1: target of shape \(2,\), but the stream began with \(1,\)"):
        list(from_iterable([([1.0], [1.0]), ([1.0], [1.0, 2.0])]).batches(2))


def test_a_source_that_raises_half_way_is_reported_with_the_position():
    def source():
        yield from itertools.islice(counting(), 7)
        raise OSError("cable pulled")

    batches = from_iterable(source, classes=2, name="sensor").batches(3)
    assert [next(batches).position for _ in range(2)] == [0, 3]
    message = "sensor: the source raised OSError at position 7: cable pulled; 1 samples before it were waiting"
    with pytest.raises(SourceError, match=message) as raised:
        next(batches)
    assert isinstance(raised.value.__cause__, OSError)


def test_a_source_that_does_not_open_is_reported():
    def source():
        raise ConnectionError("nobody there")

    with pytest.raises(SourceError, match="sensor: the source did not open: ConnectionError: nobody there"):
        next(from_iterable(source, name="sensor").batches())


@pytest.mark.parametrize("classes", [1, -2, ["only"]])
def test_one_class_is_refused(classes):
    with pytest.raises(ConfigError, match="give at least two"):
        from_iterable([], classes=classes)


def test_what_is_no_source_is_refused():
    with pytest.raises(ConfigError, match="needs an iterable or a function that returns one, got int"):
        from_iterable(3)
    with pytest.raises(ConfigError, match="batch_size=0"):
        next(from_iterable([]).batches(0))
    with pytest.raises(ConfigError, match=r"delay_labels\(-1\)"):
        from_iterable([]).delay_labels(-1)
    with pytest.raises(ConfigError, match=r"label_fraction\(2\)"):
        from_iterable([]).label_fraction(2)


@pytest.mark.parametrize(
    "make", [lambda: list(itertools.islice(counting(), 9)), lambda: counting], ids=["list", "function"]
)
def test_reading_resumes_at_a_position(make):
    batches = from_iterable(make(), classes=2).batches(4, start=5)
    first = next(batches)
    assert first.position == 5
    assert first.x[:, 0].tolist() == [5, 6, 7, 8]


def test_a_one_way_iterator_cannot_go_back():
    with pytest.raises(ConfigError, match="cannot go back to position 5 of a one-way iterator"):
        next(from_iterable(counting(), classes=2).batches(4, start=5))


# --- when labels arrive


def test_labels_that_are_all_known_and_prompt_need_no_due_positions():
    stream = from_iterable(itertools.islice(counting(), 6), classes=2)
    assert all(stream.due(batch) is None for batch in stream.batches(2))


def test_late_labels_and_unknown_ones():
    source = [([0.0], 1), ([1.0], None), ([2.0], None), ([3.0], None), ([4.0], 0)]
    for batch_size in (1, 2, 5):
        assert all_dues(from_iterable(source, classes=2), batch_size) == [0, NEVER, NEVER, NEVER, 4]
        assert all_dues(from_iterable(source, classes=2).delay_labels(3), batch_size) == [3, NEVER, NEVER, NEVER, 7]
        assert all_dues(from_iterable(source, classes=2).without_labels(), batch_size) == [NEVER] * 5


def test_targets_can_be_late_too():
    stream = from_iterable([([0.0], -0.5), ([1.0], -1.5)]).delay_labels(2)
    assert all_dues(stream, 2) == [2, 3]


def test_a_fraction_of_the_labels_arrives_whatever_the_batch_size():
    source = list(itertools.islice(counting(), 1000))
    stream = from_iterable(source, classes=2, seed=3).label_fraction(0.3)
    dues = all_dues(stream, 1)
    assert abs(sum(d != NEVER for d in dues) / 1000 - 0.3) < 4 * (0.3 * 0.7 / 1000) ** 0.5
    assert all_dues(stream, 7) == all_dues(stream, 1000) == dues
    assert all_dues(from_iterable(source, classes=2, seed=4).label_fraction(0.3), 7) != dues


def test_a_record_says_what_can_be_said():
    stream = from_iterable(counting(), classes=2, name="sensor", seed=2).delay_labels(5).label_fraction(0.5)
    assert stream.describe() == {
        "scenario": "sensor",
        "live": True,
        "seed": 2,
        "delay": 5,
        "fraction": 0.5,
    }
