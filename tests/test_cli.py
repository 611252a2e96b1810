"""The command line, in real processes: what it runs, and what it says to mistakes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

from driftline.cli import app, main
from tests.golden import data_root


def driftline(*arguments: object, cwd: Path, data: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DRIFTLINE_DATA": str(data or cwd / "nowhere"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "driftline", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)


def test_run_records_what_it_prints_and_resume_and_report_read_it(tmp_path):
    done = driftline("run", "si_blurry", "--learner", "slda", "--seed", 3, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["name"] == "slda"
    assert record["plan"]["scenario"] == "si_blurry"
    assert record["plan"]["seed"] == 3
    assert f"{record['results']['online_accuracy']:.4f}".rstrip("0") in done.stdout
    before = (tmp_path / "run" / "series.csv").read_bytes()
    resumed = driftline("resume", "run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "run" / "series.csv").read_bytes() == before
    reported = driftline("report", "run", "--html", "page.html", cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    assert "slda" in reported.stdout
    assert "share of samples predicted right" in reported.stdout
    assert "plotly" in (tmp_path / "page.html").read_text()
    assert driftline("report", "run", cwd=tmp_path).returncode == 0
    assert (tmp_path / "report.html").read_text() == (tmp_path / "page.html").read_text()


def test_a_killed_command_is_resumed_to_the_record_of_an_undisturbed_one(tmp_path):
    settings = ["class_incremental", "--learner", "er", "--batch-size", 1, "--checkpoint-every", 40]
    whole = driftline("run", *settings, "--out", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "driftline", "run", *map(str, settings), "--out", "killed"]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None:
        series = tmp_path / "killed" / "series.csv"
        if series.exists() and series.stat().st_size > 2000:
            process.kill()
    assert process.wait() == -9
    resumed = driftline("resume", "killed", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    for name in ("record.json", "series.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_on_a_terminal_a_progress_bar_is_drawn_and_elsewhere_none(tmp_path):
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "driftline", "run", "iid", "--batch-size", "1", "--learner", "sgd"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    drawn = b""
    # Reading a terminal that its last process has left raises.
    with contextlib.suppress(OSError):
        while part := os.read(ours, 4096):
            drawn += part
    os.close(ours)
    assert process.wait() == 0
    assert b"/1438" in drawn
    assert driftline("run", "iid", "--learner", "ncm", cwd=tmp_path).stderr == ""


def test_list_names_everything_with_a_line_from_its_docstring(tmp_path):
    done = driftline("list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in (
        "si_blurry",
        "slowly_changing_regression",
        "slda",
        "cbp",
        "source",
        "near-future",
        "mlp",
        "digits",
        "Streaming linear discriminant",
    ):
        assert word in done.stdout
    only = driftline("list", "learners", cwd=tmp_path)
    assert "slda" in only.stdout
    assert "si_blurry" not in only.stdout


def test_a_scenario_of_ones_own_runs_and_resumes_from_its_file(tmp_path):
    (tmp_path / "floor.py").write_text(
        "import driftline\n\n\n@driftline.scenario\ndef floor(data, rng, first=3):\n"
        "    yield data.classes(*range(first)).shuffle(rng).named('start')\n    yield data.shuffle(rng)\n"
    )
    done = driftline("run", "floor.py:floor", "--set", "first=2", "--learner", "ncm", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["scenario"]["parameters"] == {"first": 2}
    assert record["scenario"]["segments"][0]["name"] == "start"
    assert driftline("resume", "run", cwd=tmp_path).returncode == 0


def test_a_live_source_is_run_by_name_and_resumed_and_what_was_skipped_is_said(tmp_path, monkeypatch):
    lines = ["a,b,kind", *(f"{i % 2},{i % 7},{('off', 'on')[i % 2]}" for i in range(300)), "1,,on"]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    settings = ("--set", "label=kind", "--set", "classes=off,on", "--set", "bad=skip", "--batch-size", 5)
    done = driftline("run", "csv:rows.csv", *settings, "--learner", "er", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "skipped 1 of 301 records" in done.stdout
    assert "rows.csv, row 301" in done.stdout
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["results"]["online_accuracy"] > 0.8
    before = (tmp_path / "run" / "record.json").read_bytes()
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["resume", "run"]).exit_code == 0
    assert (tmp_path / "run" / "record.json").read_bytes() == before
    listed = CliRunner().invoke(app, ["list", "sources"]).stdout
    assert "kafka://HOST:PORT/TOPIC" in listed
    assert "[numbers]" in listed


def test_labels_can_be_delayed_and_left_out_and_the_stream_cut_short(tmp_path):
    done = driftline(
        *("run", "iid", "--learner", "ncm", "--delay-labels", 50, "--label-fraction", 0.5, "--samples", 300),
        *("--metrics", "online", "--out", "run"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["position"] == 300
    assert set(record["results"]) == {"online_accuracy", "online_accuracy_window"}


def test_the_unadapted_model_runs_as_an_adapter_with_released_weights(tmp_path):
    root = data_root()
    done = driftline(
        *("run", "iid", "--data", "cifar-10", "--data-set", "partial=true", "--adapter", "source"),
        *("--weights", "resnet20", "--samples", 200, "--batch-size", 50, "--metrics", "online", "--out", "run"),
        cwd=tmp_path,
        data=root,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["weights"]["start"] == record["weights"]["end"]
    assert record["results"]["online_accuracy"] > 0.95  # these weights have seen all training images


CORRUPTED = ("run", "continual_tta", "--set", 'order=["contrast","brightness"]', "--set", "samples=60")
SMALL = ("--model", "resnet18", "--model-set", "width=4", "--batch-size", 5)


def adapted(*arguments, cwd):
    """The record of a run on corrupted digits."""
    done = driftline(*CORRUPTED, *SMALL, *arguments, "--out", "run", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads((cwd / "run" / "record.json").read_text())


def settings_inside(described):
    """Names and settings of adapters around adapters, the outermost first."""
    while described:
        settings = dict(described["parameters"])
        described_inner = settings.pop("inner", None)
        yield described["name"], settings
        described = described_inner


def test_an_adapter_is_wrapped_as_asked_and_resumed_with_its_wrappers(tmp_path):
    record = adapted(
        *("--adapter", "tent", "--adapter-set", "lr=0.02", "--window", 10, "--guard", "--guard-set", "pause=0"),
        *("--guard-set", "accuracy=null", "--disagreement", 0.2, "--metrics", "domain-error,cost"),
        cwd=tmp_path,
    )
    (_, window), (_, slow), (_, guard), (_, tent) = around = [*settings_inside(record["learner"])]
    assert [name for name, _ in around] == ["SlidingWindow", "DisagreementGuard", "CollapseGuard", "Tent"]
    assert slow["level"] == record["plan"]["disagreement"] == 0.2
    assert (window["size"], guard["pause"], guard["accuracy"], tent["lr"]) == (10, 0, None, 0.02)
    assert record["plan"]["window"] == 10 and record["plan"]["guard"] is True
    assert record["plan"]["guard_parameters"] == {"pause": 0, "accuracy": None}
    # Each window of 10 takes two batches of 5, and without a pause the guard never rests.
    assert record["results"]["adapted_share"] == 0.5
    assert record["results"]["rollbacks"] >= 0
    before = [(tmp_path / "run" / name).read_bytes() for name in ("record.json", "series.csv")]
    resumed = driftline("resume", "run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert [(tmp_path / "run" / name).read_bytes() for name in ("record.json", "series.csv")] == before


def test_a_slow_adapter_misses_batches_and_returns_to_its_source_at_each_segment(tmp_path):
    record = adapted(
        *("--adapter", "tent", "--real-time", 3, "--reset", "segment", "--metrics", "cost,source-error"), cwd=tmp_path
    )
    assert [name for name, _ in settings_inside(record["learner"])] == ["RealTime", "Tent"]
    assert record["plan"]["real_time"] == 3.0 and record["protocol"]["reset"] == "segment"
    # Twelve batches in each of two segments, of which every third is adapted to.
    assert record["results"]["adapted_share"] == pytest.approx(1 / 3)


def test_an_adapter_learns_from_the_source_data_that_is_named(tmp_path):
    record = adapted(
        *("--adapter", "adanpc", "--adapter-set", "k=3", "--source", "digits", "--source-set", "split=train"),
        *("--metrics", "domain-error"),
        cwd=tmp_path,
    )
    assert record["plan"]["source"] == "digits" and record["plan"]["source_parameters"] == {"split": "train"}
    # The features of an untrained network, and 1 438 labelled digits to compare with: far better than the network.
    assert record["results"]["domain_error"] < 0.7


def test_numbers_in_a_csv_are_predicted_and_reported(tmp_path):
    lines = "".join(f"{i % 7},{i % 5},{(i % 7) / 7 - (i % 5) / 10}\n" for i in range(300))
    (tmp_path / "tides.csv").write_text(f"hour,moon,height\n{lines}")
    done = driftline(
        *("run", "iid", "--data", "tides.csv", "--data-set", "target=height", "--standardize", "--out", "run"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert f"{record['results']['online_squared_error']:.4f}".rstrip("0") in done.stdout
    assert record["results"]["online_squared_error_window"] < 0.02  # the targets' variance is about 0.06
    reported = driftline("report", "run", cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    assert "lower is better" in " ".join(reported.stdout.split())
    assert "mean of (prediction - truth)^2" in reported.stdout


def test_a_scenario_without_data_runs_for_many_seeds_and_settings_and_resumes(tmp_path):
    done = driftline(
        *("run", "slowly_changing_regression", "--set", "samples=400", "--set", "period=100", "--batch-size", 1),
        *("--model-set", "hidden=[5]", "--seeds", "0-2,7", "--grid", "lr=[0.01,0.001]", "--out", "run"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "sgd, lr=0.01" in done.stdout and "sgd, lr=0.001" in done.stdout and "0-2, 7" in done.stdout
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["plan"]["data"] is None and record["plan"]["seeds"] == [0, 1, 2, 7]
    assert record["replicas"]["seeds"] == [0, 1, 2, 7] * 2
    before = (tmp_path / "run" / "series.csv").read_bytes()
    assert b"online_squared_error@7" in before
    resumed = driftline("resume", "run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "run" / "series.csv").read_bytes() == before
    assert driftline("report", "run", cwd=tmp_path).returncode == 0


def test_inputs_are_moved_to_a_range(tmp_path):
    done = driftline("run", "iid", "--input-range", "-1,1", "--learner", "ncm", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["scenario"]["data"] == [{"name": "digits", "input_range": [-1, 1]}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "cvs://rows.csv"], "unknown source 'cvs'; did you mean 'csv'"),
        (["run", "csv:nowhere.csv", "--out", "made"], "there is no nowhere.csv"),
        (["rnu"], "did you mean 'run'"),
        (["run", "si_blury"], "did you mean 'si_blurry'"),
        (["run", "si_blurry", "--learner", "sdg"], "did you mean 'sgd'"),
        (["run", "si_blurry", "--adapter", "sorce"], "did you mean 'source'"),
        (["run", "iid", "--adapter", "rdumb", "--adapter-set", "reset_evry=9"], "did you mean 'reset_every'"),
        (["run", "iid", "--adapter", "source", "--reset", "shift"], "must be 'never' or 'segment'"),
        (["run", "iid", "--adapter", "source", "--real-time", "fast"], "a number of predictions"),
        (["run", "iid", "--adapter", "source", "--real-time=-1"], "cost=-1"),
        (["run", "iid", "--adapter", "source", "--source", "digts"], "did you mean 'digits'"),
        (["run", "iid", "--adapter", "source", "--source-set", "split=train"], "no source is named"),
        (["run", "iid", "--adapter", "source", "--window", "1"], "--window"),
        (["run", "iid", "--adapter", "source", "--guard", "--guard-set", "pose=1"], "did you mean 'pause'"),
        (["run", "iid", "--adapter", "source", "--guard", "--guard-set", "drift=far"], "should be a float"),
        (["run", "iid", "--adapter", "source", "--guard-set", "pause=1"], "there is no guard"),
        (["run", "iid", "--guard"], "around an adapter"),
        (["run", "iid", "--window", "8"], "around an adapter"),
        (["run", "si_blurry", "--data", "digit"], "did you mean 'digits'"),
        (["run", "si_blurry", "--model", "mpl"], "did you mean 'mlp'"),
        (["run", "si_blurry", "--metrics", "onlin"], "did you mean 'online'"),
        (["run", "si_blurry", "--learner-set", "rl=0.1"], "did you mean 'lr'"),
        (["run", "si_blurry", "--learner-set", "lr=fast"], "should be a float"),
        (["run", "si_blurry", "--learner-set", "lr"], "expected key=value"),
        (["run", "si_blurry", "--learner-set", "lr=-1"], "Invalid learning rate"),
        (["run", "si_blurry", "--learner", "er", "--learner-set", "capacity=0"], "at least one sample"),
        (["run", "si_blurry", "--learner", "er", "--learner-set", "memory=reservior"], "did you mean 'reservoir'"),
        (["run", "si_blurry", "--set", "task=3"], "tasks"),
        (["run", "si_blurry", "--set", "tasks=many"], "tasks"),
        (["run", "class_incremental", "--set", "tasks=99"], "99"),
        (["run", "si_blurry", "--seed", "one"], "--seed"),
        (["run", "si_blurry", "--batch-size", "0"], "--batch-size"),
        (["run", "si_blurry", "--bach-size", "2"], "--batch-size"),
        (["run", "si_blurry", "--label-fraction", "2"], "--label-fraction"),
        (["run", "si_blurry", "--shift", "100000"], "not more than the shift"),
        (["run", "si_blurry", "--device", "cdua"], "unknown device 'cdua'"),
        (["run", "si_blurry", "--data", "mnist"], "train-images-idx3-ubyte"),
        (["run", "si_blurry", "--data", "missing.npz"], "missing.npz"),
        (["run", "si_blurry", "--weights", "resnet21", "--data", "digits"], "did you mean 'resnet20'"),
        (["run", "nowhere.py:floor"], "no file nowhere.py"),
        (["run", "si_blurry", "--out", "/proc/run"], "cannot write"),
        (["run", "si_blurry", "--learner", "slda", "--model", "mlp"], "trains no model"),
        (["run", "slowly_changing_regression", "--data", "digits"], "makes its own data"),
        (["run", "slowly_changing_regression", "--learner", "slda"], "this stream has none"),
        (["run", "slowly_changing_regression", "--set", "sample=9"], "samples"),
        (["run", "iid", "--data", "trump-approval", "--shift", "5"], "needs classes"),
        (["run", "class_incremental", "--data", "trump-approval"], "this scenario needs classes"),
        (["run", "iid", "--seeds", "1-"], "'1-' is no seed"),
        (["run", "iid", "--seeds", "5-2"], "'5-2' is no seed"),
        (["run", "iid", "--grid", "lr=0.1,0.2"], "give a list"),
        (["run", "iid", "--grid", "rl=[0.1]"], "did you mean 'lr'"),
        (["run", "iid", "--input-range", "1"], "two numbers with a comma"),
        (["run", "iid", "--input-range", "1,0"], "the lower one first"),
        (["run", "iid", "--standardize", "--input-range", "0,1"], "give one of them"),
        (["run"], "Missing argument"),
        (["resume", "nothing"], "no run in nothing"),
        (["report", "nothing"], "nothing"),
        (["list", "learner"], "did you mean 'learners'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_gives_one_line_that_says_what_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, said):
    # In this process, since starting Python for each of them would take minutes.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTLINE_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(sys, "argv", ["driftline", *arguments])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(SystemExit) as exit:
        main()
    stderr = capsys.readouterr().err
    assert exit.value.code == 2
    assert said.lower() in stderr.lower()
    assert stderr.startswith("error: ")
    assert len(stderr.strip().splitlines()) == 1, stderr


def test_a_mistake_in_a_real_process_prints_no_traceback(tmp_path):
    done = driftline("run", "si_blury", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown scenario 'si_blury'; did you mean 'si_blurry'?")
    assert "Traceback" not in done.stderr


def test_a_damaged_record_or_run_from_python_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "record.json").write_text("{")
    done = driftline("resume", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "damaged" in done.stderr
    (tmp_path / "run" / "record.json").write_text('{"name": "x", "protocol": {"checkpoint_every": 5}}')
    done = driftline("resume", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "run from Python" in done.stderr
