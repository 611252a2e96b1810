import datetime

import pytest
from river import datasets
from river.stream import simulate_qa

from driftline.errors import ConfigError, SourceError
from driftline.interop import river
from driftline.stream import Label, Sample

TRIPS = [(0, 15), (10, 30), (20, 5), (45, 7), (50, 4), (55, 8)]


def events(stream):
    return [("?", e.id) if isinstance(e, Sample) else ("!", e.id) for e in stream.source()]


@pytest.mark.parametrize("delay", [7, 60, lambda x, y: datetime.timedelta(minutes=y), "wait"])
def test_labels_come_in_rivers_order(delay):
    day = datetime.datetime(2020, 1, 1)
    delay = datetime.timedelta(minutes=delay) if isinstance(delay, int) else delay
    rows = [
        ({"at": day + datetime.timedelta(minutes=at), "wait": datetime.timedelta(minutes=d)}, float(d))
        for at, d in TRIPS
    ]
    expected = [("?", i) if y is None else ("!", i) for i, _, y, *_ in simulate_qa(rows, "at", delay)]
    stream = river.stream(rows, (), ["x"], moment="at", delay=delay)
    assert events(stream) == expected


def test_labels_are_ordered_by_when_they_are_due_even_when_moments_are_not():
    rows = [({"t": t}, 0) for t in (10, 0, 11, 20)]
    assert events(river.stream(rows, [0, 1], moment="t", delay=3)) == [
        ("?", 0), ("?", 1), ("!", 1), ("?", 2), ("!", 0), ("!", 2), ("?", 3), ("!", 3),
    ]  # fmt: skip


def test_a_label_may_never_come():
    rows = [({"t": i}, i % 2) for i in range(6)]
    stream = river.stream(rows, [0, 1], moment="t", delay=lambda x, y: 1 if y else None)
    assert [e.id for e in stream.source() if isinstance(e, Label)] == [1, 3, 5]


def test_rivers_data_has_its_classes_and_full_precision():
    stream = river.stream(datasets.ImageSegments())
    batch = next(iter(stream.batches(2)))
    x, y = next(iter(datasets.ImageSegments()))
    assert batch.x[0].tolist() == list(x.values()) and stream.classes[batch.y[0]] == y


def test_unknown_classes_and_words_are_refused():
    with pytest.raises(ConfigError, match="classes are not known"):
        river.stream([({"a": 1.0}, 0)])
    with pytest.raises(SourceError, match="not numbers"):
        next(iter(river.stream([({"a": "red"}, 0)], [0, 1]).batches()))
