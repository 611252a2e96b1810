import math

import pytest
import torch

import driftline
from driftline.errors import ConfigError, InputError
from driftline.learners import GradientLearner, squared_error
from driftline.metrics.plasticity import Trainability, slope
from driftline.models import mlp
from driftline.stream import Dataset, Segment, Stream, from_iterable
from driftline.testing import blobs, check_metric

SIZES = (40, 33, 50, 27)
STARTS = (0, 40, 73, 123)


def tasks():
    data = blobs().segments[0].dataset
    rows = torch.arange(sum(SIZES)).split(SIZES)
    return Stream([Segment.of(data).take(len(r), start=int(r[0])).named(f"task {i}") for i, r in enumerate(rows)])


def learner():
    network = mlp(4, 3, (8,), seed=0)
    return GradientLearner(network, torch.optim.SGD(network.parameters(), lr=0.1))


def offline(window, skip):
    def compute(record):
        hits = torch.cat([scores.argmax(-1) == y for _, y, scores in record]).double()
        means = [
            float(hits[start if window is None else max(start, start + size - window) : start + size].mean())
            for start, size in zip(STARTS, SIZES)
        ]
        found = slope(means[skip:])
        return {
            "task_accuracy": means[-1],
            "task_accuracy_mean": sum(means) / 4,
            "task_accuracy_slope": found.slope,
            "task_accuracy_slope_low": found.low,
            "task_accuracy_slope_high": found.high,
        }

    return compute


@pytest.mark.parametrize(("window", "skip"), [(None, 0), (15, 0), (45, 1)])
def test_it_keeps_the_laws_and_equals_the_offline_value(window, skip):
    check_metric(
        lambda: Trainability(window, skip), tasks(), learner, offline=offline(window, skip), any_batch_size=True
    )


def test_each_whole_segment_is_a_point_of_the_series():
    metric = Trainability()
    for _ in driftline.play(tasks()[:130], learner(), batch_size=10, metrics=[metric]):
        pass
    assert [position for position, _, _ in metric.points(0)] == [40, 73, 123, 130]


def test_numbers_are_measured_by_their_squared_error():
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    stream = Stream([Segment.of(Dataset(x, x.sum(1))).take(20, start=20 * i) for i in range(3)])
    network, metric = torch.nn.Linear(2, 1), Trainability()
    errors = []
    one = GradientLearner(network, torch.optim.SGD(network.parameters(), lr=0.05), squared_error)
    for step in driftline.play(stream, one, batch_size=5, metrics=[metric]):
        errors.append((step.prediction.squeeze(1) - step.batch.y).square())
    expected = torch.cat(errors).view(3, 20).mean(1)
    assert metric.tasks() == pytest.approx(expected.tolist(), rel=1e-5)
    assert metric.value()["task_squared_error_slope"] < 0


def test_the_slope_and_its_interval_are_those_of_least_squares():
    statsmodels_by_hand = slope([0.9, 0.85, 0.86, 0.8, 0.79])
    assert statsmodels_by_hand.slope == pytest.approx(-0.027)
    # residuals: standard error 0.00551, t(3) at 97.5 % = 3.1824
    assert statsmodels_by_hand.high - statsmodels_by_hand.slope == pytest.approx(3.1824 * 0.0055076, rel=1e-3)
    assert all(math.isnan(v) for v in slope([1.0, 2.0]))


def test_live_streams_and_bad_settings_are_refused():
    live = from_iterable(iter([(torch.zeros(4), 0)]), classes=3)
    with pytest.raises(InputError, match="live"):
        driftline.play(live, learner(), metrics=[Trainability()])
    with pytest.raises(ConfigError, match="window=0"):
        Trainability(window=0)
    with pytest.raises(ConfigError, match="skip=-1"):
        Trainability(skip=-1)
