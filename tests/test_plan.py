"""Plans: runs described by names, rebuilt from their record."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from driftline import build, models, native
from driftline.errors import ConfigError, DataError, RecordError
from driftline.learners import squared_error
from driftline.plan import Plan, outputs
from driftline.stream import Dataset, Segment, Stream
from driftline.stream.run import run


def test_a_plan_read_back_from_its_record_gives_the_same_run(tmp_path):
    plan = Plan(
        "si_blurry", "digits", "er", seed=2, learner_parameters={"capacity": 50}, scenario_parameters={"tasks": 5}
    )
    first = plan.run(tmp_path / "first", progress=False)
    again = Plan.of_run(tmp_path / "first")
    assert again == plan
    second = again.run(tmp_path / "second", progress=False)
    assert second.record == first.record
    assert second.series == first.series


def test_the_plan_in_a_record_is_plain_json(tmp_path):
    Plan("iid", "digits", "ncm", metrics=("online",)).run(tmp_path / "run", progress=False)
    saved = json.loads((tmp_path / "run" / "record.json").read_text())["plan"]
    assert saved["metrics"] == ["online"]
    assert saved["learner"] == "ncm"


def test_a_plan_of_a_later_version_is_refused_by_name(tmp_path):
    Plan("iid", "digits", "ncm").run(tmp_path / "run", progress=False)
    path = tmp_path / "run" / "record.json"
    record = json.loads(path.read_text())
    record["plan"]["telepathy"] = True
    path.write_text(json.dumps(record))
    with pytest.raises(RecordError, match="telepathy"):
        Plan.of_run(tmp_path / "run")


def test_near_future_accuracy_is_left_out_with_a_warning_where_no_shift_is_found(tmp_path):
    plan = Plan("iid", "digits", "ncm", samples=3)
    with pytest.warns(RuntimeWarning, match="near-future accuracy is left out"):
        report = plan.run(progress=False)
    assert "near_future_accuracy" not in report.results
    assert "a_last" in report.results


def test_a_shift_that_was_asked_for_and_cannot_be_is_an_error():
    with pytest.raises(DataError, match="not more than the shift"):
        Plan("iid", "digits", "ncm", shift=10_000).run(progress=False)


def test_data_without_a_test_split_is_played_without_held_out_evaluation():
    report = Plan("iid", "phishing", "ncm", standardize=True, batch_size=1).run(progress=False)
    assert "a_last" not in report.results
    assert report.results["online_accuracy"] > 0.7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learner": "sgd", "learner_parameters": {"lr": "fast"}}, "lr='fast' should be a float"),
        ({"learner": "er", "learner_parameters": {"capacity": 1.5}}, "capacity=1.5 should be a int"),
        ({"learner": "er", "learner_parameters": {"ratio": True}}, "ratio=True should be a float"),
        ({"model": "resnet18", "learner": "ncm"}, "trains no model"),
        ({"metrics": ("accuracy",)}, "unknown metric"),
        ({"samples": 0}, "empty"),
    ],
)
def test_a_bad_setting_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        Plan("iid", "digits", **settings).run(progress=False)


# --- numbers to predict


def sine(tmp_path, targets=1, samples=400):
    """A file with a smooth function of two inputs, train and test."""
    x = np.random.default_rng(0).uniform(-1, 1, (samples, 2))
    y = np.stack([np.sin(2 * x[:, 0] + i) + x[:, 1] for i in range(targets)], 1)
    y = y[:, 0] if targets == 1 else y
    half = samples // 2
    np.savez(tmp_path / "sine.npz", x_train=x[:half], y_train=y[:half], x_test=x[half:], y_test=y[half:])
    return str(tmp_path / "sine.npz")


@pytest.mark.parametrize("targets", [1, 3])
def test_numbers_to_predict_get_squared_error_their_metric_and_as_many_outputs(tmp_path, targets):
    plan = Plan("iid", sine(tmp_path, targets), "sgd", batch_size=1)
    stream = plan.stream()
    learner = plan.player(stream)
    assert learner.loss is squared_error
    assert learner.model.head.out_features == outputs(stream) == targets
    report = plan.run(progress=False)
    assert set(report.results) == {
        *("online_squared_error", "online_absolute_error"),
        *("online_squared_error_window", "online_absolute_error_window"),
    }
    # The variance is about 0.8; the last 50 of 200 samples are predicted much better than by the mean.
    assert report.results["online_squared_error_window"] < 0.3


def test_classes_get_cross_entropy_and_an_output_each():
    plan = Plan("iid", "digits", "sgd")
    learner = plan.player(plan.stream())
    assert learner.loss is F.cross_entropy and learner.model.head.out_features == 10


def test_online_is_the_metric_that_fits_the_stream(tmp_path):
    numbers = Plan("iid", sine(tmp_path), metrics=("online",)).run(progress=False)
    classes = Plan("iid", "digits", "ncm", metrics=("online",)).run(progress=False)
    assert "online_squared_error" in numbers.results and "online_accuracy" in classes.results


@pytest.mark.parametrize("scenario", ["permuted_inputs", "recurring", "gradual"])
def test_scenarios_of_inputs_play_numbers(tmp_path, scenario):
    parameters = {} if scenario == "permuted_inputs" else {"by": "domains", "domains": "permutation"}
    report = Plan(scenario, sine(tmp_path), scenario_parameters={"tasks": 2, **parameters}).run(progress=False)
    assert report.results["online_squared_error"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learner": "slda"}, "learner slda predicts classes, and this stream has none"),
        ({"learner": "ncm"}, "learner ncm predicts classes"),
        ({"learner": "er", "learner_parameters": {"memory": "class-balanced"}}, "class-balanced' needs classes"),
        ({"scenario": "class_incremental"}, "sine has regression targets; this scenario needs classes"),
        ({"shift": 5}, "shift=5: near-future accuracy needs classes, and iid has none"),
        ({"metrics": ("near-future",)}, "needs a stream with classes, and 'iid' has none"),
        ({"metrics": ("held-out",)}, "needs a stream with classes, and 'iid' has none"),
        ({"metrics": ("blind",)}, "needs a stream with classes, and 'iid' has none"),
    ],
)
def test_what_needs_classes_says_so_of_numbers(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        Plan(**{"scenario": "iid", "data": sine(tmp_path), **settings}).run(progress=False)


def test_the_error_of_numbers_is_refused_for_classes():
    with pytest.raises(DataError, match="OnlineError needs numbers to predict, and 'iid' has classes"):
        Plan("iid", "digits", metrics=("online-error",)).run(progress=False)


def test_data_with_nothing_to_predict_and_targets_in_a_grid_are_named(tmp_path):
    np.savez(tmp_path / "bare.npz", x=np.zeros((5, 2)))
    with pytest.raises(ConfigError, match="iid: its data has neither classes nor numbers to predict"):
        Plan("iid", str(tmp_path / "bare.npz")).run(progress=False)
    grid = Stream([Segment.of(Dataset(torch.rand(4, 2), torch.rand(4, 2, 2)))], name="maps")
    with pytest.raises(ConfigError, match=r"maps: targets of shape \(2, 2\); flatten them"):
        outputs(grid)


# --- scenarios that make their own data


def test_a_scenario_that_makes_its_own_data_is_planned_without_and_repeated(tmp_path):
    plan = Plan(
        "slowly_changing_regression",
        learner="cbp",
        batch_size=1,
        seed=3,
        scenario_parameters={"samples": 600, "period": 200},
        model_parameters={"hidden": [5]},
    )
    first = plan.run(tmp_path / "first", progress=False)
    again = Plan.of_run(tmp_path / "first")
    assert again == plan
    assert again.run(progress=False).series == first.series
    assert first.record["scenario"]["data"] == [{"name": "20 bits"}]


@pytest.mark.parametrize(
    "settings", [{"data": "digits"}, {"standardize": True}, {"input_range": (-1, 1)}, {"data_parameters": {"a": 1}}]
)
def test_data_for_a_scenario_that_makes_its_own_is_refused(settings):
    with pytest.raises(ConfigError, match="slowly_changing_regression makes its own data; leave out data and its"):
        Plan("slowly_changing_regression", **settings).stream()


# --- ranges, seeds and grids


def test_inputs_can_be_moved_to_a_range(tmp_path):
    plan = Plan("iid", "digits", "ncm", metrics=("online",), input_range=(-1, 1))
    x, _ = plan.stream().read(0, 1438)
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    record = plan.run(tmp_path / "run", progress=False).record
    assert record["scenario"]["data"] == [{"name": "digits", "input_range": [-1, 1]}]
    assert Plan.of_run(tmp_path / "run") == plan


STUDY = {
    "scenario": "slowly_changing_regression",
    "batch_size": 1,
    "scenario_parameters": {"samples": 300, "period": 100},
    "model_parameters": {"hidden": [5]},
}


def test_a_plan_for_many_seeds_gives_what_the_single_ones_give(tmp_path):
    together = Plan(**STUDY, seeds=(4, 5, 6)).run(tmp_path / "run", progress=False)
    each = together.record["replicas"]["results"]["online_squared_error"]
    for seed, error in zip((4, 5, 6), each):
        alone = Plan(**STUDY, seed=seed).run(progress=False).results["online_squared_error"]
        assert error == pytest.approx(alone, rel=1e-3)  # rounding of batched products, 300 steps
    assert len(set(each)) == 3
    assert Plan.of_run(tmp_path / "run") == Plan(**STUDY, seeds=(4, 5, 6))


def test_a_grid_varies_settings_of_the_learner_for_every_seed():
    plan = Plan(**STUDY, seeds=(0, 1), grid={"lr": [0.001, 0.1]}, learner_parameters={"momentum": 0.5})
    replicas = plan.run(progress=False).record["replicas"]
    assert replicas["seeds"] == [0, 1, 0, 1]
    assert [own["lr"] for own in replicas["settings"]] == [0.001, 0.001, 0.1, 0.1]
    assert len(set(replicas["results"]["online_squared_error"])) == 4


def test_a_resumed_study_is_that_of_one_never_stopped(tmp_path):
    plan = Plan(**STUDY, seeds=(0, 1))
    whole = plan.run(tmp_path / "whole", progress=False, checkpoint_every=100)
    plan.run(tmp_path / "again", progress=False, checkpoint_every=100)
    resumed = Plan.of_run(tmp_path / "again").run(tmp_path / "again", resume=True, progress=False, checkpoint_every=100)
    assert resumed.record == whole.record and resumed.series == whole.series


CLASSES_ONLY = ("center-loss",)
NETWORKS = {"normalize-and-project": {"normalization": "layer"}}
"""What a learner's model needs beside the usual."""
ONE_BY_ONE = ("adaptive-er",)
"""Learners whose replicas make different numbers of updates."""


@pytest.mark.parametrize("name", [n for n in build.LEARNERS if build.needs_model(n) and n not in CLASSES_ONLY])
def test_every_trained_learner_runs_for_many_seeds_as_for_one(name):
    plan = {**STUDY, "learner": name, "scenario_parameters": {"samples": 60, "period": 20}}
    plan["model_parameters"] = {**plan["model_parameters"], **NETWORKS.get(name, {})}
    with warnings.catch_warnings():
        # Such as the one that says that replicas are stepped one by one.
        warnings.simplefilter("ignore" if name in ONE_BY_ONE else "error")
        together = Plan(**plan, seeds=(0, 1)).run(progress=False).record["replicas"]["results"]
    for seed in (0, 1):
        alone = Plan(**plan, seed=seed).run(progress=False).results["online_squared_error"]
        assert together["online_squared_error"][seed] == pytest.approx(alone, rel=1e-3)  # rounding, 60 steps


def test_plasticity_is_measured_as_often_as_asked_for():
    report = Plan(**STUDY, metrics=("online", "plasticity"), evaluate_every=100).run(progress=False)
    assert 0 <= report.results["dead_units"] <= 1
    assert report.record["protocol"]["metrics"][1]["every"] == 100


@pytest.mark.parametrize("seeds", [(), (0, 1)])
def test_compiled_steps_give_the_same_up_to_rounding(seeds):
    if not native.available():
        pytest.skip(f"no compiled steps here: {native.problem()}")
    plain = Plan(**STUDY, seeds=seeds).run(progress=False).results
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = Plan(**STUDY, seeds=seeds, compile=True).run(progress=False).results
    assert compiled == pytest.approx(plain, rel=1e-3)  # rounding, 300 steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"scenario": "iid", "scenario_parameters": {}, "model_parameters": {}, "learner": "ncm", "compile": True},
            "ncm",
        ),
        ({"grid": {"rl": [0.1]}}, "did you mean 'lr'"),
        ({"grid": {"lr": 0.1}}, "grid: lr=0.1; give a list"),
        ({"seeds": (0, 1), "adapter": "source"}, "seeds and grid are for learners"),
    ],
)
def test_a_bad_study_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        Plan(**{**STUDY, **settings}).run(progress=False)


# --- adapters and what goes around them

WRAPPED = {
    "scenario": "continual_tta",
    "adapter": "tent",
    "model": "resnet18",
    "batch_size": 5,
    "metrics": ("domain-error",),
    "learner_parameters": {"lr": 0.5},
    "scenario_parameters": {"order": ["contrast", "brightness"], "samples": 60},
    "model_parameters": {"width": 4},
    "window": 10,
    "guard": True,
    "guard_parameters": {"pause": 1, "drift": 0.1},
    "disagreement": 0.5,
    "real_time": 1.5,
    "reset": "segment",
}


@pytest.mark.filterwarnings("ignore:Tent has collapsed")
def test_a_stopped_run_of_a_wrapped_adapter_is_rebuilt_from_its_record_and_resumed(tmp_path):
    plan = Plan(**WRAPPED)
    whole = plan.run(tmp_path / "whole", progress=False)
    stream = plan.stream()
    stopped = run(
        stream,
        plan.player(stream),
        batch_size=5,
        metrics=plan.measures(stream),
        reset="segment",
        out=tmp_path / "parts",
        name="tent",
        until=lambda step: step.position >= 55,
        about={"plan": json.loads((tmp_path / "whole" / "record.json").read_text())["plan"]},
    )
    assert stopped.record["position"] == 55
    again = Plan.of_run(tmp_path / "parts")
    assert again == plan
    again.run(tmp_path / "parts", resume=True, progress=False)
    for name in ("record.json", "series.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # So large a step moves the features at once.
    assert whole.results["rollbacks"] >= 1


def test_a_guarded_plan_counts_rollbacks_once_whatever_it_measures():
    stream = Plan(**WRAPPED).stream()
    for metrics in (("online",), ("rollbacks", "online"), ()):
        measured = [type(m).__name__ for m in Plan(**{**WRAPPED, "metrics": metrics}).measures(stream)]
        assert measured.count("Rollbacks") == 1
    only_one = {**WRAPPED, "guard": False, "guard_parameters": {}}
    assert "Rollbacks" in [type(m).__name__ for m in Plan(**only_one).measures(stream)]
    unguarded = Plan(**{**only_one, "disagreement": None}).measures(stream)
    assert [type(m).__name__ for m in unguarded] == ["DomainError"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter": None, "real_time": None}, "guard=True, window=10, disagreement=0.5: these go around an adapter"),
        ({"guard": False}, "guard_parameters=.*there is no guard"),
        ({"guard_parameters": {"momentum": None}}, "momentum=None should be a float"),
        ({"guard_parameters": {"inner": 1}}, "unknown parameter of guard 'inner'"),
        ({"window": 1}, "size=1"),
        ({"disagreement": 1.5}, r"level=1\.5"),
    ],
)
def test_a_bad_setting_of_what_goes_around_an_adapter_is_named(settings, message):
    plan = Plan(**{**WRAPPED, "learner_parameters": {}, **settings})
    with pytest.raises(ConfigError, match=message):
        plan.player(plan.stream())


# --- learners by name


@pytest.mark.parametrize("name", build.LEARNERS)
@pytest.mark.parametrize("classes", [3, 0])
def test_every_named_learner_learns_classes_and_numbers(name, classes):
    if not classes and (not build.needs_model(name) or name in CLASSES_ONLY):
        pytest.skip("predicts classes only")
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(300, 6, generator=rng)
    y = (3 * x[:, 0]).long() if classes else 2 * x[:, 0] - x[:, 1]
    network = NETWORKS.get(name, {})
    model = models.mlp(6, classes or 1, hidden=(32,), seed=0, **network) if build.needs_model(name) else None
    usual = {"adam": 0.01, "obgd": 1.0}
    parameters = {"lr": usual.get(name, 0.05)} if build.needs_model(name) else {}
    learner = build.learner(name, model, classes, seed=1, **parameters)
    for start in range(250):
        learner.observe(x[start : start + 1], y[start : start + 1])
    scores = learner.predict(x[250:])
    if classes:
        assert (scores.argmax(1) == y[250:]).float().mean() > 0.45
    else:
        assert F.mse_loss(scores[:, 0], y[250:]) < 0.5 * y.var()


@pytest.mark.parametrize("name", [name for name in build.LEARNERS if build.needs_model(name)])
def test_every_trained_learner_takes_a_normalizer(name):
    learner = build.learner(name, models.mlp(4, 2, hidden=(8,), **NETWORKS.get(name, {})), 2, normalize=True)
    learner.observe(torch.rand(3, 4), torch.tensor([0, 1, 0]))
    assert learner.describe()["parameters"]["normalizer"]["name"] == "InputNormalizer"


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("cbp", {"utility": "useful"}, "utility"),
        ("cbp", {"optimizer": "sgdd"}, "did you mean 'sgd'"),
        ("redo", {"tau": 1.5}, "tau=1.5"),
        ("snr", {"lowest": 0}, "lowest=0"),
        ("regrama", {"steps": 0}, "steps=0"),
        ("layer-reset", {"layers": 3}, "layers=3, but the model has 2"),
        ("weight-clipping", {"kappa": 0.0}, "kappa"),
        ("upgd", {"scaling": "all"}, "scaling"),
        ("l2-init", {"strength": -1}, "strength"),
        ("spectral", {"strength": "high"}, "should be a float"),
        ("shrink-and-perturb", {"sigma": -0.1}, "sigma"),
        ("online-ewc", {"strength": -1.0}, "strength"),
        ("si", {"form": "task"}, "unknown form 'task'"),
        ("mas", {"every": 10}, "every=10: .* for form='boundary' only"),
        ("orthogonal", {"side": "row"}, "did you mean 'rows'"),
        ("l2-er", {"samples": 1}, "samples=1"),
        ("normalize-and-project", {}, "no layer with a normalisation behind it"),
    ],
)
def test_a_bad_setting_of_a_learner_is_named(name, parameters, message):
    with pytest.raises(ConfigError, match=message):
        build.learner(name, models.mlp(4, 2, hidden=(8,)), 2, **parameters)
