"""Running a stream to its end: record, series, stopping early, resuming."""

from __future__ import annotations

import json
import math

import pytest
import torch

import driftline
from driftline.errors import CheckpointError, ConfigError
from driftline.learners import GradientLearner, NearestClassMean
from driftline.metrics import OnlineAccuracy
from driftline.stream.record import parse_series
from driftline.weights import weights_hash
from tests.stream.runner import play


def digits_stream():
    return driftline.Stream([driftline.Segment.of(driftline.load("digits"))], name="in_order")


def linear(lr=0.1):
    torch.default_generator.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=lr))


def test_the_record_says_what_was_run_and_what_came_out(tmp_path):
    learner = linear()
    before = weights_hash(learner.model)
    report = driftline.run(digits_stream(), learner, batch_size=16, seed=4, out=tmp_path / "run", progress=False)
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record == report.record
    assert record["status"] == "finished"
    assert record["position"] == record["scenario"]["samples"] == 1438
    assert record["scenario"]["scenario"] == "in_order"
    assert record["scenario"]["data"] == [{"name": "digits"}]
    assert record["protocol"]["batch_size"] == 16
    assert record["protocol"]["seed"] == 4
    assert record["learner"]["parameters"]["optimizer"]["lr"] == 0.1
    assert record["weights"] == {"start": before, "end": weights_hash(learner.model)}
    assert record["weights"]["start"] != record["weights"]["end"]
    assert record["versions"]["torch"] == torch.__version__
    assert record["results"]["online_accuracy"] == report.results["online_accuracy"]
    assert set(record["results"]) == set(record["definitions"])


def test_the_series_on_disk_is_the_series_in_memory(tmp_path):
    report = driftline.run(digits_stream(), linear(), batch_size=16, out=tmp_path / "run", progress=False)
    path = tmp_path / "run" / "series.csv"
    assert parse_series(path.read_text(), path) == report.series
    positions, values = report.curve("online_accuracy")
    assert positions[-1] == 1438
    assert len(positions) == math.ceil(1438 / 16)
    assert values[-1] == report.results["online_accuracy"]


def test_values_are_recorded_at_the_first_batch_end_at_or_past_each_multiple():
    report = driftline.run(digits_stream(), NearestClassMean(), batch_size=30, record_every=100, progress=False)
    positions, _ = report.curve("online_accuracy")
    assert positions[:4] == [120, 210, 300, 420]


def test_until_stops_early_and_a_later_call_goes_on_to_the_same_result(tmp_path):
    whole = play(tmp_path / "whole")
    stopped = play(tmp_path / "parts", until=lambda step: step.position >= 500)
    assert stopped.record["position"] < 600
    assert stopped.record["status"] == "stopped"
    resumed = play(tmp_path / "parts", resume=True)
    assert resumed.results == whole.results
    assert resumed.record == whole.record


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    play(tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.name != "timing.json"}
    play(tmp_path / "run", resume=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.name != "timing.json"} == before


def test_the_same_seed_gives_the_same_result_whatever_the_global_generator(tmp_path):
    first = play(tmp_path / "first")
    torch.default_generator.manual_seed(999)
    state = torch.get_rng_state()
    second = play(tmp_path / "second")
    assert first.record == second.record
    torch.default_generator.manual_seed(0)
    assert not torch.equal(state, torch.get_rng_state())


def test_the_global_generator_is_left_as_it_was():
    state = torch.get_rng_state()
    driftline.run(digits_stream(), NearestClassMean(), batch_size=100, progress=False)
    assert torch.equal(state, torch.get_rng_state())


def test_a_folder_with_a_run_is_not_overwritten_unasked(tmp_path):
    play(tmp_path / "run", until=lambda step: True)
    with pytest.raises(ConfigError, match="holds a run already"):
        play(tmp_path / "run")
    play(tmp_path / "run", until=lambda step: True, overwrite=True)


@pytest.mark.parametrize("setting", ["record_every", "checkpoint_every", "batch_size"])
def test_a_bad_interval_is_refused(setting):
    with pytest.raises(ConfigError, match=f"{setting}=0"):
        driftline.run(digits_stream(), NearestClassMean(), **{setting: 0})


def test_resuming_needs_a_folder():
    with pytest.raises(ConfigError, match="needs out="):
        driftline.run(digits_stream(), NearestClassMean(), resume=True)


def test_resuming_with_another_batch_size_is_refused(tmp_path):
    driftline.run(digits_stream(), NearestClassMean(), batch_size=100, out=tmp_path / "run", progress=False)
    with pytest.raises(CheckpointError, match="batch_size = 100, this one 50"):
        driftline.run(digits_stream(), NearestClassMean(), batch_size=50, out=tmp_path / "run", resume=True)


def test_a_diverging_learner_is_warned_about_and_the_record_says_it():
    with pytest.warns(RuntimeWarning, match="diverged"):
        report = driftline.run(digits_stream(), linear(lr=3e38), batch_size=10, progress=False)
    assert "NaN or Inf at position" in report.record["warnings"][0]


def test_an_endless_live_stream_is_recorded_until_told_to_stop(tmp_path):
    def endless():
        while True:
            yield torch.ones(3), 0
            yield -torch.ones(3), 1

    report = driftline.run(
        driftline.from_iterable(endless, classes=2),
        NearestClassMean(),
        batch_size=5,
        metrics=[OnlineAccuracy()],
        until=lambda step: step.position >= 2500,
        out=tmp_path / "run",
        progress=False,
    )
    assert report.record["position"] == 2500
    assert [p for p in report.curve("online_accuracy")[0]] == [1000, 2000, 2500]


def test_a_live_run_with_late_labels_resumes_to_the_undisturbed_result(tmp_path):
    data = driftline.load("digits")

    def source():
        return zip(data.x[:600], data.y[:600].tolist())

    def live(out, **options):
        stream = driftline.from_iterable(source, classes=10).delay_labels(25).label_fraction(0.7)
        return driftline.run(stream, linear(), batch_size=8, out=out, checkpoint_every=100, progress=False, **options)

    whole = live(tmp_path / "whole")
    live(tmp_path / "parts", until=lambda step: step.position >= 333)
    resumed = live(tmp_path / "parts", resume=True)
    assert resumed.record == whole.record
    assert resumed.series == whole.series
