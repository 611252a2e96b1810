from __future__ import annotations

import math

import pytest
import torch

from driftline.metrics.plasticity.series import BLOCK, Recent, Series


def filled(rows, series=None):
    series = series or Series(["a", "b"])
    for position in rows:
        series.add(position, [torch.tensor(float(position)), torch.tensor(float("nan") if position % 2 else 1.0)])
    return series


@pytest.mark.parametrize("rows", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
def test_every_measurement_is_given_out_once_and_in_order(rows):
    series = filled(range(1, rows + 1))
    points = series.take()
    assert [p for p, name, _ in points if name == "a"] == list(range(1, rows + 1))
    assert [v for _, name, v in points if name == "a"] == list(range(1, rows + 1))
    assert series.take() == []
    filled([7], series)
    assert [p for p, _, _ in series.take()] == [7, 7]


def test_a_long_run_without_a_look_keeps_few_tensors():
    series = filled(range(4 * BLOCK))
    assert len(series._blocks) + len(series._rows) == 4


def test_the_mean_is_that_of_what_is_defined():
    means = filled([1, 2, 3, 4, 5]).means()
    assert means == {"a": 3, "b": 1}
    assert math.isnan(filled([1]).means()["b"])


def test_before_the_first_there_is_nothing():
    series = Series(["a"])
    assert math.isnan(series.latest()["a"]) and math.isnan(series.means()["a"])
    assert series.take() == []


def test_a_state_round_trip_goes_on_alike():
    series = filled(range(1, BLOCK + 4))
    again = Series(["a", "b"])
    again.load_state_dict(series.state_dict())
    assert str(filled([500], again).take()) == str(filled([500], series).take())  # as text, NaN equals NaN
    assert again.means() == series.means()


@pytest.mark.parametrize("sizes", [[1] * 9, [3, 3, 3], [9], [1, 7, 1], [2, 2]])
def test_the_most_recent_inputs_are_kept_in_order(sizes):
    recent = Recent(4)
    numbers = torch.arange(float(sum(sizes)))
    for batch in numbers.split(sizes):
        recent.add(batch)
    assert recent.all().tolist() == numbers[-4:].tolist()
    assert recent.all().untyped_storage().nbytes() <= 4 * max(4, max(sizes))


def test_few_inputs_are_held_however_many_come():
    recent = Recent(4)
    for i in range(100):
        recent.add(torch.tensor([float(i)]))
        assert sum(len(batch) for batch in recent._batches) < 8


def test_inputs_survive_a_state_round_trip():
    recent, again = Recent(3), Recent(3)
    again.load_state_dict(recent.state_dict())
    for i in range(5):
        recent.add(torch.tensor([float(i)]))
    again.load_state_dict(recent.state_dict())
    again.add(torch.tensor([5.0]))
    assert again.all().tolist() == [3, 4, 5]
