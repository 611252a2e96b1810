import pytest
import torch

import driftline
from driftline.errors import ConfigError, InputError
from driftline.learners import NearestClassMean
from driftline.metrics import OnlineAccuracy
from driftline.stream import Label, Sample
from driftline.stream.events import Labels
from driftline.stream.pending import PendingLabels


def events(samples=200):
    """Labels that come 7 samples late in pairs swapped, every fifth never, and one twice."""
    x = torch.randn(samples, 3, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long().tolist()
    for i in range(samples):
        yield Sample(x[i], id=i)
        late = (i - 7) ^ 1
        if i >= 8 and late % 5:
            yield Label(late, y[late])
    yield Label(8, y[8])
    yield Label("of nobody", 0)


def play(batch_size=1, **options):
    stream = driftline.from_iterable(events, classes=2)
    learner = NearestClassMean(classes=2)
    report = driftline.run(stream, learner, batch_size=batch_size, metrics=[OnlineAccuracy()], **options)
    return report, stream, learner


@pytest.mark.parametrize("batch_size", [1, 8])
def test_labels_find_their_samples_late_out_of_order_or_never(batch_size):
    report, stream, _ = play(batch_size)
    asked = [late for late in (((i - 7) ^ 1) for i in range(8, 200)) if late % 5]
    assert stream.pending.counts == {"answered": len(asked), "expired": 0, "evicted": 0, "unknown": 0}
    assert stream.pending.unknown == 2 and len(stream.pending) == 200 - len(asked)
    assert report.record["source"]["labels"]["answered"] == len(asked)
    assert report.results["online_accuracy"] > 0.8


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_run_that_is_stopped_goes_on_with_the_same_labels(tmp_path, batch_size):
    whole, _, expected = play(batch_size, out=tmp_path / "whole", record_every=8)
    play(batch_size, out=tmp_path / "parts", record_every=8, until=lambda step: step.position >= 56)
    parts, _, learner = play(batch_size, out=tmp_path / "parts", record_every=8, resume=True)
    assert parts.series == whole.series and parts.results == whole.results
    assert parts.record["source"] == whole.record["source"]
    assert torch.equal(learner.predict(torch.eye(3)), expected.predict(torch.eye(3)))


def test_a_sample_is_scored_with_what_was_predicted_before_its_label():
    stream = driftline.from_iterable([Sample([0.0], id=0), Sample([5.0], id=1), Label(0, 1), Label(1, 0)], classes=2)
    learner = NearestClassMean(classes=2)
    steps = list(driftline.play(stream, learner))
    assert [s.batch.y if s.batch.y is None else s.batch.y.tolist() for s in steps] == [None, None, [1], [0]]
    assert [s.position for s in steps] == [1, 2, 2, 2]
    assert torch.equal(steps[3].prediction, steps[1].prediction)
    assert learner.predict(torch.tensor([[0.0], [5.0]])).argmax(1).tolist() == [1, 0]


def test_a_label_may_come_before_its_sample():
    stream = driftline.from_iterable([Label("a", 1), Sample([0.0], id="a"), Sample([1.0])], classes=2)
    learned = [step.batch.y for step in driftline.play(stream, NearestClassMean(classes=2)) if step.batch.y is not None]
    assert [y.tolist() for y in learned] == [[1]]


def test_what_waits_is_bounded():
    pending = PendingLabels(capacity=10, expire_after=4)
    for i in range(100):
        pending.ask((i,), torch.zeros(1, 2), torch.zeros(1, 3), i)
        pending.answer(Labels((f"nobody {i}",), (torch.tensor(0),)))
    assert len(pending) <= 5 and pending.unknown == 100
    assert pending.counts["expired"] + len(pending) == 100
    crowded = PendingLabels(capacity=3)
    crowded.ask(tuple(range(8)), torch.zeros(8, 2), torch.zeros(8, 3), 0)
    assert (len(crowded), crowded.counts["evicted"]) == (3, 5)


@pytest.mark.parametrize(("event", "what"), [(Sample([0.0], id=1.5), "id 1.5"), (Label("a", 7), "out of range")])
def test_bad_events_are_refused(event, what):
    with pytest.raises(InputError, match=what):
        list(driftline.from_iterable([event], classes=2).batches())


@pytest.mark.parametrize("options", [{"capacity": 0}, {"expire_after": 0}])
def test_bad_limits_are_refused(options):
    with pytest.raises(ConfigError, match="at least 1"):
        driftline.from_iterable([], **options)
