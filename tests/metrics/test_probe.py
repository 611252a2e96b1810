from __future__ import annotations

import pytest
import torch

from driftline.errors import DataError
from driftline.metrics.probe import UNMET, live_probe, stream_probe
from driftline.stream import Dataset, Segment, Stream, concatenate, from_iterable, interleave
from tests.stream.players import add_draw, numbered


def data(samples=12):
    """Training samples 0, 1, ... and test samples 100, 101, ..., all of class i modulo 3."""
    return Segment.of(numbered(samples, splits={"test": numbered(6, first=100, name="test")}))


def shown(probe):
    return probe.stream.read(0, len(probe.stream))[0][:, 0].tolist()


def members(probe):
    values = shown(probe)
    return [sorted(values[i] for i in part.tolist()) for part in probe.members]


def test_each_held_out_sample_is_there_once_with_its_class():
    whole = data()
    probe = stream_probe(Stream([whole.classes(1), whole.classes(0, 1)]))
    assert shown(probe) == [100, 101, 103, 104]
    assert probe.classes.tolist() == [0, 1, 0, 1]
    assert members(probe) == [[101, 104], [100, 101, 103, 104]]


def test_a_sample_counts_from_where_its_class_is_first_met():
    whole = data()
    probe = stream_probe(Stream([whole.classes(1), whole.classes(0, 1).judged_on(0, 2)]))
    assert dict(zip(shown(probe), probe.met.tolist())) == {
        101: 0,
        104: 0,
        100: 4,
        103: 4,
        102: UNMET,
        105: UNMET,
    }
    assert probe.class_met.tolist() == [4, 0, UNMET]


def test_each_way_of_showing_a_sample_is_a_domain_met_for_itself():
    whole = data()
    turned = whole.transform(torch.neg)
    probe = stream_probe(Stream([whole.classes(0), turned.classes(1), turned.classes(0), whole.classes(0)]))
    assert dict(zip(shown(probe), probe.met.tolist())) == {100: 0, 103: 0, -100: 8, -101: 4, -103: 8, -104: 4}
    assert probe.class_met.tolist() == [0, 4, UNMET]
    assert members(probe) == [[100, 103], [-104, -101], [-103, -100], [100, 103]]


def test_segments_that_mix_domains_have_members_in_each():
    whole = data()
    mixed = interleave(whole.classes(0), whole.classes(1).transform(torch.neg), whole.classes(2).relabel([0, 2, 1]))
    probe = stream_probe(Stream([mixed]))
    assert members(probe) == [[-104, -101, 100, 102, 103, 105]]
    assert dict(zip(shown(probe), probe.classes.tolist())) == {100: 0, 103: 0, -101: 1, -104: 1, 102: 1, 105: 1}
    assert dict(zip(shown(probe), probe.met.tolist())) == {100: 0, 103: 0, -101: 1, -104: 1, 102: 2, 105: 2}


def test_when_labels_come_makes_no_domain():
    whole = data()
    late = concatenate(whole.classes(0), whole.classes(0, 1).delay_labels(3), whole.classes(1).label_fraction(0.5))
    probe = stream_probe(Stream([late, late.without_labels()]))
    assert shown(probe) == [100, 101, 103, 104]
    assert members(probe) == [[100, 101, 103, 104]] * 2
    assert probe.met.tolist() == [0, 5, 0, 5]


def test_a_segment_whose_labels_are_given_by_row_stands_for_nothing():
    whole = data()
    probe = stream_probe(Stream([whole.with_labels(torch.zeros(12, dtype=torch.long)), whole.classes(1)]))
    assert members(probe) == [[], [101, 104]]
    assert probe.met.tolist() == [12, 12]  # class 0 was met, but not in this domain
    assert probe.class_met.tolist() == [0, 12, UNMET]


def test_a_domain_without_a_held_out_sample_does_not_disturb_the_others():
    train = numbered(12, splits={"test": Dataset(torch.full((3, 2), 100.0), torch.tensor([1, 1, 0]), list("abc"))})
    whole = Segment.of(train)
    probe = stream_probe(Stream([whole.classes(2).transform(torch.neg), whole.classes(1)]))
    assert members(probe) == [[], [100, 100]]
    assert probe.met.tolist() == [4, 4]


def test_a_window_shows_its_own_segments_only():
    whole = data()
    stream = Stream([whole.classes(0), whole.classes(1), whole.classes(2)])[6:10]
    probe = stream_probe(stream)
    assert members(probe) == [[101, 104], [102, 105]]
    assert dict(zip(shown(probe), probe.met.tolist())) == {101: 0, 104: 0, 102: 2, 105: 2}
    assert probe.class_met.tolist() == [UNMET, 0, 2]


def test_random_transforms_draw_for_held_out_samples_apart_from_the_streams():
    zeros = Dataset(torch.zeros(8, 2), torch.arange(8) % 2)
    train = Segment.of(Dataset(zeros.x, zeros.y, splits={"test": zeros})).transform(add_draw, random=True)
    stream = Stream([train], seed=3)
    shown_twice = [stream_probe(stream).stream.read(0, 8)[0] for _ in range(2)]
    assert torch.equal(*shown_twice)
    assert not torch.isin(shown_twice[0], stream.read(0, 8)[0]).any()


def test_a_given_test_set_replaces_the_split_for_every_segment():
    test = Dataset(torch.full((3, 2), 50.0), torch.arange(3))
    whole = data()
    probe = stream_probe(Stream([whole.classes(0), whole.transform(torch.neg)]), test)
    assert members(probe) == [[50], [-50, -50, -50]]
    unsplit = Segment.of(numbered(12))
    assert members(stream_probe(Stream([unsplit]), test)) == [[50, 50, 50]]


def test_nothing_held_out_is_an_error_that_says_what_to_do():
    message = 'bare: no segment has held-out samples; give the dataset a "test" split, or HeldOut'
    with pytest.raises(DataError, match=message):
        stream_probe(Stream([Segment.of(numbered(12))], name="bare"))
    foreign = numbered(12, splits={"test": Dataset(torch.zeros(2, 2), torch.tensor([2, 2]), list("abc"))})
    with pytest.raises(DataError, match=message):
        stream_probe(Stream([Segment.of(foreign).classes(0, 1)], name="bare"))


def test_a_test_set_of_another_shape_is_refused():
    with pytest.raises(DataError, match=r"'test' split have shape \(5,\), these \(2,\)"):
        stream_probe(Stream([data()]), Dataset(torch.zeros(3, 5), torch.arange(3)))


def test_a_stream_without_truth_cannot_be_judged():
    unlabelled = Segment.of(Dataset(torch.zeros(4, 2), None, list("abc"), splits={"test": numbered(3)}))
    with pytest.raises(DataError, match="not all labels are known"):
        stream_probe(Stream([data(), unlabelled]))


def test_a_live_stream_is_judged_on_the_given_test_set_from_the_start():
    probe = live_probe(from_iterable([], classes=3), numbered(6, first=100))
    assert shown(probe) == [100, 101, 102, 103, 104, 105]
    assert probe.met.tolist() == [0] * 6
    assert probe.class_met.tolist() == [0, 0, 0]
    assert probe.members == []


def test_a_live_stream_needs_a_fitting_test_set():
    live = from_iterable([], classes=3, name="sensor")
    for test in (None, Dataset(torch.zeros(3, 2))):
        with pytest.raises(DataError, match=r"sensor is live and has no held-out samples .* HeldOut\(test=dataset\)"):
            live_probe(live, test)
    with pytest.raises(DataError, match="numbered has 4 classes, the stream 3"):
        live_probe(live, numbered(8, classes=4))
