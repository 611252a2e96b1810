from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from driftline.errors import ConfigError, DataError, InputError
from driftline.learners import Learner, NearestClassMean
from driftline.metrics import BlindAccuracy, NearFutureAccuracy, OnlineAccuracy
from driftline.metrics.blind import blind_accuracy, decorrelating_shift
from driftline.stream import Dataset, Segment, Stream, concatenate, from_iterable
from driftline.stream.play import play
from tests.golden import golden, golden_names
from tests.stream.players import Recorder, add_draw, points

SHIFTS = [0, 1, 2, 4, 8, 32, 128, 512, 1024]


def bursts(samples=600):
    """Labels in runs: the case that near-future accuracy is for."""
    data = Segment.of(points(samples, spread=1.5))
    runs = [data.classes(c).take(samples // 16, start=samples // 16 * k) for k in range(4) for c in range(4)]
    return concatenate(*runs)


def learner():
    return NearestClassMean(classes=4)


def final(stream, player, metric, batch_size=1):
    for _ in play(stream, player, batch_size=batch_size, metrics=[metric]):
        pass
    return metric.value()


def predictions(stream, player, batch_size=1):
    return torch.cat([s.prediction.argmax(1) for s in play(stream, player, batch_size=batch_size)])


# --- the definition


@pytest.mark.parametrize("shift, batch_size", [(1, 1), (5, 1), (64, 1), (12, 4), (64, 32), (30, 30)])
def test_it_is_prequential_accuracy_with_labels_delayed_by_the_shift(shift, batch_size):
    stream = Stream([bursts()])
    delayed = predictions(stream.delay_labels(shift), learner(), batch_size)[shift:]
    hits = (delayed == stream.labels()[shift:]).tolist()
    metric = NearFutureAccuracy(shift, window=100)
    values = final(stream, learner(), metric, batch_size)
    assert values["near_future_accuracy"] == sum(hits) / len(hits)
    assert values["near_future_accuracy_window"] == sum(hits[-100:]) / 100
    assert values["near_future_shift"] == shift


@pytest.mark.parametrize("shift, batch_size", [(1, 1), (64, 1), (12, 4), (64, 32)])
def test_on_a_live_stream_delayed_labels_give_the_same_number_for_free(shift, batch_size):
    stream = Stream([bursts()])
    x, y = stream.read(0, len(stream))
    live = from_iterable([(a, int(b)) for a, b in zip(x, y)], classes=4).delay_labels(shift)
    ahead = final(stream, learner(), NearFutureAccuracy(shift), batch_size)
    assert final(live, learner(), NearFutureAccuracy(shift), batch_size) == ahead


@pytest.mark.parametrize("batch_size", [1, 7])
def test_shift_zero_is_online_accuracy(batch_size):
    near, online = NearFutureAccuracy(0, window=50), OnlineAccuracy(window=50)
    stream = Stream([bursts()])
    for _ in play(stream, learner(), batch_size=batch_size, metrics=[near, online]):
        pass
    assert near.value()["near_future_accuracy"] == online.value()["online_accuracy"]
    assert near.value()["near_future_accuracy_window"] == online.value()["online_accuracy_window"]


@pytest.mark.parametrize("batch_size", [1, 4, 7, 50])
def test_samples_ahead_are_predicted_by_the_model_as_it_is_before_the_batch(batch_size):
    """Any batch size, segments and a random transform, against a loop written out."""
    data = bursts(160)
    stream = Stream([data.take(70), data.take(30, start=70).transform(add_draw, random=True), data.take(60, start=100)])
    shift, hits, judged = 13, 0, 0
    shadow = learner()
    for batch in stream.batches(batch_size):
        stop = min(batch.stop + shift, len(stream))
        if batch.position + shift < stop:
            x, y = stream.read(batch.position + shift, stop)
            hits += int((shadow.predict(x).argmax(1) == y).sum())
            judged += len(y)
        shadow.learn(batch.x, batch.y)
    assert judged == len(stream) - shift
    values = final(stream, learner(), NearFutureAccuracy(shift), batch_size)
    assert values["near_future_accuracy"] == hits / judged


def test_looking_ahead_does_not_change_what_the_learner_learns():
    alone, watched = learner(), learner()
    stream = Stream([bursts()])
    one = predictions(stream, alone)
    final(stream, watched, NearFutureAccuracy(64))
    assert torch.equal(alone.predict(stream.read(0, 100)[0]), watched.predict(stream.read(0, 100)[0]))
    assert len(one) == len(stream)


def test_the_end_of_the_stream_is_the_end_of_the_future():
    note = Recorder(classes=4)
    data = Segment.of(Dataset(torch.arange(10.0).unsqueeze(1), torch.arange(10) % 4))
    metric = NearFutureAccuracy(4)
    final(Stream([data])[1:], note, metric, batch_size=3)
    # In turn what lies ahead, and the batch itself.
    assert [s for what, s in note.calls if what == "predict"] == [
        [5, 6, 7],
        [1, 2, 3],
        [8, 9],
        [4, 5, 6],
        [7, 8, 9],
    ]


def test_it_is_reported_beside_the_blind_baseline_at_the_same_shift():
    stream = Stream([bursts()])
    values = final(stream, learner(), NearFutureAccuracy(16))
    assert values["blind_accuracy"] == max(blind_accuracy(stream.labels(), 16, windows=(1, 10, 100)).values())


# --- the shift


def test_auto_takes_the_shift_at_which_a_blind_classifier_falls_to_chance():
    data = points(4000)
    order = torch.argsort(torch.arange(4000) // 8 * 10 + data.y, stable=True)  # short runs
    stream = Stream([Segment.of(data).at(order)])
    wanted = decorrelating_shift(stream.labels())
    values = final(stream, Recorder(classes=4), NearFutureAccuracy("auto"), batch_size=100)
    assert values["near_future_shift"] == wanted > 0


def test_auto_needs_labels_known_beforehand():
    live = from_iterable([], classes=3)
    with pytest.raises(DataError, match="live is live: its labels are not known beforehand; give shift=S"):
        play(live, Recorder(), metrics=[NearFutureAccuracy()])
    unlabelled = Stream([Segment.of(Dataset(torch.zeros(5, 2), None, list("abc")))])
    with pytest.raises(DataError, match="shift='auto' needs the stream's labels"):
        play(unlabelled, Recorder(), metrics=[NearFutureAccuracy()])


@pytest.mark.parametrize("delay", [0, 3])
def test_a_live_stream_must_delay_its_labels_by_the_shift(delay):
    live = from_iterable([], classes=3).delay_labels(delay)
    with pytest.raises(DataError, match=r"cannot be looked ahead in; .* play stream\.delay_labels\(5\)"):
        play(live, Recorder(), metrics=[NearFutureAccuracy(5)])


@pytest.mark.parametrize("shift", [10, 11])
def test_a_stream_not_longer_than_the_shift_is_refused(shift):
    stream = Stream([Segment.of(points(10))], name="short")
    with pytest.raises(DataError, match=f"short has 10 samples, not more than the shift of {shift}"):
        play(stream, Recorder(4), metrics=[NearFutureAccuracy(shift)])


@pytest.mark.parametrize("shift", [-1, 2.5, "soon"])
def test_a_shift_is_auto_or_a_number_of_samples(shift):
    with pytest.raises(ConfigError, match=f'shift={shift!r}: must be "auto" or a number of samples'):
        NearFutureAccuracy(shift)


def test_samples_ahead_without_truth_do_not_count():
    data = Segment.of(points(40))
    unlabelled = Segment.of(Dataset(torch.zeros(40, 3), None, list("0123")))
    values = final(Stream([data, unlabelled]), learner(), NearFutureAccuracy(10))
    truth = Stream([data]).delay_labels(10)
    expected = (predictions(truth, learner())[10:] == truth.labels()[10:]).double().mean()
    assert values["near_future_accuracy"] == pytest.approx(float(expected))


def test_live_samples_without_truth_do_not_count():
    data = points(200)
    source = [(x, int(y) if i % 2 else None) for i, (x, y) in enumerate(zip(data.x, data.y))]
    live = from_iterable(source, classes=4).delay_labels(10)
    hits = [
        int(step.prediction.argmax()) == int(step.batch.y)
        for step in play(live, learner())
        if step.batch.y is not None and step.batch.position >= 10
    ]
    assert final(live, learner(), NearFutureAccuracy(10))["near_future_accuracy"] == sum(hits) / 95


def test_before_the_first_sample_there_is_no_value():
    metric = NearFutureAccuracy(3)
    metric.begin(Stream([Segment.of(points(10))]), 1)
    values = metric.value()
    assert values.pop("near_future_shift") == 3
    assert all(math.isnan(v) for v in values.values())
    assert set(values) | {"near_future_shift"} == set(NearFutureAccuracy.definitions)


def test_they_need_classes():
    targets = Stream([Segment.of(Dataset(torch.zeros(3, 1), torch.zeros(3)))])
    for metric in (NearFutureAccuracy(1), BlindAccuracy()):
        with pytest.raises(InputError, match="needs a stream with classes"):
            play(targets, Recorder(), metrics=[metric])


# --- state


@pytest.mark.parametrize("make", [lambda: NearFutureAccuracy(37, window=60), lambda: BlindAccuracy(5)])
@pytest.mark.parametrize("cut", [3, 36, 150, 570])
def test_a_state_round_trip_continues_to_the_same_value(make, cut):
    stream = Stream([bursts()])
    whole, resumed = make(), make()
    playback = play(stream, learner(), batch_size=3, metrics=[whole])
    for step in playback:
        if step.position >= cut and step.position < cut + 3:
            state = playback.state_dict()
    again = play(stream, learner(), batch_size=3, metrics=[resumed])
    again.load_state_dict(state)
    for _ in again:
        pass
    assert resumed.value() == whole.value()


# --- the blind classifier, while the stream runs


@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("shift", [0, 1, 6, 100, 574])
def test_blind_accuracy_while_the_stream_runs_is_that_of_the_labels_alone(shift, batch_size):
    stream = Stream([bursts()])
    metric = BlindAccuracy(shift, windows=(1, 3, 20))
    expected = blind_accuracy(stream.labels(), shift, windows=(1, 3, 20))
    assert final(stream, Recorder(4), metric, batch_size) == {"blind_accuracy": max(expected.values())}


def test_looking_at_blind_accuracy_at_any_time_gives_that_of_the_labels_so_far():
    stream = Stream([bursts(96)])
    metric = BlindAccuracy(4, windows=(1, 5))
    for step in play(stream, Recorder(4), batch_size=3, metrics=[metric]):
        value = metric.value()["blind_accuracy"]
        labels = stream.labels()[: step.position]
        if len(labels) > 5:
            assert value == max(blind_accuracy(labels, 4, windows=(1, 5)).values())
        else:
            assert math.isnan(value)


def test_blind_accuracy_leaves_out_unknown_labels():
    labels = [0, None, 0, 0, None, 1, 1, None, 1]
    live = from_iterable([([1.0], y) for y in labels], classes=2)
    known = [y for y in labels if y is not None]
    expected = blind_accuracy(known, windows=(1,))[1]
    assert final(live, Recorder(2), BlindAccuracy(windows=(1,)), 2)["blind_accuracy"] == expected


@pytest.mark.parametrize("given", [{"shift": -1}, {"windows": ()}])
def test_a_blind_baseline_that_cannot_be_is_refused(given):
    with pytest.raises(ConfigError, match="give a shift of 0 or more and at least one window"):
        BlindAccuracy(**given)


def test_the_record_says_which_windows():
    assert BlindAccuracy(3, (1, 5)).describe() == {"name": "BlindAccuracy", "shift": 3, "windows": [1, 5]}


# --- recorded runs of the published loops


class ExactNeighbours(Learner):
    """Among the k nearest: the class with most votes (the smallest of several) if it has more than one, else the
    nearest sample's; as the recorded exact learner."""

    num_classes = None

    def __init__(self, k, samples):
        self.k, self.count = k, 0
        self.x, self.y = np.zeros((samples, 2)), np.zeros(samples, dtype=np.int64)

    def predict(self, x):
        scores = torch.zeros(len(x), 8)
        distance = ((self.x[: self.count] - x.double().numpy()) ** 2).sum(1)
        near = self.y[np.argsort(distance, kind="stable")[: self.k]]
        if len(near):
            votes = np.bincount(near)
            scores[0, votes.argmax() if votes.max() > 1 else near[0]] = 1
        return scores

    def learn(self, x, y):
        n = len(x)
        self.x[self.count : self.count + n], self.y[self.count : self.count + n] = x.double().numpy(), y.numpy()
        self.count += n

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        return


def recorded_loop():
    case, _ = golden("scenarios", "near_future_loop_n2500_c8")
    x, y = torch.from_numpy(case["points"]), torch.from_numpy(case["labels"]).long()
    assert case["delays"].tolist() == SHIFTS
    return case, Stream([Segment.of(Dataset(x.double(), y))])


@pytest.mark.parametrize(
    "name, make, shifts",
    [
        ("ncm", lambda: NearestClassMean(classes=8), [0, 1, 8, 128, 1024]),
        ("knn1", lambda: ExactNeighbours(1, 2500), [1, 128]),
        ("knn5", lambda: ExactNeighbours(5, 2500), [2, 32]),
    ],
)
def test_predictions_equal_those_of_the_published_loop_at_each_delay(name, make, shifts):
    case, stream = recorded_loop()
    labels = stream.labels()
    for shift in shifts:
        row = SHIFTS.index(shift)
        first = 2 * shift + 2  # the published loop begins to predict there
        made = predictions(stream.delay_labels(shift), make())
        assert made[first:].tolist() == case[f"{name}_preds"][row, first:].tolist(), shift
        accuracy = float((made[first:] == labels[first:]).double().mean())
        assert accuracy == pytest.approx(float(case[f"{name}_acc_evaluated"][row]), abs=1e-12)


@pytest.mark.parametrize("shift", [1, 32])
def test_near_future_accuracy_is_that_of_the_published_loops_predictions(shift):
    case, stream = recorded_loop()
    made, labels = torch.from_numpy(case["ncm_preds"][SHIFTS.index(shift)]).long(), stream.labels()
    early = predictions(stream.delay_labels(shift)[: 2 * shift + 2], NearestClassMean(classes=8))
    hits = torch.cat([early, made[len(early) :]])[shift:] == labels[shift:]
    values = final(stream, NearestClassMean(classes=8), NearFutureAccuracy(shift))
    assert values["near_future_accuracy"] == int(hits.sum()) / len(hits)


class RoutedLinear(Learner):
    """A linear layer that, for each batch it is given, makes the next recorded steps on the samples routed to them."""

    def __init__(self, case, config):
        self.points, self.labels = torch.from_numpy(case["points"]).double(), torch.from_numpy(case["labels"]).long()
        size, self.steps = config["train_batch"], config["gradient_steps"]
        self.routing = torch.from_numpy(case["routing"]).long().split(size)
        self.num_classes = config["outputs"]
        self.model = torch.nn.Linear(2, config["outputs"], dtype=torch.float64)
        torch.nn.init.zeros_(self.model.weight)
        torch.nn.init.zeros_(self.model.bias)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), config["lr"], config["momentum"], weight_decay=config["weight_decay"]
        )
        self.step, self.ahead = 0, []

    def predict(self, x):
        with torch.no_grad():
            scores = self.model(x)
        self.ahead.append(scores.argmax(1))
        return scores

    def learn(self, x, y):
        for rows in self.routing[self.step : self.step + self.steps]:
            self.optimizer.zero_grad()
            torch.nn.functional.cross_entropy(self.model(self.points[rows]), self.labels[rows]).backward()
            self.optimizer.step()
        self.step += self.steps

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        return


@pytest.mark.parametrize("name", golden_names("scenarios", "evalocl_er_loop_*"))
def test_the_published_batch_loop_is_a_shift_of_so_many_batches(name):
    """Its last batch is predicted twice when there is a delay, the second time by a later model; that one is left out.

    Its first ``delay`` batches are never predicted, as ours are not by a look ahead.
    """
    case, config = golden("scenarios", name)
    size = config["test_batch"]
    shift = config["delay_batches"] * size
    x, y = torch.from_numpy(case["points"]).double(), torch.from_numpy(case["labels"]).long()
    stream = Stream([Segment.of(Dataset(x, y, [str(c) for c in range(config["num_classes"])]))])
    stop = len(stream) - size if shift else len(stream)

    ahead = RoutedLinear(case, config)
    metric = NearFutureAccuracy(shift, window=None)
    values = final(stream, ahead, metric, size)
    looks = (len(stream) - shift) // size
    made = torch.cat(ahead.ahead[: 2 * looks : 2] if shift else ahead.ahead)  # looks ahead alternate with steps
    assert len(made) == len(stream) - shift
    assert made[: stop - shift].tolist() == case["preds"][shift:stop].tolist()
    np.testing.assert_allclose(ahead.model.weight.detach(), case["final_weight"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ahead.model.bias.detach(), case["final_bias"], rtol=0, atol=1e-12)
    if not shift:
        assert values["near_future_accuracy"] == float(case["acc_evaluated"])

    late = RoutedLinear(case, config)
    delayed = predictions(stream.delay_labels(shift), late, size)
    assert delayed[shift:stop].tolist() == case["preds"][shift:stop].tolist()
    judged = delayed[shift:] == y[shift:]
    assert values["near_future_accuracy"] == int(judged.sum()) / len(judged)
