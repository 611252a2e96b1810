"""The systemd unit and the container recipe: what they start is started here, as they say it."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from driftline.stream.edge.status import status

EDGE = Path(__file__).resolve().parents[3] / "examples" / "edge"
PROGRAM = Path(sys.executable).with_name("driftline")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("opt")
    shutil.copy(EDGE / "model.py", folder)
    subprocess.run([sys.executable, folder / "model.py"], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return folder


def unit():
    # systemd's files may say a thing twice, and keep the case of names.
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read(EDGE / "driftline.service")
    return parser["Service"]


def recipe():
    """The recipe's ENTRYPOINT with its CMD behind it."""
    lines = [line.partition(" ") for line in (EDGE / "Containerfile").read_text().splitlines()]
    said = {word: rest for word, _, rest in lines}
    return json.loads(said["ENTRYPOINT"]) + json.loads(said["CMD"])


def run_twice(command, state, port, stop):
    """Start it, ask it for its metrics, end it as systemd or podman would; the second time it goes on."""
    positions = []
    for _ in range(2):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                wait_for_answers(port, process, positions[-1] if positions else 0)
                process.send_signal(stop)
                assert process.wait(30) == 0, process.stderr.read()
            finally:
                process.kill()
        positions.append(status(state)["health"]["position"])
    assert 0 < positions[0] < positions[1]
    said = [event["event"] for event in status(state)["events"]]
    assert "resumed" in said and said[-1] == "stopped"


def wait_for_answers(port, process, before):
    """Wait until the endpoint counts more of them than a life before gave."""
    for _ in range(600):
        if process.poll() is not None:
            raise AssertionError(process.stderr.read())
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                found = re.search(r"^driftline_predictions_total (\S+)$", answer.read().decode(), re.MULTILINE)
            if float(found[1]) > before:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError("no answer was given in a minute")


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def placed(words, replacements):
    return [next((word.replace(old, new) for old, new in replacements.items() if old in word), word) for word in words]


@contextlib.contextmanager
def service_manager(monkeypatch, folder, silence):
    """Listen as systemd does; what was said so far is in the list."""
    said = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(folder / "notify"))
        server.settimeout(0.05)
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", str(int(silence * 1e6)))
        done = threading.Event()

        def listen():
            while not done.is_set():
                with contextlib.suppress(TimeoutError):
                    said.append(server.recv(4096).decode())

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield said
        finally:
            time.sleep(0.2)
            done.set()
            thread.join()


def test_the_unit_starts_a_loop_that_ends_on_its_signal_and_goes_on(shipped, tmp_path, monkeypatch):
    pytest.importorskip("prometheus_client", reason="prometheus-client (the 'edge' extra) is not installed")
    assert unit()["Type"] == "notify" and int(unit()["WatchdogSec"]) > 0
    port = free_port()
    # The build of torch with CUDA takes more memory than a board's.
    here = {"/opt/driftline/bin/driftline": str(PROGRAM), "/opt/driftline": str(shipped)}
    here |= {"/var/lib/driftline": str(tmp_path / "state"), "400MB": "4GB", "9464": str(port)}
    command = placed(unit()["ExecStart"].split(), here)
    with service_manager(monkeypatch, tmp_path, silence=0.2) as said:
        run_twice(command, tmp_path / "state", port, signal.Signals[unit()["KillSignal"]])
    assert said.count("READY=1") == said.count("STOPPING=1") == 2
    assert said[0] == "READY=1" and said[-1] == "STOPPING=1"
    assert re.fullmatch(r"WATCHDOG=1\nSTATUS=\d+ answered, adapted model", said[1])


HANGS = """
import time
import torch
from torch import nn

class Hanging(nn.Linear):
    def forward(self, x):
        if float(x.max()) > 6:
            time.sleep(3600)
        return super().forward(x)

def model():
    return Hanging(4, 3)

def sensor():
    for number in range(100):
        time.sleep(0.02)
        yield torch.full((4,), number / 10)
"""


def test_a_loop_that_hangs_gives_no_sign_of_life(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(HANGS)
    command = [PROGRAM, "adapt", "--model", tmp_path / "own.py:model", "--source", tmp_path / "own.py:sensor"]
    command += ["--state", tmp_path / "state", "--preset", "fixed", "--quiet"]
    with (
        service_manager(monkeypatch, tmp_path, silence=0.2) as said,
        subprocess.Popen([*map(str, command)]) as process,
    ):
        try:
            for _ in range(600):
                if len(said) > 2 and int(re.search(r"\d+ answered", said[-1])[0].split()[0]) > 40:
                    break
                time.sleep(0.1)
            # It hangs at number 61, half a second later.
            time.sleep(3)
            heard = len(said)
            time.sleep(1)
            assert len(said) == heard > 2
            assert process.poll() is None
        finally:
            process.kill()


def test_the_recipe_starts_a_loop_that_ends_on_its_signal_and_goes_on(shipped, tmp_path):
    pytest.importorskip("prometheus_client", reason="prometheus-client (the 'edge' extra) is not installed")
    port = free_port()
    here = {"/app": str(shipped), "/state": str(tmp_path / "state"), "400MB": "4GB", "9464": str(port)}
    program, *words = recipe()
    assert program == "driftline"
    run_twice([str(PROGRAM), *placed(words, here)], tmp_path / "state", port, signal.SIGTERM)


def test_systemd_takes_the_unit(shipped, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    text = (EDGE / "driftline.service").read_text().replace("/opt/driftline/bin/driftline", str(PROGRAM))
    (tmp_path / "driftline.service").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "driftline.service"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "driftline.service" not in done.stderr, "systemd warns of what it does not know"
