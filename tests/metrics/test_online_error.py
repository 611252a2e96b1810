from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline.errors import ConfigError, InputError
from driftline.learners import GradientLearner
from driftline.metrics.online_error import FLUSH, OnlineError
from driftline.stream import Dataset, Segment, Stream, from_iterable
from driftline.stream.play import play
from driftline.testing import blobs, check_metric
from tests.stream.players import Recorder, points


def stream(samples=400, outputs=2, targets=None):
    x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(0))
    y = torch.stack([x[:, 0] * 2 + 1, x[:, 1] - x[:, 2], x[:, 3]][:outputs], 1)
    return Stream([Segment.of(Dataset(x, y if targets is None else targets(y)))])


def learner(outputs=2):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Linear(4, outputs)
    loss = lambda scores, y: F.mse_loss(scores, y.view_as(scores))  # noqa: E731
    return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.01), loss)


def offline(record):
    """Both errors, all and the last 50, from the full record."""
    gaps = torch.cat([(scores - y.view_as(scores)).double() for _, y, scores in record if y is not None]).flatten(1)
    return {
        "online_squared_error": gaps.square().mean().item(),
        "online_absolute_error": gaps.abs().mean().item(),
        "online_squared_error_window": gaps[-50:].square().mean().item(),
        "online_absolute_error_window": gaps[-50:].abs().mean().item(),
    }


def values_of(data, player, batch_size=1, window=50):
    metric, record = OnlineError(window), []
    for step in play(data, player, batch_size=batch_size, metrics=[metric]):
        record.append((step.batch.position, step.batch.y, step.prediction))
    return metric.value(), offline(record)


@pytest.mark.parametrize("batch_size", [1, 3, 64, 300])
@pytest.mark.parametrize("outputs", [1, 2])
def test_values_are_those_of_the_full_record(batch_size, outputs):
    found, expected = values_of(stream(outputs=outputs), learner(outputs), batch_size)
    # float32 differences are squared in float64 here and there
    assert found == pytest.approx(expected, rel=1e-6)
    assert found["online_squared_error"] > 0.1


@pytest.mark.parametrize("steps", [FLUSH - 1, FLUSH, FLUSH + 1, 2 * FLUSH])
def test_nothing_is_lost_where_pending_steps_are_added_up(steps):
    found, expected = values_of(stream(steps), learner())
    assert found == pytest.approx(expected, rel=1e-6)


def test_one_number_per_sample_may_be_a_truth_without_outputs():
    flat = stream(outputs=1, targets=lambda y: y[:, 0])
    found, expected = values_of(flat, learner(1), 3)
    assert found == pytest.approx(expected, rel=1e-6)
    assert found == pytest.approx(values_of(stream(outputs=1), learner(1), 3)[0])


def test_a_sample_counts_by_the_mean_over_its_outputs():
    metric = OnlineError()

    class Zero(Recorder):
        def predict(self, x):
            return torch.zeros(len(x), 2)

    truth = torch.tensor([[1.0, 3.0], [-2.0, 0.0]])
    for _ in play(Stream([Segment.of(Dataset(torch.zeros(2, 1), truth))]), Zero(None), metrics=[metric]):
        pass
    assert metric.value()["online_squared_error"] == (5 + 2) / 2
    assert metric.value()["online_absolute_error"] == (2 + 1) / 2


def test_without_a_window_there_are_two_values_and_before_the_first_sample_none():
    values = OnlineError(None).value()
    assert list(values) == ["online_squared_error", "online_absolute_error"]
    assert all(math.isnan(v) for v in [*values.values(), *OnlineError().value().values()])


def live(with_truth=True):
    x, y = stream(150).read(0, 150)
    return from_iterable([(xi, yi if with_truth else None) for xi, yi in zip(x, y)])


@pytest.mark.parametrize(
    "options",
    [
        {"stream": lambda: stream(200), "any_batch_size": True},
        {"stream": lambda: stream(200, 1, lambda y: y[:, 0]).delay_labels(20), "make_learner": lambda: learner(1)},
        {"stream": live, "resident": False},
    ],
    ids=["outputs", "late labels", "live"],
)
def test_it_keeps_the_laws_of_metrics(options):
    given = {"make_learner": learner, **options, "stream": options["stream"]()}
    check_metric(lambda: OnlineError(50), offline=offline, **given)


def test_a_diverged_prediction_shows_and_leaves_the_window_again():
    metric = OnlineError(10)

    class Once(Recorder):
        def predict(self, x):
            return torch.full((len(x), 2), float("inf") if x[0, 0] == 3 else 0.0)

    data = Dataset(torch.arange(40.0).unsqueeze(1), torch.ones(40, 2))
    for _ in play(Stream([Segment.of(data)]), Once(None), metrics=[metric]):
        pass
    assert metric.value()["online_squared_error"] == float("inf")
    assert metric.value()["online_squared_error_window"] == 1


def test_the_saved_window_is_no_larger_than_the_window():
    metric = OnlineError(10)
    for _ in play(stream(), learner(), batch_size=50, metrics=[metric]):
        pass
    assert metric.state_dict()["recent"].untyped_storage().nbytes() == 10 * 2 * 8


# --- what cannot be measured


def test_it_needs_numbers():
    with pytest.raises(InputError, match="OnlineError needs numbers to predict, and 'blobs' has classes"):
        play(blobs(), Recorder(), metrics=[OnlineError()])
    silent = Stream([Segment.of(Dataset(torch.zeros(3, 1)))], name="silent")
    with pytest.raises(InputError, match="'silent' has no truth at all"):
        play(silent, Recorder(), metrics=[OnlineError()])
    with pytest.raises(InputError, match="has classes"):
        play(from_iterable(points(10).x, classes=4), Recorder(), metrics=[OnlineError()])


def test_a_live_stream_without_truth_has_no_value():
    metric = OnlineError()
    for _ in play(live(with_truth=False), learner(), metrics=[metric]):
        pass
    assert math.isnan(metric.value()["online_squared_error"])


@pytest.mark.parametrize(
    ("outputs", "targets", "found"),
    [
        (3, None, r"\(5, 3\) for truth of shape \(5, 2\).*each target, \(B, 2\)"),
        (1, None, r"\(5, 1\) for truth of shape \(5, 2\).*each target, \(B, 2\)"),
        (2, lambda y: y[:, 0], r"\(5, 2\) for truth of shape \(5,\).*each target, \(B,\) or \(B, 1\)"),
        (2, lambda y: y[:, :1], r"\(5, 2\) for truth of shape \(5, 1\).*each target, \(B, 1\)"),
    ],
)
def test_predictions_of_another_shape_than_the_truth_are_refused_at_the_first_step(outputs, targets, found):
    class Shaped(Recorder):
        def predict(self, x):
            return torch.zeros(len(x), outputs)

    metric = OnlineError()
    with pytest.raises(InputError, match=f"OnlineError: predictions of shape {found}"):
        next(iter(play(stream(targets=targets), Shaped(None), batch_size=5, metrics=[metric])))
    assert math.isnan(metric.value()["online_squared_error"])


@pytest.mark.parametrize("window", [0, -5])
def test_a_window_holds_at_least_one_sample(window):
    with pytest.raises(ConfigError, match=f"window={window}: must be at least 1"):
        OnlineError(window)


def test_it_describes_itself_and_defines_its_values():
    assert OnlineError(7).describe() == {"name": "OnlineError", "window": 7}
    assert set(OnlineError(7).value()) == set(OnlineError.definitions)
