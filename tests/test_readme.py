"""The README's code runs as it stands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_blocks_run_in_order_and_print_results(tmp_path):
    code = "\n".join(blocks("python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "near_future_accuracy" in done.stdout
    assert "{'online_accuracy'" in done.stdout


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
