"""The code in README and guide runs as it stands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("README.md", ["near_future_accuracy", "{'online_accuracy'"]),
        ("docs/ecosystem.md", ["live, from a loader: 0."]),
        (
            "docs/guide.md",
            ["'idle', 'running', 'jammed'", "blind_accuracy", "large steps, guarded", "1200 ", "of 100 right, 0 late"],
        ),
    ],
)
def test_the_python_blocks_run_in_order_and_print_results(tmp_path, page, printed):
    (tmp_path / "page.py").write_text("\n".join(blocks("python", page)))
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in printed:
        assert words in done.stdout


def test_the_first_python_example_has_about_twenty_lines():
    assert len([line for line in blocks("python")[0].splitlines() if line.strip()]) <= 20


@pytest.mark.slow
def test_the_commands_run_in_order(tmp_path):
    commands = [line for line in "".join(blocks("sh")).splitlines() if line.startswith("driftline ")]
    assert len(commands) >= 5
    environment = {**os.environ, "DRIFTLINE_DATA": str(tmp_path)}
    for command in commands:
        words = [sys.executable, "-m", "driftline", *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (tmp_path / "runs" / "report.html").stat().st_size > 100_000
