"""Faults, for real: processes killed, disks full, files cut, sources that raise."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import driftline
from driftline.errors import CheckpointError, InputError, RecordError, SourceError
from driftline.learners import NearestClassMean
from driftline.stream import checkpoint
from driftline.stream.record import RunDirectory
from driftline.weights import weights_hash
from tests.stream.runner import play

COMMAND = [sys.executable, "-m", "tests.stream.runner"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The same run, from beginning to end in a process of its own."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    subprocess.run([*COMMAND, str(out)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return out


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("record.json", "series.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    """Start the run in its own process and wait until it is about to play."""
    process = subprocess.Popen([*COMMAND, str(out), *options], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.slow
def test_a_run_killed_ten_times_at_random_and_resumed_gives_the_undisturbed_record(undisturbed, tmp_path):
    out = tmp_path / "killed"
    draw = random.Random(2)
    kills = 0
    while kills < 10:
        process = start(out, *(["--resume"] if (out / "record.json").exists() else []))
        time.sleep(draw.uniform(0, 0.4))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            kills += 1
        else:
            assert process.returncode == 0
            break
    assert kills >= 5, "the run was over before it could be killed"
    if not (out / "record.json").exists():
        subprocess.run([*COMMAND, str(out)], cwd=ROOT, check=True)
    subprocess.run([*COMMAND, str(out), "--resume"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert_same_run(out, undisturbed)
    assert RunDirectory(out).read_timing()["resumed"] >= 1


def test_an_interrupted_run_says_so_and_resumes_to_the_undisturbed_record(undisturbed, tmp_path):
    out = tmp_path / "interrupted"
    process = start(out)
    while not (out / "checkpoint").exists() or (out / "series.csv").stat().st_size < 1000:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0
    record = RunDirectory(out).read_record()
    assert (record["status"], record["error"]) == ("stopped", "interrupted")
    assert 0 < record["position"] < 1438
    subprocess.run([*COMMAND, str(out), "--resume"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert_same_run(out, undisturbed)


def test_a_file_size_limit_in_mid_run_keeps_what_was_recorded_and_resumes(undisturbed, tmp_path):
    out = tmp_path / "limited"
    first = tmp_path / "first"
    play(first, until=lambda step: True)
    # The replay memory grows, so later checkpoints are larger than the first.
    limit = ((first / "checkpoint").stat().st_size + (undisturbed / "checkpoint").stat().st_size) // 2
    failed = subprocess.run(
        [*COMMAND, str(out)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert failed.returncode != 0
    assert "RecordError: cannot write" in failed.stderr
    assert "File too large" in failed.stderr
    assert len((out / "series.csv").read_text().splitlines()) > 5
    assert not list(out.glob(".*unfinished"))
    subprocess.run([*COMMAND, str(out), "--resume"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert_same_run(out, undisturbed)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_raises_a_named_error_that_says_where(small_disk):
    with pytest.raises(RecordError, match=r"cannot write .*disk.*No space left.*free space"):
        play(small_disk / "run")


def test_a_read_only_disk_raises_a_named_error_before_anything_is_played(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    learner = NearestClassMean()
    stream = driftline.Stream([driftline.Segment.of(driftline.load("digits"))])
    with pytest.raises(RecordError, match="Read-only file system"):
        driftline.run(stream, learner, out=small_disk / "run", progress=False)
    assert learner.input_shape is None


def test_a_folder_that_cannot_be_made_raises_a_named_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RecordError, match="cannot write"):
        play(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[: len(b) // 2], "damaged.*checksum"),
        (lambda b: b[:-1] + bytes([b[-1] ^ 1]), "damaged.*checksum"),
        (lambda b: b"", "not a driftline checkpoint"),
        (lambda b: b"other" + b, "not a driftline checkpoint"),
    ],
    ids=["cut", "altered", "empty", "foreign"],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, damage, message):
    play(tmp_path / "run", until=lambda step: step.position >= 100)
    file = tmp_path / "run" / "checkpoint"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        play(tmp_path / "run", resume=True)


def test_a_missing_checkpoint_is_named(tmp_path):
    play(tmp_path / "run", until=lambda step: True)
    (tmp_path / "run" / "checkpoint").unlink()
    with pytest.raises(CheckpointError, match="cannot read checkpoint"):
        play(tmp_path / "run", resume=True)


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    checkpoint.save(tmp_path / "checkpoint", {"evil": Evil()})
    with pytest.raises(CheckpointError, match="something other than tensors"):
        checkpoint.load(tmp_path / "checkpoint")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_another_model_is_refused_and_names_the_difference(tmp_path):
    play(tmp_path / "run", until=lambda step: True)
    with pytest.raises(CheckpointError, match=r"learner\.parameters\.parameters = .*resume with the same settings"):
        play(tmp_path / "run", resume=True, hidden=32)


def test_a_series_shorter_than_at_the_checkpoint_is_refused(tmp_path):
    play(tmp_path / "run", until=lambda step: step.position >= 100)
    (tmp_path / "run" / "series.csv").write_text("position,metric,value\n")
    with pytest.raises(CheckpointError, match=r"had .* at the checkpoint"):
        play(tmp_path / "run", resume=True)


def live(fault):
    """300 labelled samples of the digits, with one fault after 205 of them."""
    data = driftline.load("digits")
    assert data.y is not None
    for i, (x, y) in enumerate(zip(data.x[:300], data.y.tolist())):
        if i == 205:
            fault(x, y)
            yield x * float("nan"), y
        yield x, y


def fail(x, y):
    raise OSError("sensor unplugged")


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (fail, SourceError, "OSError at position 205: sensor unplugged"),
        (lambda x, y: None, InputError, "position 205: NaN or Inf in x"),
    ],
    ids=["raises", "nan"],
)
def test_a_source_that_fails_half_way_leaves_learner_and_record_as_before_the_bad_batch(
    tmp_path, fault, error, message
):
    def learner():
        torch.default_generator.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        return driftline.learners.GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))

    broken, whole = learner(), learner()
    with pytest.raises(error, match=message):
        driftline.run(
            driftline.from_iterable(lambda: live(fault), classes=10),
            broken,
            batch_size=10,
            out=tmp_path / "run",
            record_every=50,
            progress=False,
        )
    data = driftline.load("digits")
    driftline.run(
        driftline.from_iterable(zip(data.x[:200], data.y[:200].tolist()), classes=10),
        whole,
        batch_size=10,
        progress=False,
    )
    assert weights_hash(broken.model) == weights_hash(whole.model)
    record = RunDirectory(tmp_path / "run").read_record()
    assert record["status"] == "failed"
    assert record["position"] == 200
    assert message.split(":")[0].split()[-1] in record["error"]
    assert (tmp_path / "run" / "series.csv").read_text().splitlines()[-1].startswith("200,")
