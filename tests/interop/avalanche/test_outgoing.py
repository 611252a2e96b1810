from __future__ import annotations

import itertools

import pytest
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.training.supervised import Naive

import driftline
from driftline.errors import ConfigError, DataError, ScenarioError
from driftline.interop.avalanche import from_avalanche, to_avalanche
from driftline.metrics.probe import stream_probe
from driftline.stream import Segment, Stream
from tests.interop.avalanche.digits import DATA, network, settings, stream


def contents(experience):
    x, y, t = zip(*(experience.dataset[i] for i in range(len(experience.dataset))))
    return torch.stack(x), torch.tensor(y), torch.tensor(t)


def night_and_day():
    data = Segment.of(driftline.data.tensors(DATA.x[:80], DATA.y[:80], test=(DATA.test.x[:40], DATA.test.y[:40])))
    dark = data.take(40, 40).corrupt("gaussian_noise", severity=2).in_domain("night")
    return Stream([data.take(40).named("day"), dark.named("evening"), dark.shuffle(torch.Generator()).named("again")])


def test_segments_become_experiences_with_the_samples_a_learner_here_would_see():
    made = night_and_day()
    benchmark = to_avalanche(made)
    for info, experience in zip(made.infos(), benchmark.train_stream, strict=True):
        x, y, t = contents(experience)
        expected_x, expected_y = made.read(info.start, info.stop)
        assert torch.equal(x, expected_x) and torch.equal(y, expected_y) and not t.any()
        assert experience.classes_in_this_experience == set(y.tolist())


def test_held_out_samples_become_the_test_stream():
    made = night_and_day()
    probe = stream_probe(made)
    x, y = probe.stream.read(0, len(probe.stream))
    for places, experience in zip(probe.members, to_avalanche(made).test_stream, strict=True):
        assert torch.equal(contents(experience)[0], x[places]) and torch.equal(contents(experience)[1], y[places])
    assert "test" not in to_avalanche(made, test=False).streams


def test_a_sliced_stream_shows_its_window():
    made = night_and_day()[30:60]
    experiences = list(to_avalanche(made).train_stream)
    assert [len(e.dataset) for e in experiences] == [10, 20]
    assert torch.equal(contents(experiences[1])[0], made.read(10, 30)[0])


def test_there_and_back_is_the_same_stream():
    made = stream()
    back = from_avalanche(to_avalanche(made))
    assert torch.equal(back.read(0, 300)[0], made.read(0, 300)[0])
    assert [len(a.held_out()) for a in back.segments] == [len(b.held_out()) for b in made.segments]


@pytest.mark.parametrize("what, expected", [("none", [0, 0, 0]), ("segment", [0, 1, 2]), ("domain", [0, 1, 1])])
def test_tasks_are_nothing_segments_or_domains(what, expected):
    benchmark = to_avalanche(night_and_day(), task_labels=what)
    for experiences in (benchmark.train_stream, benchmark.test_stream):
        assert [contents(e)[2].unique().tolist() for e in experiences] == [[t] for t in expected]
        assert all(hasattr(e, "task_labels") == (what != "none") for e in experiences)


def test_pieces_of_an_experience_are_made_anew_each_time_and_know_where_they_are():
    made = stream()
    pieces = to_avalanche(made, experience_size=7).train_stream
    for _ in range(2):
        first, last, x = [], [], []
        for piece in pieces:
            first.append(piece.is_first_subexp)
            last.append(piece.is_last_subexp)
            x.append(contents(piece)[0])
        assert torch.equal(torch.cat(x), made.read(0, 300)[0])
        assert first.count(True) == last.count(True) == 5
    sizes = [len(segment) for segment in made.segments]
    assert len(first) == sum(-(-size // 7) for size in sizes)
    assert next(iter(pieces)) is not next(iter(pieces))


def test_the_last_piece_is_marked_where_the_size_divides_the_data_too():
    data = Segment.of(driftline.Dataset(DATA.x[:20], DATA.y[:20]))
    pieces = list(to_avalanche(Stream([data]), experience_size=10).train_stream)
    assert [p.is_last_subexp for p in pieces] == [False, True]
    theirs = split_online_stream(to_avalanche(Stream([data])).train_stream, experience_size=10)
    assert [p.is_last_subexp for p in theirs] == [False, False]  # the trap that this avoids


def test_an_endless_live_stream_trains_a_strategy():
    def endless():
        for i in itertools.count():
            yield DATA.x[i % 100], int(DATA.y[i % 100])

    benchmark = to_avalanche(driftline.from_iterable(endless, classes=10), experience_size=20)
    strategy = Naive(**settings(network()))
    for experience in itertools.islice(benchmark.train_stream, 3):
        strategy.train(experience)
    assert strategy.clock.train_iterations == 6


def test_what_avalanche_cannot_express_is_refused():
    made = stream()
    with pytest.raises(ScenarioError, match="segment 'task 0': labels come late or not at all"):
        to_avalanche(made.delay_labels(5))
    with pytest.raises(ScenarioError, match="labels come late or not at all"):
        to_avalanche(made.without_labels())
    numbers = driftline.scenarios.slowly_changing_regression(seed=0, samples=100)
    with pytest.raises(ScenarioError, match="has no classes"):
        to_avalanche(numbers)
    live = driftline.from_iterable([(DATA.x[0], 1), DATA.x[0]], classes=2)
    with pytest.raises(ConfigError, match="is live: say how many samples"):
        to_avalanche(live)
    with pytest.raises(ScenarioError, match="labels come late"):
        to_avalanche(live.delay_labels(1), experience_size=1)
    with pytest.raises(DataError, match="positions 0 to 2: samples without a label"):
        list(to_avalanche(live, experience_size=2).train_stream)
    with pytest.raises(ConfigError, match="experience_size=0: must be at least 1"):
        to_avalanche(made, experience_size=0)
    with pytest.raises(ConfigError, match="task_labels='classes': must be"):
        to_avalanche(made, task_labels="classes")
    relabelled = made.segments[0].with_labels(made.segments[0].dataset.y.flip(0))
    with pytest.raises(ScenarioError, match="segment 'task 0' has no held-out samples while others have"):
        to_avalanche(Stream([relabelled, made.segments[1]]))
