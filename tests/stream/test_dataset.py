from __future__ import annotations

import pytest
import torch

from driftline.errors import DataError
from driftline.stream import Dataset
from driftline.stream.dataset import all_finite, check_samples

NAN = float("nan")
TWO = torch.tensor([[1.0], [2.0]])


def test_image_bytes_stay_bytes_in_memory_and_are_read_as_floats_in_the_unit_interval():
    data = Dataset(torch.tensor([[0], [51], [255]], dtype=torch.uint8), torch.tensor([0, 1, 1]))
    assert data.x.dtype == torch.uint8
    read = data.rows(torch.tensor([2, 1]))
    assert read.dtype == torch.float32
    assert read.flatten().tolist() == [1.0, pytest.approx(0.2)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_samples_that_are_not_bytes_are_read_as_they_are(dtype):
    data = Dataset(TWO.to(dtype), torch.tensor([0, 1]))
    assert torch.equal(data.rows(torch.tensor([1])), TWO[1:].to(dtype))
    assert data.rows(torch.tensor([1])).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_type_become_int64(dtype):
    assert Dataset(TWO, torch.tensor([0, 1], dtype=dtype)).y.dtype == torch.int64


def test_classes_are_named_by_the_largest_label_unless_they_are_named():
    assert Dataset(TWO, torch.tensor([0, 2])).classes == ("0", "1", "2")
    assert Dataset(TWO, torch.tensor([0, 0]), ["cat", "dog"]).classes == ("cat", "dog")


def test_floating_labels_are_targets_without_classes():
    data = Dataset(TWO, torch.tensor([[0.5, 1.0], [2.0, 3.0]]))
    assert data.classes == ()
    assert data.y.shape == (2, 2)


def test_a_dataset_may_have_no_labels():
    data = Dataset(TWO)
    assert data.y is None
    assert len(data) == 2
    assert data.test is None


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1.0]], r"toy\.x: expected a torch\.Tensor, got list"),
        (torch.zeros(3), r"toy\.x: expected \(samples, features\.\.\.\), got shape \(3,\)"),
        (torch.zeros(0, 3), r"toy\.x: no samples \(shape \(0, 3\)\)"),
        (torch.zeros(2, 1, dtype=torch.bool), r"toy\.x: dtype torch\.bool is not supported"),
        (torch.zeros(2, 1, dtype=torch.complex64), r"toy\.x: dtype torch\.complex64 is not supported"),
        (torch.tensor([[0.0], [1.0], [NAN], [NAN]]), r"toy\.x: NaN or Inf in row 2 \(2 rows in all\)"),
        (torch.tensor([[0.0], [float("inf")]]), r"toy\.x: NaN or Inf in row 1 \(1 rows in all\)"),
        (torch.tensor([[float("-inf")], [float("inf")]]), r"toy\.x: NaN or Inf in row 0 \(2 rows in all\)"),
    ],
)
def test_samples_that_cannot_be_used_are_refused_naming_the_row(x, message):
    with pytest.raises(DataError, match=message):
        Dataset(x, name="toy")


@pytest.mark.parametrize(
    ("y", "classes", "message"),
    [
        ([0, 1], (), r"toy\.y: expected a torch\.Tensor, got list"),
        (torch.tensor(1), (), r"toy: 2 samples in x but 1 labels in y"),
        (torch.tensor([0, 1, 1]), (), r"toy: 2 samples in x but 3 labels in y"),
        (torch.tensor([[0], [1]]), (), r"toy\.y: expected shape \(samples,\), got \(2, 1\)"),
        (torch.tensor([True, False]), (), r"toy\.y: class indices must be integers, got torch\.bool"),
        (torch.tensor([0.0, 1.0]), ("a", "b"), r"toy\.y: class indices must be integers, got torch\.float32"),
        (torch.tensor([1, -1]), (), r"toy\.y: label -1 in row 1 is out of range; labels must be 0 or more"),
        (torch.tensor([1, 2]), ("a", "b"), r"toy\.y: label 2 in row 1 is out of range; labels must be 0\.\.1"),
        (torch.tensor([0.5, NAN]), (), r"toy\.y: NaN or Inf in row 1"),
        (torch.tensor([0, 0]), (), r"toy: only one class \('0'\)"),
        (torch.tensor([0, 0]), ("cat",), r"toy: only one class \('cat'\)"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_naming_the_row(y, classes, message):
    with pytest.raises(DataError, match=message):
        Dataset(TWO, y, classes, name="toy")


def test_a_split_of_another_shape_is_refused():
    with pytest.raises(DataError, match=r"samples of the 'test' split have shape \(3,\), these \(1,\)"):
        Dataset(TWO, torch.tensor([0, 1]), splits={"test": Dataset(torch.zeros(2, 3))})


def test_large_finite_values_whose_sum_overflows_are_accepted():
    large = torch.full((4, 1), 3e38)
    assert not torch.isfinite(large.sum())
    assert all_finite(large)
    assert len(Dataset(large)) == 4


def test_a_wanted_shape_is_checked():
    with pytest.raises(DataError, match=r"here: samples of shape \(1,\), expected \(3,\)"):
        check_samples(TWO, "here", shape=(3,))


def test_standardizing_uses_the_statistics_of_this_part_for_every_split():
    test = Dataset(torch.tensor([[4.0, 5.0]]))
    data = Dataset(torch.tensor([[0.0, 7.0], [2.0, 7.0]]), splits={"test": test}, source={"name": "toy"})
    standard = data.standardize()
    assert standard.x.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert standard.test.x.tolist() == [[3.0, -2.0]]  # the constant feature is only centred
    assert standard.source == {"name": "toy", "standardize": True}
    assert data.x.tolist() == [[0.0, 7.0], [2.0, 7.0]]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_integers_can_be_standardized(dtype):
    x = torch.tensor([[0], [100], [200]], dtype=dtype)
    standard = Dataset(x).standardize().x
    assert standard.dtype == torch.float32
    assert standard.mean().abs() < 1e-6
    assert standard.std(correction=0).item() == pytest.approx(1.0)


def test_moving_to_where_it_is_already_gives_the_same_object():
    data = Dataset(TWO)
    assert data.to("cpu") is data


def test_other_samples_must_have_as_many_rows_as_there_are_labels():
    data = Dataset(TWO, torch.tensor([0, 1]))
    assert data.with_x(TWO + 1).x.tolist() == [[2.0], [3.0]]
    with pytest.raises(DataError, match="3 samples in x but 2 labels in y"):
        data.with_x(torch.zeros(3, 1))
