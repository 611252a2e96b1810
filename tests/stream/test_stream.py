from __future__ import annotations

import json
import pickle

import pytest
import torch

from driftline.errors import ConfigError, ScenarioError
from driftline.stream import NEVER, Dataset, Segment, Stream, concatenate, concatenate_streams, interleave
from tests.stream.players import add_draw, numbered


def two_segments(seed=0, **given):
    data = Segment.of(numbered(10, **given))
    return Stream([data.take(6).named("first"), data.take(4, start=6)], seed, name="two")


def values(batch):
    return batch.x[:, 0].tolist()


def all_dues(stream, batch_size):
    """When the label of every sample arrives, at its own position where nothing delays it."""
    dues = []
    for batch in stream.batches(batch_size):
        due = stream.due(batch)
        dues += list(range(batch.position, batch.stop)) if due is None else due.tolist()
    return dues


# --- size, slices, batches


def test_a_batch_never_crosses_segments_and_knows_its_place():
    batches = list(two_segments().batches(4))
    assert [values(b) for b in batches] == [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9]]
    assert [(b.position, b.stop, b.segment.name, b.ends_segment) for b in batches] == [
        (0, 4, "first", False),
        (4, 6, "first", True),
        (6, 10, "segment 1", True),
    ]
    assert [b.labelled for b in batches] == [4, 2, 4]


def test_reading_resumes_at_any_position_on_the_same_grid():
    assert [values(b) for b in two_segments().batches(4, start=3)] == [[3], [4, 5], [6, 7, 8, 9]]
    assert [values(b) for b in two_segments().batches(4, start=6)] == [[6, 7, 8, 9]]
    assert list(two_segments().batches(4, start=10)) == []


def test_a_slice_is_a_stream_whose_positions_begin_at_zero():
    part = two_segments()[4:9]
    assert len(part) == 5
    assert [(b.position, values(b), b.segment.index) for b in part.batches(2)] == [
        (0, [4, 5], 0),
        (2, [6, 7], 1),
        (4, [8], 1),
    ]
    assert [(i.name, i.start, i.stop) for i in part.infos()] == [("first", 0, 2), ("segment 1", 2, 5)]
    assert part.labels().tolist() == [1, 2, 0, 1, 2]
    assert part[1:3].read(0, 2)[0][:, 0].tolist() == [5, 6]
    assert part[-1:].read(0, 1)[0][:, 0].tolist() == [8]


@pytest.mark.parametrize("part", [slice(5, 5), slice(8, 2), slice(0, 10, 2), slice(10, 20)])
def test_a_slice_that_is_empty_or_has_steps_is_refused(part):
    with pytest.raises(ConfigError, match=r"of 10 samples is empty or has steps"):
        two_segments()[part]


def test_a_number_is_not_a_slice():
    with pytest.raises(ConfigError, match=r"stream\[3\]: use a slice"):
        two_segments()[3]


@pytest.mark.parametrize("start, stop", [(-1, 2), (3, 3), (0, 11), (10, 11)])
def test_positions_out_of_range_are_refused(start, stop):
    with pytest.raises(ConfigError, match=f"positions {start}..{stop} are not in a stream of 10 samples"):
        two_segments().read(start, stop)


def test_a_batch_holds_at_least_one_sample():
    with pytest.raises(ConfigError, match="batch_size=0: must be at least 1"):
        next(two_segments().batches(0))


# --- what it is made of


def test_empty_segments_are_left_out_and_an_empty_stream_is_refused():
    data = Segment.of(numbered(10))
    stream = Stream([data.take(0), data, data.take(0)])
    assert [s.name for s in stream.segments] == ["segment 0"]
    with pytest.raises(ScenarioError, match="nothing: the stream has no samples"):
        Stream([data.take(0)], name="nothing")


@pytest.mark.parametrize(
    "other, message",
    [
        (numbered(5, classes=4, name="four"), "four has 4 classes and numbered 3; a stream has one label space"),
        (numbered(5, width=3, name="wide"), r"wide has samples of shape \(3,\) and torch.float32, numbered of \(2,\)"),
        (Dataset(torch.zeros(4, 2).double(), torch.arange(4) % 3, name="fine"), r"fine .* torch.float64, numbered"),
    ],
)
def test_segments_that_do_not_fit_together_are_refused(other, message):
    with pytest.raises(ScenarioError, match=message):
        Stream([Segment.of(numbered(5)), Segment.of(other)])


def test_bytes_and_floats_fit_together():
    data = Segment.of(Dataset(torch.full((3, 2), 255, dtype=torch.uint8), torch.arange(3)))
    stream = Stream([interleave(Segment.of(numbered(3)), data)])
    assert stream.read(0, 6)[0][:, 0].tolist() == [0, 1, 1, 1, 2, 1]


def test_what_a_learner_needs_to_know_is_at_hand():
    halves = Segment.of(numbered(10)).transform(lambda x: x[:, :1])
    stream = Stream([halves])
    assert stream.input_shape == (1,)
    assert stream.classes == ("0", "1", "2")
    assert stream.nbytes() == 10 * 2 * 4
    assert stream.device.type == "cpu"


def test_labels_are_none_when_some_are_unknown():
    unlabelled = Segment.of(Dataset(torch.zeros(5, 2), None, list("abc")))
    assert Stream([Segment.of(numbered(5)), unlabelled]).labels() is None
    assert [b.labelled for b in Stream([Segment.of(numbered(5)), unlabelled]).batches(5)] == [5, 0]


def test_datasets_are_counted_once():
    data, other = Segment.of(numbered(10)), Segment.of(numbered(4))
    stream = Stream([data.classes(0), concatenate(data.transform(torch.neg), other), data])
    assert stream.datasets == [data.dataset, other.dataset]
    assert stream.to("cpu").datasets == stream.datasets


def test_a_record_says_what_repeats_the_stream():
    stream = Stream([Segment.of(numbered(10, source={"name": "digits"}))], 7, "mine", {"tasks": 2})
    described = json.loads(json.dumps(stream[2:5].describe()))
    assert described == {
        "scenario": "mine",
        "parameters": {"tasks": 2},
        "seed": 7,
        "samples": 3,
        "window": [2, 5],
        "data": [{"name": "digits"}],
        "segments": [{"name": "segment 0", "start": 0, "stop": 3}],
    }
    assert "window" not in stream.describe()


def test_streams_can_be_joined():
    joined = concatenate_streams(two_segments(3), Stream([Segment.of(numbered(2, first=50))], 9, "late"))
    assert joined.name == "two+late"
    assert joined.seed == 3
    assert [values(b) for b in joined.batches(10)] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [50, 51]]
    with pytest.raises(ScenarioError, match="a sliced stream cannot be concatenated"):
        concatenate_streams(joined[1:], joined)
    with pytest.raises(ScenarioError, match="at least one stream"):
        concatenate_streams()


def test_a_stream_pickles_to_the_same_stream():
    stream = Stream([Segment.of(numbered(80)).transform(add_draw, random=True).label_fraction(0.5)], 3)[5:70]
    copy = pickle.loads(pickle.dumps(stream))
    assert torch.equal(copy.read(0, 65)[0], stream.read(0, 65)[0])
    assert all_dues(copy, 5) == all_dues(stream, 5)


# --- when labels arrive


def test_nothing_delayed_needs_no_due_positions():
    stream = two_segments()
    assert all(stream.due(batch) is None for batch in stream.batches(3))


def test_policies_of_the_whole_stream_reach_every_segment():
    assert all_dues(two_segments().delay_labels(5), 3) == [p + 5 for p in range(10)]
    assert all_dues(two_segments().without_labels(), 3) == [NEVER] * 10
    assert all_dues(two_segments().delay_labels(5).label_fraction(1.0)[4:], 3) == [5, 6, 7, 8, 9, 10]


def test_every_sample_has_the_policy_of_its_own_recipe():
    data = Segment.of(numbered(9))
    mixed = interleave(data.classes(0), data.classes(1).delay_labels(10), data.classes(2).without_labels())
    expected = [0, 11, NEVER, 3, 14, NEVER, 6, 17, NEVER]
    for batch_size in (1, 2, 9):
        assert all_dues(Stream([mixed]), batch_size) == expected
        assert all_dues(Stream([mixed, mixed]), batch_size)[9:] == [d if d == NEVER else d + 9 for d in expected]


def test_samples_without_truth_have_labels_that_never_come():
    stream = Stream([Segment.of(Dataset(torch.zeros(5, 2), None, list("abc")))])
    assert all_dues(stream, 2) == [NEVER] * 5


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_a_fraction_of_the_labels_arrives_whatever_the_batch_size(fraction):
    data = Segment.of(numbered(2000)).label_fraction(fraction)
    stream = Stream([data, data], seed=4)
    dues = all_dues(stream, 1)
    arrived = [d != NEVER for d in dues]
    deviation = (fraction * (1 - fraction) / 4000) ** 0.5
    assert abs(sum(arrived) / 4000 - fraction) < 4 * deviation
    assert arrived[:2000] != arrived[2000:]  # each segment draws for itself
    for batch_size in (7, 64, 100, 3000):
        assert all_dues(stream, batch_size) == dues
    part = all_dues(stream[1990:2100], 9)
    assert [d if d == NEVER else d + 1990 for d in part] == dues[1990:2100]


def test_which_labels_arrive_depends_on_the_seed_alone():
    data = Segment.of(numbered(200)).label_fraction(0.5)
    assert all_dues(Stream([data], 1), 10) == all_dues(Stream([data.transform(torch.neg)], 1), 7)
    assert all_dues(Stream([data], 1), 10) != all_dues(Stream([data], 2), 10)


def test_more_labels_are_those_of_a_smaller_fraction_and_others():
    data = Segment.of(numbered(500))
    few, many = (all_dues(Stream([data.label_fraction(f)], 1), 10) for f in (0.2, 0.6))
    assert {d for d in few if d != NEVER} < {d for d in many if d != NEVER}


# --- domains


def test_domains_are_the_segments_by_name_unless_samples_are_in_named_ones():
    stream = two_segments()
    assert stream.domain_names == ("first", "segment 1")
    assert [stream.domains(b).tolist() for b in stream.batches(4)] == [[0] * 4, [0] * 2, [1] * 4]


def test_a_domain_stays_with_its_samples_through_joining_shuffling_and_naming():
    data = Segment.of(numbered(10))
    fog, snow = data.transform(torch.neg).in_domain("fog 5"), data.in_domain("snow 5")
    joined = concatenate(fog, snow).shuffle(torch.Generator().manual_seed(0)).named("both")
    stream = Stream([data.named("clean"), joined, fog.named("again")])
    assert stream.domain_names[0] == "clean" and set(stream.domain_names[1:]) == {"fog 5", "snow 5"}
    played = torch.cat([stream.domains(b) for b in stream.batches(3)])
    assert stream.domain_names[played[10]] == ("fog 5" if joined.which[0] == 0 else "snow 5")
    assert torch.equal(played[10:30] == stream.domain_names.index("fog 5"), joined.which == 0)
    assert {stream.domain_names[i] for i in played[30:]} == {"fog 5"}


def test_domains_of_a_slice_are_those_of_the_same_samples():
    data = Segment.of(numbered(10))
    stream = Stream([data.in_domain("a"), interleave(data.in_domain("a"), data.in_domain("b")).named("mixed")])
    whole = torch.cat([stream.domains(b) for b in stream.batches(4)])
    assert torch.equal(torch.cat([stream[7:25].domains(b) for b in stream[7:25].batches(4)]), whole[7:25])
    assert stream[:5].domain_names == ("a", "b")
    assert stream[7:14].describe()["domains"] == {"a": 3 + 2, "b": 2}
    assert "domains" not in two_segments().describe()


def test_a_named_domain_is_judged_as_the_same_look():
    data = Segment.of(numbered(10))
    assert data.in_domain("a").recipes[0].domain == data.recipes[0].domain
