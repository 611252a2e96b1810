"""What an owner sees of a device: the command line, the status, the metrics endpoint."""

from __future__ import annotations

import json
import os
import urllib.request

import pytest
import torch
from typer.testing import CliRunner

from driftline.cli import app
from driftline.commands.reading import size, values
from driftline.errors import CheckpointError, ConfigError
from driftline.stream.edge.events import read_events
from driftline.stream.edge.feeds import feed
from driftline.stream.edge.metrics_endpoint import serve_metrics
from driftline.stream.edge.status import show, status
from tests.stream.edge.parts import make, samples

MODEL = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

def sensor():
    return iter(torch.randn(30, 4))
"""


def test_adapt_answers_lines_and_goes_on_in_the_same_folder_and_status_and_rollback_know_it(tmp_path):
    def command(*arguments, lines=""):
        done = CliRunner().invoke(app, [*map(str, arguments)], input=lines)
        assert done.exit_code == 0, done.output
        return done

    (tmp_path / "own.py").write_text(MODEL)
    folder = tmp_path / "state"
    settings = ("adapt", "--model", f"{tmp_path}/own.py:model", "--source", "-", "--state", folder, "--no-guard")
    lines = [*([[1.0, 2.0, 3.0, 4.0]] * 9), {"x": [0, 0, 0, 1.5], "id": "last"}, {"id": "last", "y": 1}]
    done = command(*settings, lines="\n".join(map(json.dumps, lines)) + "\nbroken\n")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["id"] for answer in answers] == [*range(9), "last", 11]
    assert answers[0]["served"] == "adapted"
    assert "error" in answers[-1]
    assert json.loads(done.stderr.splitlines()[-1])["adaptations"] == 1
    again = command(*settings, "--quiet", lines="[0.0, 0, 0, 0.5]\n")
    assert again.stdout == ""
    assert json.loads(again.stderr.splitlines()[-1])["predictions"] == 12
    assert "resumed" in command("status", folder).stdout
    assert json.loads(command("status", folder, "--json").stdout)["running"] is None
    assert "is rejected" in command("rollback", folder).stdout
    assert "has the model of generation 1" in command("rollback", folder, "--generation", 1).stdout


def test_adapt_tells_of_the_alarms_of_a_detector_of_river(tmp_path):
    (tmp_path / "own.py").write_text(MODEL)
    settings = (
        "adapt",
        "--model",
        f"{tmp_path}/own.py:model",
        "--source",
        "-",
        "--state",
        tmp_path / "state",
        "--quiet",
    )
    steady, sure = [0.1, 0.2, -0.1, 0.3], [40.0, -30.0, 20.0, 50.0]
    lines = "".join(f"{json.dumps(x)}\n" for x in [steady] * 60 + [sure] * 60)

    def command(*more, input=lines):
        return CliRunner().invoke(app, [*map(str, (*settings, "--quiet", "--preset", "fixed", *more))], input=input)

    done = command("--detector", "ADWIN", "--detector-set", "clock=1")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stderr.splitlines()[-1])["drift_alarms"] >= 1
    assert "drift" in [event["event"] for event in read_events(tmp_path / "state" / "events.jsonl")]
    assert "did you mean 'ADWIN'" in str(command("--detector", "ADWON", input="").exception)
    assert "unknown parameter of ADWIN 'clok'" in str(
        command("--detector", "ADWIN", "--detector-set", "clok=1", input="").exception
    )


def test_export_writes_what_a_loop_serves_and_adapt_answers_in_int8(tmp_path):
    (tmp_path / "own.py").write_text(MODEL)
    folder, model = tmp_path / "state", ("--model", f"{tmp_path}/own.py:model")

    def command(*arguments):
        done = CliRunner().invoke(app, [*map(str, arguments)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    answers = command(
        *("adapt", *model, "--source", f"{tmp_path}/own.py:sensor", "--state", folder, "--quantize", "int8"),
        *("--latency", "60"),
    )
    assert len(answers.splitlines()) == 30
    said = command("export", tmp_path / "adapted.pt2", *model, "--state", folder)
    assert "the model as adapted" in said
    assert "batches of any size" in said
    said = command("export", tmp_path / "shipped.pt2", *model, "--shape", "4")
    assert "the shipped model" in said
    command("export", tmp_path / "first.pt2", *model, "--state", folder, "--generation", 1, "--shape", "4")
    x = torch.randn(5, 4)
    adapted, shipped, first = (
        torch.export.load(tmp_path / f"{name}.pt2").module()(x) for name in ("adapted", "shipped", "first")
    )
    assert torch.allclose(first, shipped, atol=1e-5)
    assert not torch.allclose(adapted, shipped, atol=1e-3)
    for arguments, message in (
        (("--generation", 1), "needs --state"),
        ((), "give a --source, or the --shape"),
        (("--shape", "4x4"), "give whole numbers"),
    ):
        with pytest.raises(ConfigError, match=message):
            command("export", tmp_path / "no.pt2", *model, *arguments)
    with pytest.raises(CheckpointError, match="the state is of BatchNormAdapter"):
        command("export", tmp_path / "no.pt2", *model, "--state", folder, "--preset", "last-layer", "--shape", "4")
    assert not (tmp_path / "no.pt2").exists()


def test_adapt_reads_a_live_source_by_name_and_goes_on_where_it_was_answered(tmp_path):
    def adapt(*arguments):
        settings = ("--model", f"{tmp_path}/own.py:model", "--state", tmp_path / "state", "--no-guard")
        command = ("adapt", "--source", f"csv:{tmp_path}/rows.csv", *settings, *arguments)
        return CliRunner().invoke(app, [*map(str, command)])

    (tmp_path / "own.py").write_text(MODEL)
    rows = ["a,b,c,d,kind", *(f"{i},1,2,3,{i % 3}" for i in range(5)), "5,,2,3,1"]
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    labelled = [f"--source-set={setting}" for setting in ("label=kind", "classes=3")]
    done = adapt(*labelled, "--memory", "4GB")
    assert done.exit_code == 0, done.exception
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["id"] for answer in answers] == [*range(6)]
    assert "row 6: InputError: field 'b' is ''" in answers[-1]["error"]
    assert json.loads(done.stderr.splitlines()[-1])["feedback"] == 5
    with (tmp_path / "rows.csv").open("a") as file:
        file.write("6,1,2,3,0\n7,1,2,3,x\n8,1,2,3,1\n")
    again = adapt(*labelled, "--source-set", "bad=skip")
    assert [json.loads(line)["id"] for line in again.stdout.splitlines()] == [6, 7]
    source = json.loads(again.stderr.splitlines()[-1])["source"]
    assert (source["read"], source["skipped"]) == (9, 1)
    for wrong, message in (
        (["bad=raise"], "answers every record"),
        (["lable=kind"], "unknown parameter"),
        (["label=kin"], "unknown column"),
    ):
        refused = adapt(*(f"--source-set={setting}" for setting in wrong))
        assert message in str(refused.exception)
    digits = ("adapt", "--source", "digits", "--state", str(tmp_path / "other"), "--source-set", "label=kind")
    assert "no live source" in str(CliRunner().invoke(app, [*digits, "--model", f"{tmp_path}/own.py:model"]).exception)
    assert not (tmp_path / "other").exists()


def test_the_status_tells_of_a_loop_that_runs_and_of_one_that_does_not(tmp_path):
    with make(tmp_path, samples(10), report_every=1e-9) as loop:
        next(loop)
        next(loop)
        found = status(tmp_path)
        assert found["running"] == f"process {os.getpid()}"
        assert found["health"]["predictions"] == 1 or found["health"]["predictions"] == 2
        list(loop)
    found = status(tmp_path)
    assert found["running"] is None
    assert found["health"]["predictions"] == 10
    assert 5e7 < found["health"]["resident"] < 1e11
    assert found["events"][-1]["event"] == "stopped"
    assert "running: no" in show(found)
    assert "predictions: 10" in show(found)
    with pytest.raises(CheckpointError, match="neither"):
        status(tmp_path / "elsewhere")


def test_the_endpoint_gives_the_counters_as_they_are_now(tmp_path):
    pytest.importorskip("prometheus_client")
    with make(tmp_path, samples(10)) as loop:
        port = serve_metrics(loop, 0)
        for _ in range(4):
            next(loop)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
        with pytest.raises(ConfigError, match="cannot listen"):
            serve_metrics(loop, port)
    assert "driftline_predictions_total 4.0" in text
    assert 'driftline_latency_seconds{quantile="0.99"}' in text
    assert "driftline_serving_adapted 1.0" in text
    sizes = dict(line.split() for line in text.splitlines() if line.startswith("driftline_") and "{" not in line)
    assert float(sizes["driftline_resident_bytes"]) > 5e7
    assert float(sizes["driftline_major_faults_total"]) >= 0


def test_a_function_in_a_file_is_a_source_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "own.py").write_text(MODEL)
    assert len(list(feed(f"{tmp_path}/own.py:sensor")())) == 30
    with pytest.raises(ConfigError, match="no function 'camera'"):
        feed(f"{tmp_path}/own.py:camera")


@pytest.mark.parametrize("text", ["much", "1XB", "MB"])
def test_a_size_that_is_none_is_named(text):
    with pytest.raises(ConfigError, match="is no size"):
        size(text)
    assert values(["a=1"]) == {"a": 1}
