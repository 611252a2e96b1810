from __future__ import annotations

import itertools

import pytest
import torch

from driftline.errors import ConfigError, InputError, SourceError
from driftline.learners import GradientLearner, NearestClassMean
from driftline.metrics import OnlineAccuracy
from driftline.metrics.base import Metric
from driftline.stream import Dataset, Segment, Stream, from_iterable, interleave
from driftline.stream.play import play
from tests.stream.players import Recorder, Watcher, add_draw, numbered, points


def numbers(samples=12):
    return Stream([Segment.of(numbered(samples))])


def live(samples=12, classes=3):
    return from_iterable([([float(i)], i % 3) for i in range(samples)], classes=classes)


def linear(inputs=3, outputs=4, dtype=torch.float32):
    torch.default_generator.manual_seed(0)
    model = torch.nn.Linear(inputs, outputs, dtype=dtype)
    return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))


def drain(playback):
    for _ in playback:
        pass
    return playback


@pytest.mark.parametrize("stream", [numbers, live])
def test_each_batch_is_predicted_before_it_is_learned(stream):
    learner = Recorder()
    drain(play(stream(5), learner, batch_size=2))
    assert learner.calls == [
        ("predict", [0, 1]),
        ("learn", [0, 1]),
        ("predict", [2, 3]),
        ("learn", [2, 3]),
        ("predict", [4]),
        ("learn", [4]),
    ]
    assert learner.labels == [0, 1, 2, 0, 1]


def test_a_step_holds_the_batch_and_what_was_said_before_learning_from_it():
    learner = NearestClassMean(classes=4)
    stream = Stream([Segment.of(points(50))])
    for step in play(stream, learner, batch_size=10):
        shadow = NearestClassMean(classes=4)
        if step.position > 10:
            x, y = stream.read(0, step.batch.position)
            shadow.learn(x, y)
        assert torch.equal(step.prediction.argmax(1), shadow.predict(step.batch.x).argmax(1))
        assert step.position == step.batch.stop
        assert step.learner is learner


def test_an_adapter_gets_samples_and_nothing_else():
    adapter = Watcher()
    drain(play(numbers(7), adapter, batch_size=3, metrics=[OnlineAccuracy()]))
    assert [(what, len(given)) for what, given in adapter.calls] == [("adapt", 1)] * 3
    assert [given[0][:, 0].tolist() for _, given in adapter.calls] == [[0, 1, 2], [3, 4, 5], [6]]


def test_the_learner_is_told_nothing_but_samples_and_labels():
    class Strict(Recorder):
        def observe(self, *given, **named):
            assert len(given) == 2 and not named
            return super().observe(*given)

        def learn(self, *given, **named):
            assert len(given) == 2 and not named
            super().learn(*given)

        def predict(self, *given, **named):
            assert len(given) == 1 and not named
            return super().predict(*given)

    learner = Strict()
    drain(play(numbers(5), learner, batch_size=2))
    drain(play(numbers(5).delay_labels(1), learner, batch_size=2))


# --- labels that come late, in part or never


@pytest.mark.parametrize("make", [numbers, live])
@pytest.mark.parametrize("batch_size", [1, 3, 5])
@pytest.mark.parametrize("delay", [1, 3, 4, 11])
def test_a_step_learns_from_the_samples_whose_label_was_due_before_its_end(make, batch_size, delay):
    learner = Recorder()
    for step in play(make(12).delay_labels(delay), learner, batch_size=batch_size):
        due = [i for i in range(12) if i + delay < step.position]
        assert learner.learned == due
        assert learner.labels == [i % 3 for i in due]


def test_a_sample_is_predicted_by_a_model_that_has_learned_those_delay_plus_one_before_it():
    learner = Recorder()
    drain(play(numbers(9).delay_labels(2), learner))
    before: dict[float, list[float]] = {}
    learned: list[float] = []
    for what, samples in learner.calls:
        if what == "predict":
            before[samples[0]] = list(learned)
        else:
            learned += samples
    assert before == {float(j): [float(i) for i in range(max(0, j - 2))] for j in range(9)}


@pytest.mark.parametrize("batch_size", [1, 2, 5, 30])
def test_labels_of_mixed_delays_come_in_the_order_in_which_they_are_due(batch_size):
    data = Segment.of(numbered(30))
    stream = Stream(
        [
            interleave(data.take(6).delay_labels(9), data.take(6, start=6)),
            data.take(8, start=12).delay_labels(2),
            data.take(10, start=20).without_labels(),
        ]
    )
    learner = Recorder()
    shown = [v for step in play(stream, learner, batch_size=batch_size) for v in step.batch.x[:, 0].tolist()]
    delay = [9 if v < 6 else 0 if v < 12 else 2 for v in shown]
    due = [(p + delay[p], p) for p in range(20)]
    assert learner.learned == [shown[p] for _, p in sorted(due)]


@pytest.mark.parametrize("make", [numbers, live])
def test_without_labels_a_learner_only_predicts(make):
    learner = Recorder()
    drain(play(make(9).without_labels(), learner, batch_size=4))
    assert [what for what, _ in learner.calls] == ["predict"] * 3


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_a_fraction_of_the_labels_teaches_the_same_samples_whatever_the_batch_size(batch_size):
    learner = Recorder()
    drain(play(numbers(500).label_fraction(0.3), learner, batch_size=batch_size))
    reference = Recorder()
    drain(play(numbers(500).label_fraction(0.3), reference))
    assert learner.learned == reference.learned
    assert 100 < len(learner.learned) < 200


def test_samples_of_a_live_stream_without_truth_are_not_learned_from():
    source = [([float(i)], i % 3 if i % 2 else None) for i in range(10)]
    for batch_size in (1, 4, 10):
        learner = Recorder()
        drain(play(from_iterable(source, classes=3), learner, batch_size=batch_size))
        assert learner.learned == [1, 3, 5, 7, 9]
        assert learner.labels == [1, 0, 2, 1, 0]


def test_data_without_labels_is_only_predicted():
    learner = Recorder()
    drain(play(Stream([Segment.of(Dataset(torch.zeros(6, 1), None, list("abc")))]), learner, batch_size=4))
    assert [what for what, _ in learner.calls] == ["predict", "predict"]


# --- stopping, resuming


def test_an_endless_stream_is_played_until_one_stops():
    endless = from_iterable((([float(i)], i % 3) for i in itertools.count()), classes=3)
    learner = Recorder()
    for step in play(endless, learner, batch_size=10):
        if step.position >= 1000:
            break
    assert len(learner.learned) == 1000


def difficult(samples=300):
    """Random transforms, several recipes, late and missing labels, in segments that do not divide by the batch."""
    data = Segment.of(points(samples))
    noisy = data.take(samples // 3).transform(add_draw, random=True).delay_labels(17)
    half = data.take(samples // 3, start=samples // 3).label_fraction(0.5)
    return Stream([interleave(noisy, half), data.take(samples, start=2 * samples // 3).delay_labels(5)], seed=1)


@pytest.mark.parametrize("batch_size, cut", [(1, 99), (7, 1), (7, 150), (7, 200), (7, 205)])
def test_a_state_round_trip_anywhere_continues_bit_for_bit(batch_size, cut):
    whole = play(difficult(), linear(), batch_size=batch_size, metrics=[OnlineAccuracy()])
    scores = torch.cat([step.prediction for step in whole])
    first = play(difficult(), linear(), batch_size=batch_size, metrics=[OnlineAccuracy()])
    for step in first:
        if step.position >= cut:
            break
    state = first.state_dict()
    second = play(difficult(), linear(), batch_size=batch_size, metrics=[OnlineAccuracy()])
    second.load_state_dict(state)
    rest = torch.cat([step.prediction for step in second])
    assert torch.equal(rest, scores[first.position :])
    assert second.metrics[0].value() == whole.metrics[0].value()
    for name, value in whole.learner.model.state_dict().items():
        assert torch.equal(value, second.learner.model.state_dict()[name])


def test_iterating_again_goes_on_where_one_stopped():
    learner = Recorder()
    playback = play(numbers(10), learner, batch_size=4)
    next(iter(playback))
    assert playback.position == 4
    drain(playback)
    assert learner.learned == list(range(10))


# --- what does not fit


def test_a_model_with_too_few_outputs_is_refused_before_it_learns():
    learner = linear(outputs=3)
    before = learner.model.weight.clone()
    with pytest.raises(InputError, match="the model gives 3 scores, but the stream has 4 classes; build it with 4"):
        drain(play(Stream([Segment.of(points())]), learner))
    assert torch.equal(learner.model.weight, before)


def test_a_model_with_more_outputs_than_classes_is_welcome():
    learner = linear(outputs=9)
    before = learner.model.weight.clone()
    playback = play(Stream([Segment.of(points(20))]), learner, batch_size=5)
    drain(playback)
    assert playback.position == 20
    assert not torch.equal(learner.model.weight, before)


def test_a_model_for_other_samples_is_refused():
    with pytest.raises(InputError, match=r"the model does not take samples of shape \(3,\)"):
        drain(play(Stream([Segment.of(points())]), linear(inputs=5)))


def test_a_bad_live_sample_stops_the_run_after_all_before_it_were_learned():
    learner = Recorder()
    source = [([float(i)], i % 3) for i in range(5)] + [([float("nan")], 0)]
    with pytest.raises(InputError, match="live, position 5: NaN or Inf in x"):
        drain(play(from_iterable(source, classes=3), learner))
    assert learner.learned == [0, 1, 2, 3, 4]


def test_a_live_source_that_raises_stops_the_run_with_its_position():
    def source():
        yield from (([float(i)], i % 3) for i in range(5))
        raise RuntimeError("sensor lost")

    learner = Recorder()
    playback = play(from_iterable(source, classes=3), learner, batch_size=2)
    with pytest.raises(SourceError, match="the source raised RuntimeError at position 5: sensor lost"):
        drain(playback)
    assert playback.position == 4
    assert learner.learned == [0, 1, 2, 3]


def test_a_batch_holds_at_least_one_sample():
    with pytest.raises(ConfigError, match="batch_size=0"):
        play(numbers(), Recorder(), batch_size=0)


def test_a_learner_is_trusted_only_while_it_is_called_even_when_it_raises():
    class Fails(Recorder):
        def learn(self, x, y):
            assert self.trusted
            raise ZeroDivisionError

    learner = Fails()
    with pytest.raises(ZeroDivisionError):
        drain(play(numbers(), learner))
    assert not learner.trusted


# --- metrics


class Order(Metric):
    """Notes when it is called, and what had been learned by then."""

    looks_first = True
    definitions = {}

    def __init__(self, seen):
        self.seen = seen

    def begin(self, stream, batch_size):
        self.seen.append(("begin", len(stream), batch_size))

    def before(self, step):
        assert step.prediction is None
        self.seen.append(("before", step.batch.position, len(step.learner.learned)))

    def update(self, step):
        assert step.prediction is not None
        self.seen.append(("update", step.batch.position, len(step.learner.learned)))

    def value(self):
        return {"calls": float(len(self.seen))}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        return


def test_metrics_are_called_before_and_after_the_learner_meets_a_batch():
    seen = []
    playback = play(numbers(4), Recorder(), batch_size=2, metrics=[Order(seen)])
    values = [step.metrics() for step in playback]
    assert seen == [
        ("begin", 4, 2),
        ("before", 0, 0),
        ("update", 0, 2),
        ("before", 2, 2),
        ("update", 2, 4),
    ]
    assert values == [{"calls": 3.0}, {"calls": 5.0}]
