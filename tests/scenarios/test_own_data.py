"""Scenarios that make their own data."""

import pickle

import pytest
import torch

import driftline
from driftline import scenarios
from driftline.errors import ConfigError, ScenarioError
from driftline.stream import Dataset, Segment
from driftline.stream.scenario import OwnDataScenario, Scenario
from tests.scenarios.toy import toy


@driftline.scenario
def random_walk(rng, steps=40, halves=False):
    """Where a walk goes next."""
    place = torch.randn(steps + 1, 2, generator=rng).cumsum(0)
    walk = Segment.of(Dataset(place[:-1], place[1:], name="walk"))
    yield from walk.batched(steps // 2) if halves else [walk]


@driftline.scenario
def nothing(rng):
    return iter(())


@driftline.scenario
def needs_a_number(rng, steps):
    yield Segment.of(Dataset(torch.rand(steps, 1, generator=rng)))


def test_a_script_whose_first_parameter_is_rng_is_called_without_data():
    stream = random_walk(seed=3, steps=10, halves=True)
    assert [len(s) for s in stream.segments] == [5, 5]
    assert (stream.name, stream.seed, stream.classes) == ("random_walk", 3, ())
    assert stream.describe()["parameters"] == {"steps": 10, "halves": True}
    assert stream.describe()["data"] == [{"name": "walk"}]


def test_whether_a_scenario_needs_data_is_known_before_it_is_called():
    assert isinstance(random_walk, OwnDataScenario) and isinstance(random_walk, Scenario)
    assert not random_walk.needs_data and scenarios.iid.needs_data
    assert list(random_walk.parameters) == ["steps", "halves"] and list(scenarios.iid.parameters) == []
    assert repr(random_walk) == "<scenario random_walk(steps, halves)>"


def test_the_seed_decides_the_data():
    one, same, other = (random_walk(seed=s).read(0, 40) for s in (1, 1, 2))
    assert torch.equal(one[0], same[0]) and torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])


def test_its_parameters_may_be_given_by_place_after_the_seed():
    assert len(random_walk(0, 7)) == 7


def test_labels_can_be_late_as_for_any_stream():
    stream = random_walk(seed=0).delay_labels(4)
    batch = next(stream.batches(3))
    assert stream.due(batch).tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_walk(toy()), r"makes its own data; call it as random_walk\(seed=0, ...\), not with a Dataset"),
        (lambda: random_walk(data=toy()), "its parameters are: steps, halves"),
        (lambda: random_walk(step=4), "its parameters are: steps, halves"),
        (lambda: needs_a_number(), "missing a required argument: 'steps'; its parameters are: steps"),
        (lambda: scenarios.iid(3), "data must be a driftline Dataset, got int"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_without_samples_there_is_no_stream():
    with pytest.raises(ScenarioError, match="nothing: the stream has no samples"):
        nothing()


def test_it_and_its_streams_pickle():
    assert pickle.loads(pickle.dumps(random_walk)) is random_walk
    stream = random_walk(seed=2)
    assert torch.equal(pickle.loads(pickle.dumps(stream)).read(0, 40)[1], stream.read(0, 40)[1])


def test_it_is_loaded_from_a_users_file(tmp_path):
    file = tmp_path / "walks.py"
    file.write_text(
        "import torch, driftline\n"
        "@driftline.scenario\n"
        "def walk(rng, steps=8):\n"
        "    place = torch.randn(steps, 1, generator=rng)\n"
        "    yield driftline.Segment.of(driftline.Dataset(place, place[:, 0]))\n"
    )
    walk = scenarios.get(f"{file}:walk")
    assert not walk.needs_data and len(walk(seed=1)) == 8
