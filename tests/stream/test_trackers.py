import time

import pytest
from typer.testing import CliRunner

import driftline
from driftline.cli import app
from driftline.errors import ConfigError
from driftline.learners import StreamingLDA
from driftline.metrics import OnlineAccuracy
from driftline.stream.trackers import MLflowTracker, TensorBoardTracker, WandbTracker, tracker


def play(tracker, **options):
    stream = driftline.scenarios.iid(driftline.load("digits"))[:200]
    metrics = [OnlineAccuracy(window=None)]
    return driftline.run(stream, StreamingLDA(), metrics=metrics, record_every=50, trackers=[tracker], **options)


class Kept:
    def __init__(self):
        self.points, self.statuses = [], []

    def start(self, record):
        self.statuses.append(record["status"])

    def log(self, values, position):
        self.points += [(position, name, value) for name, value in values.items()]

    def finish(self, record):
        self.statuses.append(record["status"])


def test_a_tracker_gets_every_recorded_value_and_the_end():
    kept = Kept()
    assert play(kept).series == kept.points and kept.statuses == ["running", "finished"]


def test_a_resumed_run_goes_on_tracking(tmp_path):
    kept = Kept()
    play(kept, out=tmp_path, until=lambda step: step.position >= 100)
    report = play(kept, out=tmp_path, resume=True)
    assert kept.statuses == ["running", "stopped", "running", "finished"]
    assert set(report.series) <= set(kept.points)


def test_a_run_that_fails_is_told_so():
    class Broken(StreamingLDA):
        def learn(self, x, y):
            raise RuntimeError("broken")

        observe = learn

    kept = Kept()
    with pytest.raises(RuntimeError, match="broken"):
        driftline.run(driftline.scenarios.iid(driftline.load("digits")), Broken(), trackers=[kept])
    assert kept.statuses == ["running", "failed"]


def test_tensorboard_has_the_values(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard (the extra of that name) is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = play(TensorBoardTracker(tmp_path))
    events = EventAccumulator(str(tmp_path)).Reload()
    found = [(e.step, "online_accuracy", e.value) for e in events.Scalars("online_accuracy")]
    assert [p[:2] for p in found] == [p[:2] for p in report.series]
    assert [p[2] for p in found] == pytest.approx([p[2] for p in report.series])


@pytest.mark.slow
def test_mlflow_has_the_values(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow-skinny (the 'mlflow' extra) is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    store = (tmp_path / "store").as_uri()
    tracker = MLflowTracker(store)
    report = play(tracker)
    client = MlflowClient(store)
    history = client.get_metric_history(tracker.run_id, "online_accuracy")
    assert sorted((m.step, m.key, m.value) for m in history) == report.series
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.data.params["learner.name"] == "StreamingLDA"


@pytest.mark.slow
def test_wandb_writes_an_offline_run(tmp_path):
    pytest.importorskip("wandb", reason="wandb (the extra of that name) is not installed")
    play(WandbTracker(mode="offline", dir=str(tmp_path)))
    (file,) = tmp_path.rglob("*.wandb")
    # A process of its own writes it, which on a busy machine is behind.
    for _ in range(300):
        if b"online_accuracy" in file.read_bytes():
            break
        time.sleep(0.1)
    assert b"online_accuracy" in file.read_bytes()


def test_the_command_line_names_them_and_a_resumed_run_goes_on_in_the_same_place(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard (the extra of that name) is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def command(*arguments):
        words = map(str, (*arguments, "--track", f"tensorboard:{tmp_path}/logs", "--no-progress"))
        done = CliRunner().invoke(app, [*words])
        assert done.exit_code == 0, done.exception

    (tmp_path / "rows.csv").write_text("a,b,y\n" + "".join(f"{i % 2},{i % 3},{i % 2}\n" for i in range(200)))
    source = (f"csv:{tmp_path}/rows.csv", "--set", "label=y", "--set", "classes=2", "--learner", "slda")
    command("run", *source, "--out", tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    series = (tmp_path / "run" / "series.csv").read_text().splitlines()[1:]
    assert len(events.Scalars("online_accuracy")) == sum(",online_accuracy," in line for line in series) > 0
    command("resume", tmp_path / "run")
    assert len(list((tmp_path / "logs").iterdir())) == 2


def test_an_unknown_tracker_is_named():
    with pytest.raises(ConfigError, match="unknown tracker 'comet'"):
        tracker("comet:here")
