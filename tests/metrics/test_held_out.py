from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import driftline
from driftline.errors import CheckpointError, ConfigError, DataError, InputError
from driftline.learners import GradientLearner, NearestClassMean
from driftline.metrics import HeldOut, summaries
from driftline.stream import Dataset, Segment, Stream, from_iterable
from driftline.stream.play import play
from tests.stream.players import Recorder, points

CLASSES = 10


def digits():
    return driftline.load("digits")


@driftline.scenario
def tasks_of_classes(data, rng, tasks=5):
    """New classes in each task."""
    order = torch.randperm(CLASSES, generator=rng).chunk(tasks)
    for classes in order:
        yield data.classes(*classes.tolist()).shuffle(rng)


def upside_down(x):
    return x.flip(-2)


def mirrored(x):
    return x.flip(-1)


@driftline.scenario
def domains(data, rng):
    """All classes, shown in three ways."""
    yield data.shuffle(rng).take(400).named("as is")
    yield data.shuffle(rng).take(400).transform(upside_down).named("upside down")
    yield data.shuffle(rng).take(400).transform(mirrored).named("mirrored")


@driftline.scenario
def blurry(data, rng):
    """Tasks of five classes, each with some samples of the other one's."""
    low, high = data.classes(0, 1, 2, 3, 4), data.classes(5, 6, 7, 8, 9)
    mixed = driftline.concatenate(low.take(500), high.take(60))
    yield mixed.shuffle(rng).judged_on(0, 1, 2, 3, 4)
    mixed = driftline.concatenate(high.take(500, start=60), low.take(60, start=500))
    yield mixed.shuffle(rng).judged_on(5, 6, 7, 8, 9)


def network(outputs=CLASSES):
    torch.default_generator.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, outputs))
    return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))


def final(stream, learner, metric, batch_size=10):
    for _ in play(stream, learner, batch_size=batch_size, metrics=[metric]):
        pass
    return metric.value()


def right(learner, x, y, allowed):
    """Whether each sample is predicted right with only the ``allowed`` classes competing."""
    if not len(x):
        return torch.empty(0, dtype=torch.bool)
    scores = learner.predict(x)[:, :CLASSES]
    barred = [c for c in range(scores.shape[1]) if c not in allowed]
    scores[:, barred] = -math.inf
    return scores.argmax(1) == y


class ByHand:
    """The evaluation again, written for streams whose segments show their samples in one way each."""

    def __init__(self, stream, learner, looks, judged, batch_size=10, every=None, compete="met"):
        test = digits().test
        everything = set(range(CLASSES))
        parts = [torch.isin(test.y, torch.tensor(sorted(classes))) for classes in judged]
        self.matrix, self.class_rows, self.periodic, self.ends = [], [], [], []
        self.baseline = [
            float(right(learner, look(test.x[p]), test.y[p], everything).double().mean())
            for look, p in zip(looks, parts)
        ]
        met: dict[object, set[int]] = {look: set() for look in looks}
        counts: dict[object, torch.Tensor] = {}
        for look, part in zip(looks, parts):
            counts[look] = counts.get(look, torch.zeros_like(part)) | part
        next_look = every
        for batch in stream.batches(batch_size):
            learner.observe(batch.x, batch.y)
            met[looks[batch.segment.index]] |= set(batch.y.tolist())
            known = set().union(*met.values())
            allowed = known if compete == "met" else everything

            def accuracy(look, part, allowed=allowed):
                mine = part & torch.isin(test.y, torch.tensor(sorted(met[look]), dtype=torch.long))
                return right(learner, look(test.x[mine]), test.y[mine], allowed)

            if every is not None and batch.stop >= next_look:
                self.periodic.append(self.mean([accuracy(look, part) for look, part in counts.items()]))
                next_look = (batch.stop // every + 1) * every
            if batch.ends_segment:
                number = batch.segment.index
                self.ends.append(self.mean([accuracy(look, part) for look, part in counts.items()]))
                self.class_rows.append(
                    [
                        self.mean([accuracy(look, part & (test.y == c)) for look, part in counts.items()])
                        for c in range(CLASSES)
                    ]
                )
                row = [self.mean([accuracy(look, part)]) for look, part in zip(looks, parts)]
                if number + 1 < len(looks):
                    look, part = looks[number + 1], parts[number + 1]
                    row[number + 1] = self.mean([right(learner, look(test.x[part]), test.y[part], everything)])
                self.matrix.append(row)

    @staticmethod
    def mean(parts):
        hits = torch.cat(parts)
        return float(hits.double().mean()) if len(hits) else math.nan


def plain(x):
    return x


CASES = {
    "class-incremental": (lambda: tasks_of_classes(digits(), seed=3), [plain] * 5, None),
    "domain-incremental": (
        lambda: domains(digits(), seed=3),
        [plain, upside_down, mirrored],
        [set(range(CLASSES))] * 3,
    ),
    "blurry": (lambda: blurry(digits(), seed=3), [plain, plain], [{0, 1, 2, 3, 4}, {5, 6, 7, 8, 9}]),
}


@pytest.mark.parametrize("compete", ["met", "all"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("make", [network, lambda: NearestClassMean(classes=CLASSES)], ids=["network", "means"])
def test_all_values_equal_those_of_an_evaluation_written_out(case, compete, make):
    build, looks, judged = CASES[case]
    stream = build()
    judged = judged or [set(s.labels().tolist()) for s in stream.segments]
    metric = HeldOut(every=150, compete=compete, batch_size=64)
    values = final(stream, make(), metric)
    hand = ByHand(stream, make(), looks, judged, every=150, compete=compete)

    np.testing.assert_allclose(metric.matrix, hand.matrix, rtol=0, atol=1e-12)
    np.testing.assert_allclose(metric.class_rows, hand.class_rows, rtol=0, atol=1e-12)
    np.testing.assert_allclose(metric.baseline, hand.baseline, rtol=0, atol=1e-12)
    assert metric.periodic == pytest.approx(hand.periodic, abs=1e-12)
    assert metric.ends == pytest.approx(hand.ends, abs=1e-12)
    assert values == pytest.approx(
        {
            "held_out_accuracy": hand.ends[-1],
            "a_auc": np.mean(hand.periodic),
            "a_avg": np.mean(hand.ends),
            "a_last": hand.ends[-1],
            "f_last": summaries.f_last(hand.class_rows),
            "average_accuracy": summaries.average_accuracy(hand.matrix),
            "forgetting": summaries.forgetting(hand.matrix),
            "backward_transfer": summaries.backward_transfer(hand.matrix),
            "forward_transfer": summaries.forward_transfer(hand.matrix, hand.baseline),
        },
        abs=1e-12,
    )
    assert set(values) == {name for name in HeldOut.definitions if "*" not in name}


def test_which_classes_compete_makes_a_difference():
    """A network with an output for each class gives unmet ones a chance to be wrong."""

    class FavoursTheLast(Recorder):
        def predict(self, x):
            return torch.arange(float(self.num_classes)).expand(len(x), -1)

    data = points(100, test=40)
    stream = Stream([Segment.of(data).classes(0, 1), Segment.of(data).classes(2, 3)])
    met, every_class = HeldOut(compete="met"), HeldOut(compete="all")
    final(stream, FavoursTheLast(4), met)
    final(stream, FavoursTheLast(4), every_class)
    test = data.test.y
    low = test < 2
    assert met.ends == [float((test[low] == 1).double().mean()), float((test == 3).double().mean())]
    assert every_class.ends == [0.0, float((test == 3).double().mean())]
    # Just before it is learned, a segment is judged with all classes competing, as for the untrained model.
    assert met.matrix[0, 1] == met.baseline[1] == float((test[~low] == 3).double().mean())


@pytest.mark.parametrize("extra", [0, 1, 5])
def test_outputs_beyond_the_streams_classes_never_compete_with_those_met(extra):
    class FavoursTheLast(Recorder):
        def predict(self, x):
            return torch.arange(float(self.num_classes)).expand(len(x), -1)

    data = points(100, test=40)
    metric = HeldOut(compete="met")
    final(Stream([Segment.of(data)]), FavoursTheLast(4 + extra), metric)
    assert metric.ends == [float((data.test.y == 3).double().mean())]


# --- when it is measured


def stops(metric, batch_size=10, **given):
    """Positions of the evaluations."""
    data = Segment.of(points(100, test=10))
    stream = Stream([data.take(50), data.take(50, start=50)])
    positions = []
    for step in play(stream, NearestClassMean(classes=4), batch_size=batch_size, metrics=[metric]):
        positions += [p for p, name, _ in metric.points(step.position) if name == "held_out_accuracy"]
    return positions


def test_evaluations_come_at_each_period_and_at_the_ends_of_segments():
    assert stops(HeldOut(every=30)) == [30, 50, 60, 90, 100]
    assert stops(HeldOut(every=25), batch_size=10) == [30, 50, 80, 100]
    assert stops(HeldOut(every=None)) == [50, 100]
    assert stops(HeldOut(every=1000)) == [50, 100]


def test_the_released_schedule_is_due_only_past_its_threshold():
    metric = HeldOut(every=30, schedule="released")
    assert stops(metric) == [40, 50, 70, 100]
    assert len(metric.periodic) == 3
    assert metric.describe()["schedule"] == "released"


def test_an_evaluation_at_the_end_of_a_segment_is_periodic_only_where_it_is_due():
    metric = HeldOut(every=50)
    stops(metric)
    assert len(metric.periodic) == len(metric.ends) == 2
    metric = HeldOut(every=30)
    stops(metric)
    assert (len(metric.periodic), len(metric.ends)) == (3, 2)


def test_points_hold_the_accuracy_of_each_segment_played_at_its_end():
    metric = HeldOut(every=None)
    final(tasks_of_classes(digits(), seed=3), NearestClassMean(), metric)
    points = metric.points(0)
    assert [name for _, name, _ in points[-6:]] == ["held_out_accuracy"] + [f"held_out_accuracy/{j}" for j in range(5)]
    assert [value for _, _, value in points[-5:]] == metric.matrix_rows[-1]
    assert metric.points(0) == []


def test_before_the_first_evaluation_there_is_no_value():
    metric = HeldOut()
    metric.begin(Stream([Segment.of(points(20, test=5))]), 1)
    assert all(math.isnan(v) for v in metric.value().values())


def test_one_segment_has_neither_forgetting_nor_a_baseline():
    metric = HeldOut(every=20)
    values = final(Stream([Segment.of(points(50, test=10))]), NearestClassMean(), metric)
    assert set(values) == {"held_out_accuracy", "a_auc", "a_avg", "a_last"}
    assert metric.baseline == []


def test_a_class_first_met_in_a_batch_counts_right_after_it():
    data = points(40, test=20)
    stream = Stream([Segment.of(data).at(torch.argsort(data.y, stable=True))])
    metric, seen = HeldOut(every=1), []
    shadow = NearestClassMean(classes=4)
    for step in play(stream, NearestClassMean(classes=4), metrics=[metric]):
        shadow.learn(step.batch.x, step.batch.y)
        seen.append(int(step.batch.y))
        mine = torch.isin(data.test.y, torch.tensor(seen))
        expected = (shadow.predict(data.test.x[mine]).argmax(1) == data.test.y[mine]).double().mean()
        assert metric.periodic[-1] == float(expected)


# --- parts of streams, and segments that stand for nothing


def test_a_sliced_stream_is_measured_as_the_segments_it_shows():
    whole = tasks_of_classes(digits(), seed=3)
    starts = whole.starts
    part, alone = HeldOut(every=100), HeldOut(every=100)
    values = final(whole[starts[2] :], NearestClassMean(), part)
    assert values == final(Stream(whole.segments[2:], whole.seed), NearestClassMean(), alone)
    np.testing.assert_array_equal(part.matrix, alone.matrix)
    assert part.matrix.shape == (3, 3)


def test_segments_without_held_out_samples_are_left_out_of_the_summaries():
    data = Segment.of(points(300, test=100))
    noise = data.take(60).with_labels(torch.randint(4, (300,), generator=torch.Generator().manual_seed(0)))
    metric = HeldOut(every=None)
    values = final(Stream([data.classes(0, 1), noise, data.classes(2, 3)]), NearestClassMean(), metric)
    matrix = metric.matrix
    assert np.isnan(matrix[:, 1]).all()
    kept = matrix[np.ix_([0, 2], [0, 2])]
    assert values["average_accuracy"] == summaries.average_accuracy(kept)
    assert values["forgetting"] == summaries.forgetting(kept)


def test_a_given_test_set_takes_the_place_of_the_split():
    data = points(200, test=100)
    bare = Dataset(data.x, data.y, data.classes)
    given, split = HeldOut(every=50, test=data.test), HeldOut(every=50)
    assert final(Stream([Segment.of(bare)]), NearestClassMean(), given) == final(
        Stream([Segment.of(data)]), NearestClassMean(), split
    )


# --- live streams


def test_a_live_stream_is_evaluated_on_the_given_test_set():
    data = points(200, test=100)
    live = from_iterable([(x, int(y)) for x, y in zip(data.x, data.y)], classes=4)
    metric = HeldOut(every=80, test=data.test)
    values = final(live, NearestClassMean(classes=4), metric)
    shadow, expected = NearestClassMean(classes=4), []
    for start, stop in ((0, 80), (80, 160)):
        shadow.learn(data.x[start:stop], data.y[start:stop])
        expected.append(float((shadow.predict(data.test.x).argmax(1) == data.test.y).double().mean()))
    assert metric.periodic == expected
    assert values["a_auc"] == np.mean(expected)
    assert values["held_out_accuracy"] == expected[-1]
    assert math.isnan(values["a_last"])


def test_a_live_stream_has_no_segments_to_wait_for():
    live = from_iterable([], classes=4)
    with pytest.raises(ConfigError, match="evaluates at the ends of segments, which a live stream lacks"):
        play(live, Recorder(4), metrics=[HeldOut(every=None, test=points(10))])
    with pytest.raises(DataError, match=r"give HeldOut\(test=dataset\)"):
        play(live, Recorder(4), metrics=[HeldOut()])


# --- what it must not do


def test_evaluating_changes_nothing_for_the_learner_or_the_stream():
    class Counts(NearestClassMean):
        learned = 0

        def learn(self, x, y):
            self.learned += len(x)
            super().learn(x, y)

        def observe(self, x, y):
            self.learned += len(x)
            return super().observe(x, y)

    watched, alone = Counts(classes=4), Counts(classes=4)
    data = points(200, test=50)
    stream = Stream([Segment.of(data).take(100), Segment.of(data).take(100, start=100)])
    final(stream, watched, HeldOut(every=1))
    for _ in play(stream, alone, batch_size=10):
        pass
    assert watched.learned == 200
    assert torch.equal(watched.predict(data.x), alone.predict(data.x))


def test_a_learner_that_raises_while_it_is_evaluated_is_no_longer_trusted():
    class Fails(Recorder):
        def predict(self, x):
            if self.trusted and len(x) == 5:
                raise ZeroDivisionError
            return super().predict(x)

    learner = Fails(4)
    with pytest.raises(ZeroDivisionError):
        final(Stream([Segment.of(points(20, test=5))]), learner, HeldOut(every=10))
    assert not learner.trusted


# --- state


@pytest.mark.parametrize("cut", [40, 600, 1100])
def test_a_state_round_trip_continues_to_the_same_values(cut):
    stream = tasks_of_classes(digits(), seed=3)
    whole, resumed = HeldOut(every=170), HeldOut(every=170)
    first = play(stream, network(), batch_size=10, metrics=[whole])
    for step in first:
        if cut <= step.position < cut + 10:
            state = first.state_dict()
            state["learner"] = torch.utils._pytree.tree_map(
                lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, state["learner"]
            )
    again = play(stream, network(), batch_size=10, metrics=[resumed])
    again.load_state_dict(state)
    for _ in again:
        pass
    assert resumed.value() == whole.value()
    assert resumed.points(0) == whole.points(0)
    np.testing.assert_array_equal(resumed.matrix, whole.matrix)
    np.testing.assert_array_equal(resumed.class_rows, whole.class_rows)


def test_a_state_of_another_period_is_refused():
    with pytest.raises(CheckpointError, match="every=100, not 50"):
        HeldOut(every=50).load_state_dict(HeldOut(every=100).state_dict())


# --- what does not fit


@pytest.mark.parametrize(
    "given, message",
    [
        ({"compete": "some"}, 'compete=\'some\': must be "met", "all" or "task"'),
        ({"every": 0}, "every=0 samples; give a period of at least 1"),
        ({"schedule": "mine"}, "unknown variant 'mine'"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        HeldOut(**given)


def test_a_stream_without_held_out_samples_or_classes_is_refused():
    with pytest.raises(DataError, match='give the dataset a "test" split, or HeldOut'):
        play(Stream([Segment.of(points(10))]), Recorder(4), metrics=[HeldOut()])
    targets = Stream([Segment.of(Dataset(torch.zeros(3, 1), torch.zeros(3)))])
    with pytest.raises(InputError, match="HeldOut needs a stream with classes"):
        play(targets, Recorder(), metrics=[HeldOut()])
