import pytest
import torch

import driftline
from driftline.errors import ScenarioError
from driftline.scenarios import domain_incremental
from driftline.scenarios.transforms import Invert, Permute, Rotate
from driftline.stream import Dataset
from tests.scenarios.toy import class_sets, rows, toy


def function(segment):
    transforms = segment.recipes[0].transforms
    return transforms[0].function if transforms else None


def test_rotations_spread_evenly_over_half_a_turn():
    stream = domain_incremental(toy(), tasks=4)
    assert [function(s) for s in stream.segments] == [Rotate(0), Rotate(45), Rotate(90), Rotate(135)]


def test_each_domain_plays_all_samples_and_all_classes():
    stream = domain_incremental(toy(), angles=[0, 10, 350])
    assert [sorted(s.rows.tolist()) for s in stream.segments] == [list(range(60))] * 3
    assert class_sets(stream) == [set(range(5))] * 3


def test_samples_limits_each_domain_to_a_different_subset():
    stream = domain_incremental(toy(), tasks=3, samples=20)
    subsets = [frozenset(s.rows.tolist()) for s in stream.segments]
    assert [len(s) for s in subsets] == [20, 20, 20]
    assert len(set(subsets)) == 3


def test_permutations_begin_with_the_inputs_as_they_are_and_differ():
    stream = domain_incremental(toy(), domains="permutation", tasks=4)
    shown = [function(s) for s in stream.segments]
    assert shown[0] is None
    assert all(isinstance(p, Permute) for p in shown[1:])
    assert len(set(shown[1:])) == 3


def test_inversion_shows_the_negative():
    stream = domain_incremental(toy(), domains="inversion", shuffle=False)
    plain, negative = stream.read(0, 60)[0], stream.read(60, 120)[0]
    assert torch.equal(negative, 1 - plain)
    assert rows(stream) == [*range(60), *range(60)]


def test_functions_are_domains_and_none_is_as_is():
    stream = domain_incremental(toy(), domains=[None, torch.neg, Invert()])
    assert [s.name for s in stream.segments] == ["domain 0 (as is)", "domain 1 (neg)", "domain 2 (Invert)"]
    assert [function(s) for s in stream.segments] == [None, torch.neg, Invert()]


def test_held_out_samples_are_shown_under_the_same_domain():
    stream = domain_incremental(driftline.load("digits"), angles=[0, 90])
    upright, turned = stream.held_out()
    show = [driftline.Stream([s]).read(0, len(s))[0] for s in (upright, turned)]
    assert torch.equal(Rotate(90)(show[0]), show[1])


def flat():
    return Dataset(torch.rand(10, 3), torch.arange(10) % 2, name="flat")


def standardised():
    return Dataset(torch.randn(10, 1, 3, 3), torch.arange(10) % 2, name="standard")


@pytest.mark.parametrize(
    ("data", "given", "message"),
    [
        (flat, {}, r"needs images of shape \(C, H, W\).*flat has samples of shape \(3,\)"),
        (flat, {"domains": "inversion"}, r"needs images"),
        (standardised, {"domains": "inversion"}, r"needs values in \[0, 1\]; those of standard go from -"),
        (toy, {"domains": "rotations"}, r"must be one of 'rotation', 'permutation', 'inversion'"),
        (toy, {"domains": "inversion", "tasks": 3}, r"tasks=3: must be a whole number from 1 to 2"),
        (toy, {"domains": "permutation", "tasks": 0}, r"tasks=0"),
        (toy, {"domains": "permutation", "angles": [0]}, r"only for domains='rotation'"),
        (toy, {"domains": []}, r"give at least one"),
        (toy, {"domains": [3]}, r"3 is not a function"),
        (toy, {"angles": [0, 90], "tasks": 3}, r"tasks=3, but 2 angles are given"),
        (toy, {"angles": [0, float("nan")]}, r"nan is not a finite number of degrees"),
        (toy, {"samples": 61}, r"samples=61: must be a whole number from 1 to 60 \(toy has 60 samples\)"),
        (toy, {"samples": 0}, r"samples=0"),
    ],
)
def test_impossible_parameters_are_named_with_their_range(data, given, message):
    with pytest.raises(ScenarioError, match=message):
        domain_incremental(data(), **given)
