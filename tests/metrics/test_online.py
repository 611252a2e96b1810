from __future__ import annotations

import math

import pytest
import torch

from driftline.errors import ConfigError, InputError
from driftline.learners import NearestClassMean
from driftline.metrics import OnlineAccuracy
from driftline.metrics.online import FLUSH
from driftline.stream import Dataset, Segment, Stream, from_iterable
from driftline.stream.play import play
from tests.stream.players import Recorder, points


def stream(samples=400, **given):
    return Stream([Segment.of(points(samples, **given))])


def hits_of(playback):
    """Whether each sample with a known truth was predicted right, in order."""
    hits = []
    for step in playback:
        if step.batch.y is not None:
            hits += [p == y for p, y in zip(step.prediction.argmax(1).tolist(), step.batch.y.tolist()) if y >= 0]
    return hits


@pytest.mark.parametrize("batch_size", [1, 3, 64, 300])
@pytest.mark.parametrize("classes", [4, None], ids=["fixed", "growing"])
def test_the_value_is_that_of_the_full_record(batch_size, classes):
    accuracy = OnlineAccuracy(window=100)
    hits = hits_of(play(stream(), NearestClassMean(classes=classes), batch_size=batch_size, metrics=[accuracy]))
    assert accuracy.value() == {
        "online_accuracy": sum(hits) / 400,
        "online_accuracy_window": sum(hits[-100:]) / 100,
    }
    assert 0.3 < sum(hits) / 400 < 1


def test_looking_at_any_time_gives_the_value_so_far_and_changes_nothing():
    looked_at, left_alone = OnlineAccuracy(window=50), OnlineAccuracy(window=50)
    hits = []
    for step in play(stream(), NearestClassMean(classes=4), batch_size=3, metrics=[looked_at, left_alone]):
        hits += (step.prediction.argmax(1) == step.batch.y).tolist()
        assert looked_at.value()["online_accuracy"] == sum(hits) / len(hits)
        assert looked_at.value()["online_accuracy_window"] == pytest.approx(sum(hits[-50:]) / len(hits[-50:]))
    assert looked_at.value() == left_alone.value()


@pytest.mark.parametrize("steps", [FLUSH - 1, FLUSH, FLUSH + 1, 2 * FLUSH])
def test_nothing_is_lost_where_pending_steps_are_counted(steps):
    accuracy = OnlineAccuracy(window=10)
    hits = hits_of(play(stream(steps), NearestClassMean(classes=4), metrics=[accuracy]))
    assert accuracy.value()["online_accuracy"] == sum(hits) / steps
    assert accuracy.value()["online_accuracy_window"] == sum(hits[-10:]) / 10


def test_before_the_first_sample_there_is_no_value():
    values = OnlineAccuracy().value()
    assert set(values) == {"online_accuracy", "online_accuracy_window"}
    assert all(math.isnan(v) for v in values.values())


def test_without_a_window_there_is_one_value():
    assert set(OnlineAccuracy(window=None).value()) == {"online_accuracy"}


def test_samples_without_a_known_truth_do_not_count():
    data = points(200)
    source = [(x, None if i % 3 == 0 or 60 <= i < 80 else int(y)) for i, (x, y) in enumerate(zip(data.x, data.y))]
    accuracy = OnlineAccuracy(window=40)
    live = from_iterable(source, classes=4)
    hits = hits_of(play(live, NearestClassMean(classes=4), batch_size=7, metrics=[accuracy]))
    known = sum(y is not None for _, y in source)
    assert len(hits) == known
    assert accuracy.value()["online_accuracy"] == sum(hits) / known
    assert accuracy.value()["online_accuracy_window"] == sum(hits[-40:]) / 40


def test_labels_that_never_reach_the_learner_still_count():
    accuracy = OnlineAccuracy()
    first_class = Recorder(classes=4)  # scores all classes alike, so that argmax takes the first
    for _ in play(stream(200).without_labels(), first_class, batch_size=10, metrics=[accuracy]):
        pass
    assert accuracy.value()["online_accuracy"] == float((points(200).y == 0).double().mean())


@pytest.mark.parametrize("cut", [50, 130, 300])
def test_a_state_round_trip_continues_to_the_same_value(cut):
    whole = OnlineAccuracy(window=150)
    playback = play(stream(), NearestClassMean(classes=4), metrics=[whole])
    for step in playback:
        if step.position == cut:
            state = playback.state_dict()
    resumed = OnlineAccuracy(window=150)
    again = play(stream(), NearestClassMean(classes=4), metrics=[resumed])
    again.load_state_dict(state)
    for _ in again:
        pass
    assert resumed.value() == whole.value()


def test_parts_merge_to_the_whole():
    whole, first, second, empty = (OnlineAccuracy(window=150) for _ in range(4))
    learner = NearestClassMean(classes=4)
    data = stream()
    for step in play(data, learner, metrics=[whole]):
        (first if step.position <= 300 else second).update(step)
    first.merge(second)
    first.merge(empty)
    assert first.value() == whole.value()
    empty.merge(first)
    assert empty.value() == whole.value()


def test_it_needs_classes():
    targets = Stream([Segment.of(Dataset(torch.zeros(3, 1), torch.zeros(3)))], name="targets")
    with pytest.raises(InputError, match="OnlineAccuracy needs a stream with classes, and 'targets' has none"):
        play(targets, Recorder(), metrics=[OnlineAccuracy()])


@pytest.mark.parametrize("window", [0, -5])
def test_a_window_holds_at_least_one_sample(window):
    with pytest.raises(ConfigError, match=f"window={window}: must be at least 1"):
        OnlineAccuracy(window)


def test_it_describes_itself_and_defines_its_values():
    accuracy = OnlineAccuracy(window=7)
    assert accuracy.describe() == {"name": "OnlineAccuracy", "window": 7}
    assert set(accuracy.value()) == set(OnlineAccuracy.definitions)
