"""Every example runs as a script and prints what it promises."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PRINTS = {
    "adapt_at_test_time": "mean over the domains, contrast 3",
    "avalanche_benchmark": "near_future_accuracy   0.",
    "avalanche_learner": "Replay  average accuracy 0.",
    "avalanche_strategy": "replay with parts: accuracy on all experiences 0.",
    "torch_datasets": "1200 {'MulticlassAccuracy': 0.",
    "adapt_on_a_device": "'predictions': 359",
    "own_scenario": "near_future_accuracy",
    "learner_in_river": "Accuracy: ",
    "drift_response": "afresh at an alarm   0.8",
    "trackers": "(500, 0.8",
    "kafka_topic": "read 301 skipped 1",
    "river_model": "river_f1 0.8",
    "late_labels": "skipped 1",
    "live_command": "skipped 1 of 301 records",
    "live_stream": "3000 {'online_accuracy'",
    "many_seeds": "lr 0.1   seed 2: 0.",
    "keep_plasticity": "effective_rank",
    "diagnose": "Losing plasticity, because",
    "parts_alone": "online accuracy 0.",
    "own_learner": "the perceptron obeys the laws",
    "plain_loop": "in the memory:",
    "value_learning": "updates per batch: 0.5 -> 2 at sample",
    "stop_and_resume": "weights equal: True\nseries equal: True",
}


def test_every_example_is_listed():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTS)


@pytest.mark.parametrize("name", PRINTS)
def test_the_example_runs(name, tmp_path):
    done = subprocess.run([sys.executable, EXAMPLES / f"{name}.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert PRINTS[name] in done.stdout


def test_the_examples_for_a_device_run(tmp_path):
    shutil.copytree(EXAMPLES / "edge", tmp_path / "edge")
    done = subprocess.run([sys.executable, tmp_path / "edge" / "fleet.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {line[:12].strip(): [float(v) for v in line[12:].split()] for line in done.stdout.splitlines()[1:]}
    for merged in ("statistics", "last layer"):
        assert all(after > before for after, before in zip(rows[merged], rows["shipped"]))
