"""What holds for every scenario."""

import pickle
from dataclasses import replace

import pytest
import torch

from driftline import scenarios
from driftline.errors import ScenarioError
from driftline.scenarios import corruptions
from driftline.scenarios.transforms import Invert, Rotate
from driftline.stream import Dataset
from driftline.stream.recipe import Transform
from tests.scenarios.toy import rows, toy

NOISE = Transform(corruptions.get("gaussian_noise", 2.5), random=True)

CASES = {
    "iid": {},
    "class_incremental": {"tasks": 3},
    "domain_incremental": {"tasks": 3, "samples": 40},
    "domain_incremental permutation": {"domains": "permutation", "tasks": 3},
    "domain_incremental random": {"domains": [None, NOISE, Invert(), Rotate(30)]},
    "si_blurry": {},
    "si_blurry fixed": {"stochastic": False, "blur_selection": "first"},
    "i_blurry": {},
    "gradual": {"tasks": 2},
    "gradual random": {"by": "domains", "domains": [NOISE, Rotate(20)], "shape": "sigmoid", "width": 1},
    "recurring": {"tasks": 2},
    "recurring fresh": {"by": "domains", "tasks": 2, "fresh": True},
    "imbalanced": {},
    "imbalanced long_tailed": {"kind": "long_tailed", "imbalance": 5},
    "permuted_inputs": {"tasks": 3, "samples": 70},
    "permuted_labels": {"tasks": 3},
    "permuted_inputs passes": {"tasks": 4, "samples": 70, "draw": "passes", "compound": True},
    "random_labels": {"tasks": 2, "samples": 30, "epochs": 3},
    "slowly_changing_regression": {"samples": 900, "period": 250},
    "policy_evaluation": {"samples": 200, "longest": 20, "gamma": 0.8},
    "drifting_regression": {"samples": 300, "shift": [0.0, 0.5]},
    "continual_tta": {"order": ["fog", "glass_blur"]},
    "continual_tta rotta": {"order": ["fog", "shot_noise"], "correlation": "rotta"},
    "mixed_tta": {"order": ["snow", "elastic_transform"], "severity": 2.5},
    "gradual_tta": {"order": ["contrast", "spatter"], "samples": 20},
    "recurring_tta": {"order": ["motion_blur"], "visits": 2},
    "corruption_walk": {"speed": 11, "steps": 14},
    "dataset_shift": {"parts": ["train", "test_hsf_4"]},
    "by_writer": {"order": [4, 0]},
}


def build(case: str, seed: int = 0):
    script = scenarios.get(case.split()[0])
    parts = {"test_hsf_0": toy(samples=80, seed=1), "test_hsf_4": toy(samples=70, seed=2)}
    data = (replace(toy(samples=150), splits=parts),) if script.needs_data else ()
    return script(*data, seed=seed, **CASES[case])


def content(stream):
    x, y = stream.read(0, len(stream))
    return x, y


def test_every_scenario_is_under_these_laws():
    assert {case.split()[0] for case in CASES} == set(scenarios.names())


@pytest.mark.parametrize("case", CASES)
def test_same_seed_gives_the_same_stream_and_another_seed_another(case):
    first, again, other = build(case, 3), build(case, 3), build(case, 4)
    assert all(torch.equal(a, b) for a, b in zip(content(first), content(again)))
    # Those that play an environment differ in their data, not in its order.
    assert rows(first) != rows(other) or not torch.equal(content(first)[0], content(other)[0])


@pytest.mark.parametrize("case", CASES)
def test_a_sample_is_the_same_whatever_the_batch_size_and_wherever_reading_begins(case):
    stream = build(case)
    x, y = content(stream)
    for batch_size, start in [(1, 0), (7, 0), (64, 0), (100, 37), (10, len(stream) - 5)]:
        batches = list(stream.batches(batch_size, start))
        assert torch.equal(torch.cat([b.x for b in batches]), x[start:])
        assert torch.equal(torch.cat([b.y for b in batches]), y[start:])
    for a, b in [(0, 5), (3, 99), (70, len(stream)), (len(stream) // 2, len(stream) // 2 + 1)]:
        part = stream[a:b]
        assert torch.equal(torch.cat([batch.x for batch in part.batches(9)]), x[a:b])


@pytest.mark.parametrize("case", CASES)
def test_a_stream_pickles(case):
    stream = build(case)
    copy = pickle.loads(pickle.dumps(stream))
    assert all(torch.equal(a, b) for a, b in zip(content(stream), content(copy)))


@pytest.mark.parametrize("name", scenarios.names())
def test_a_scenario_pickles_by_name(name):
    assert pickle.loads(pickle.dumps(scenarios.get(name))) is scenarios.get(name)


@pytest.mark.parametrize("case", CASES)
def test_building_a_stream_leaves_global_random_state_alone(case):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    content(build(case))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "case",
    ["iid", "class_incremental", "si_blurry", "i_blurry", "gradual", "imbalanced"],
)
def test_every_sample_is_played_once(case):
    assert sorted(rows(build(case))) == list(range(150))


@pytest.mark.parametrize("name", ["class_incremental", "si_blurry", "i_blurry", "permuted_labels", "random_labels"])
def test_scenarios_of_classes_refuse_regression_targets_and_a_single_class(name):
    regression = Dataset(torch.rand(20, 3), torch.rand(20, 1), name="weights")
    with pytest.raises(ScenarioError, match="weights has regression targets"):
        scenarios.get(name)(regression)
    lonely = Dataset(torch.rand(20, 3), torch.ones(20, dtype=torch.long), classes=["a", "b"], name="lonely")
    with pytest.raises(ScenarioError, match="lonely: only class 1 occurs in its 20 samples"):
        scenarios.get(name)(lonely)
    blank = Dataset(torch.rand(20, 3), name="blank")
    with pytest.raises(ScenarioError, match="blank has no labels"):
        scenarios.get(name)(blank)


OF_CLASSES_BY_DEFAULT = {"gradual": {"by": "domains"}, "recurring": {"by": "domains"}}


@pytest.mark.parametrize("name", ["iid", "permuted_inputs", "domain_incremental", *OF_CLASSES_BY_DEFAULT])
@pytest.mark.parametrize("target", [(), (1,), (3,)])
def test_scenarios_of_inputs_play_regression_targets_with_their_samples(name, target):
    data = Dataset(torch.rand(20, 1, 4, 4), torch.rand(20, *target))
    stream = scenarios.get(name)(data, **OF_CLASSES_BY_DEFAULT.get(name, {}))
    _, y = content(stream)
    assert y.shape == (len(stream), *target) and y.dtype == torch.float32
    assert torch.equal(y, data.y[torch.tensor(rows(stream))])


@pytest.mark.parametrize("name", ["class_incremental", "imbalanced", "gradual", "recurring"])
def test_scenarios_that_need_classes_say_so_of_regression_targets(name):
    with pytest.raises(ScenarioError, match="weights has regression targets; this scenario needs classes"):
        scenarios.get(name)(Dataset(torch.rand(20, 1, 4, 4), torch.rand(20), name="weights"))
