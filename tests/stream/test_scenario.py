from __future__ import annotations

import json
import pickle
import sys

import numpy as np
import pytest
import torch

from driftline.errors import ConfigError, ScenarioError
from driftline.stream import Scenario, Segment, Stream, concatenate, interleave, scenario
from driftline.stream.scenario import plain
from tests.stream.players import add_draw, numbered


@scenario
def factory_floor(data, rng, late=2, machines=("a", "b")):
    """Machines are commissioned, then all run."""
    yield data.classes(0, 1).shuffle(rng).named("commissioning")
    yield data.classes(2).transform(add_draw, random=True).delay_labels(late)
    yield interleave(data.classes(0).shuffle(rng).take(5), data.classes(1).relabel([0, 2, 1]), rng=rng)
    yield concatenate(data.take(3), data.take(3, start=3).label_fraction(0.5)).repeat(2).named("again")
    yield data.everything().shuffle(rng).without_labels()


@scenario
def forgot_to_yield(data, rng):
    data.shuffle(rng)


@scenario
def yields_a_dataset(data, rng):
    yield data.dataset


@scenario
def endless(data, rng):
    while True:
        yield data.take(1)


@scenario
def empty(data, rng):
    yield data.take(0)


def test_a_scenario_makes_a_stream_of_its_segments_in_order():
    stream = factory_floor(numbered(30), seed=5, late=7)
    assert isinstance(stream, Stream)
    assert [s.name for s in stream.segments] == ["commissioning", "segment 1", "segment 2", "again", "segment 4"]
    assert [len(s) for s in stream.segments] == [20, 10, 15, 12, 30]
    assert stream.seed == 5
    assert stream.segments[1].recipes[0].delay == 7


def test_the_seed_decides_everything():
    data = numbered(30)
    one, same, other = (factory_floor(data, seed).read(0, 87) for seed in (1, 1, 2))
    assert torch.equal(one[0], same[0]) and torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])


def test_the_global_generator_is_neither_used_nor_changed():
    data = numbered(30)
    torch.default_generator.manual_seed(1)
    state = torch.get_rng_state()
    first = factory_floor(data).read(0, 87)[0]
    assert torch.equal(torch.get_rng_state(), state)
    torch.default_generator.manual_seed(2)
    assert torch.equal(factory_floor(data).read(0, 87)[0], first)


def test_parameters_are_recorded_defaults_included():
    described = factory_floor(numbered(30), late=9).describe()
    assert described["scenario"] == "factory_floor"
    assert described["parameters"] == {"late": 9, "machines": ["a", "b"]}


def test_a_scenario_says_what_it_is():
    assert repr(factory_floor) == "<scenario factory_floor(late, machines)>"
    assert factory_floor.__doc__ == "Machines are commissioned, then all run."


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda data: factory_floor(data, lat=3), r"factory_floor: .*lat.*; its parameters are: late, machines"),
        (lambda data: factory_floor(data, 0, 1, 2, 3), "too many positional arguments; its parameters are: late"),
        (lambda data: forgot_to_yield(data, tasks=3), "its parameters are: none"),
        (lambda data: factory_floor(data.x), "data must be a driftline Dataset, got Tensor"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call(numbered(30))


@pytest.mark.parametrize(
    "bad, message",
    [
        (forgot_to_yield, "forgot_to_yield: gave NoneType instead of segments; use yield"),
        (yields_a_dataset, "yields_a_dataset: yielded Dataset instead of a segment of data"),
        (empty, "empty: the stream has no samples"),
    ],
)
def test_a_script_that_is_no_scenario_is_refused(bad, message):
    with pytest.raises(ScenarioError, match=message):
        bad(numbered(30))


def test_an_endless_scenario_is_refused(monkeypatch):
    monkeypatch.setattr(sys.modules[Scenario.__module__], "MAX_SEGMENTS", 50)
    with pytest.raises(ScenarioError, match="endless: more than 50 segments"):
        endless(numbered(30))


def test_scenarios_and_their_streams_pickle():
    assert pickle.loads(pickle.dumps(factory_floor)) is factory_floor
    stream = factory_floor(numbered(30), seed=2)
    copy = pickle.loads(pickle.dumps(stream))
    assert torch.equal(copy.read(0, 87)[0], stream.read(0, 87)[0])


class Custom:
    pass


@pytest.mark.parametrize(
    "value, recorded",
    [
        (torch.tensor([1, 2]), [1, 2]),
        (np.float32(0.5), 0.5),
        (np.arange(2), [0, 1]),
        ((1, torch.tensor(2.0), None), [1, 2.0, None]),
        ({1: (2,)}, {"1": [2]}),
        (float("inf"), "inf"),
        (torch.tensor([float("inf"), 1.0]), ["inf", 1.0]),
        (add_draw, "add_draw"),
        (Custom(), "Custom"),
        (Segment, "Segment"),
    ],
)
def test_any_parameter_becomes_a_json_value(value, recorded):
    assert plain(value) == recorded
    json.dumps(plain(value), allow_nan=False)
