"""Plans: runs described by names, rebuilt from their record."""

from __future__ import annotations

import json

import pytest

from driftline.errors import ConfigError, DataError, RecordError
from driftline.plan import Plan


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
        ({"learner": "er", "learner_parameters": {"ratio": True}}, "ratio=True should be a int"),
        ({"model": "resnet18", "learner": "ncm"}, "trains no model"),
        ({"metrics": ("accuracy",)}, "unknown metric"),
        ({"samples": 0}, "empty"),
    ],
)
def test_a_bad_setting_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        Plan("iid", "digits", **settings).run(progress=False)
