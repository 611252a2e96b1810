"""Faults of the loop, for real: it goes on answering with the last good model and says what happened."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from driftline.adapters.wrapper import Wrapper
from driftline.errors import ConfigError, SourceError
from driftline.stream.edge import StateStore
from driftline.stream.modules import evaluate
from tests.stream.edge.parts import Clock, Raising, Tape, adapter, make, network, released_later, samples, told

ROOT = Path(__file__).resolve().parents[3]


def by_the_shipped_model(x):
    return list(evaluate(network(), x))


def same(answers, expected):
    return all(torch.allclose(a.scores, e, atol=1e-6) for a, e in zip(answers, expected, strict=True))


@pytest.mark.parametrize(
    "frame",
    [
        torch.full((4,), float("nan")),
        torch.tensor([1.0, float("inf"), 0.0, 0.0]),
        torch.zeros(2, 3),
        torch.zeros(4, dtype=torch.long),
        b"\x00\x01",
        "frame",
        None,
        {"x": 1},
        [1.0, [2.0]],
        object(),
    ],
    ids=["nan", "inf", "resolution", "type", "bytes", "text", "none", "dict", "ragged", "object"],
)
def test_a_frame_that_cannot_be_used_is_answered_by_an_error_and_changes_nothing(tmp_path, frame):
    x = samples(20)
    whole = [answer.scores for answer in make(tmp_path / "whole", x)]
    loop = make(tmp_path / "cut", [*x[:5], frame, *x[5:]])
    answers = list(loop)
    bad = answers.pop(5)
    assert (bad.scores, bad.label, bad.served) == (None, None, "none")
    assert bad.error
    assert all(map(torch.equal, [answer.scores for answer in answers], whole))
    assert loop.health.counts["damaged"] == 1
    assert told(tmp_path / "cut", "damaged")[0]["position"] == 5


def test_a_flood_of_damaged_frames_does_not_flood_the_log(tmp_path):
    loop = make(tmp_path, [*samples(1), *[None] * 2000])
    assert len(list(loop)) == 2001
    assert loop.health.counts["damaged"] == 2000
    assert len(told(tmp_path, "damaged")) == 1


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit("thread"), MemoryError()], ids=["error", "exit", "memory"]
)
@pytest.mark.parametrize("when_late", ["smaller", "background"])
def test_an_adapter_that_raises_is_rested_and_the_last_good_model_answers(tmp_path, error, when_late):
    if when_late == "smaller" and isinstance(error, SystemExit):
        pytest.skip("in the caller's own thread it is the caller's to exit")
    clock = Clock()
    player = Raising(adapter())
    player.error = error
    x = samples(40)
    loop = make(tmp_path, x, player, when_late=when_late, clock=clock, pause=60.0, batch_size=4)
    answers = []
    for answer in loop:
        answers.append(answer)
        if loop.serving._job is not None:
            loop.serving._job.wait(60)
    assert same(answers, by_the_shipped_model(x))
    counts = loop.health.counts
    assert counts["adaptations"] == 0
    assert counts["skipped_samples"] > 20
    if isinstance(error, MemoryError):
        # 4, 2 and 1 samples were tried before it rests.
        assert (counts["adapt_failures"], loop.adapting.batch_size) == (3, 1)
        assert told(tmp_path, "out_of_memory")[0]["batch_size"] == 2
    else:
        assert counts["adapt_failures"] == 1
        assert told(tmp_path, "rollback")[0]["to"] == "the last good state"
    assert told(tmp_path, "adapt_failed")[0]["resting_for"] == 60.0


def test_a_batch_cut_for_want_of_memory_grows_back_and_is_tried_less_and_less_often(tmp_path):
    class Short(Wrapper):
        """Has no memory for more than a single sample until a moment."""

        until = 0.0

        def adapt(self, x):
            if len(x) > 1 and clock.now < self.until:
                raise MemoryError
            return super().adapt(x)

    clock = Clock()
    player = Short(adapter())
    player.until = clock.now + 300
    loop = make(tmp_path, samples(600), player, clock=clock, pause=10.0, batch_size=4, report_every=0.001)
    begun, grown = clock.now, None
    for _ in loop:
        clock.now += 1
        if loop.adapting.batch_size == 4 and clock.now - begun > 10:
            grown = grown or clock.now - begun
    tries = [event["time"] for event in told(tmp_path, "out_of_memory")]
    # 4 and 2 at the beginning, then after 20, 40, 80 ... seconds.
    assert 4 <= len(tries) <= 6
    assert grown is not None
    assert 300 < grown < 600


def test_the_rest_after_failures_doubles_and_ends_with_the_first_success(tmp_path):
    clock = Clock()
    player = Raising(adapter())
    loop = make(tmp_path, samples(400), player, clock=clock, pause=10.0, batch_size=1, report_every=0.001)
    for _ in loop:
        clock.now += 1
    rests = [event["resting_for"] for event in told(tmp_path, "adapt_failed")]
    assert rests[:4] == [10.0, 20.0, 40.0, 80.0]


class Poisoned(Wrapper):
    """Its weights are NaN from the third adaptation on, until it is taken back."""

    times = 0

    def adapt(self, x):
        scores = super().adapt(x)
        self.times += 1
        if self.times == 3:
            self.network()[0].weight.data.fill_(torch.nan)
        return scores


def test_scores_that_are_not_finite_are_replaced_by_the_shipped_models_and_the_good_state_returns(tmp_path):
    x = samples(60)
    loop = make(tmp_path, x, Poisoned(adapter()))
    answers = list(loop)
    assert all(bool(torch.isfinite(answer.scores).all()) for answer in answers)
    assert [answer.position for answer in answers if answer.served == "shipped"] == [24]
    assert torch.allclose(answers[24].scores, evaluate(network(), x[24:25])[0], atol=1e-6)
    assert loop.health.counts["predict_failures"] == 1
    assert told(tmp_path, "rollback")[0]["signal"] == "failure"
    assert loop.health.counts["adaptations"] == 7


def test_a_source_that_fails_for_good_ends_the_loop_after_all_before_it_is_answered_and_saved(tmp_path):
    def cut_off():
        yield from samples(5)
        raise OSError("sensor unplugged")

    loop = make(tmp_path, cut_off())
    answers = [next(loop) for _ in range(5)]
    with pytest.raises(SourceError, match="position 5: OSError: sensor unplugged"):
        next(loop)
    assert len(answers) == 5
    with StateStore(tmp_path) as store:
        assert store.newest()[1]["position"] == 5
    assert told(tmp_path, "source_failed")[0]["error"] == "OSError: sensor unplugged"


def test_a_source_that_fails_and_can_be_opened_again_is(tmp_path):
    x = list(samples(12))
    rest = iter(x)

    def unstable():
        for i, sample in enumerate(rest):
            yield sample
            if i == 4:
                raise ConnectionError("gone")

    loop = make(tmp_path, unstable)
    assert len(list(loop)) == 12
    assert loop.health.counts["source_failures"] == 2


def test_a_source_that_stalls_is_told_once_and_the_loop_goes_on_when_it_does(tmp_path):
    clock = Clock()
    source, gate = released_later(tmp_path)
    with make(tmp_path, source, clock=clock, stall_after=5.0) as loop:
        for _ in range(3):
            next(loop)
        clock.now += 6
        answers = []
        other = threading.Thread(target=lambda: answers.extend(loop))
        other.start()
        while not told(tmp_path, "stalled"):
            other.join(0.01)
        gate.set()
        other.join(60)
    assert len(answers) == 2
    assert len(told(tmp_path, "stalled")) == loop.health.counts["stalls"] == 1


def test_a_flood_is_dropped_as_stated_and_every_drop_is_counted(tmp_path):
    loop = make(tmp_path, samples(500), queue=4, overload="drop-oldest")
    loop._intake._thread.join(60)
    answers = list(loop)
    assert [answer.position for answer in answers] == [496, 497, 498, 499]
    assert loop.health.counts["dropped"] == 496
    assert told(tmp_path, "dropped")[0]["policy"] == "drop-oldest"


def test_a_receiver_that_blocks_does_not_hold_up_the_answers_nor_are_they_taken_for_delivered(tmp_path, monkeypatch):
    monkeypatch.setattr("driftline.stream.edge.loop.CLOSING", 0.5)
    gate = threading.Event()
    loop = make(tmp_path, samples(30), sink=lambda prediction: gate.wait(60))
    assert loop.run().counts["predictions"] == 30
    gate.set()
    with StateStore(tmp_path) as store:
        assert store.newest()[1]["position"] == 0


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_clock_that_jumps_neither_stops_answers_nor_checkpoints(tmp_path, jump):
    clock = Clock()
    loop = make(tmp_path, samples(40), clock=clock, checkpoint_every=10.0)
    for answer in loop:
        clock.now += jump if answer.position == 10 else 1
        if answer.position == 12:
            clock.now = 2000.0
        loop._saving._job and loop._saving._job.wait(60)
    assert loop.health.counts["predictions"] == 40
    assert loop.health.counts["checkpoints"] >= 4


def test_two_loops_on_one_folder_are_refused_and_the_first_goes_on(tmp_path):
    with make(tmp_path, samples(5)) as loop:
        next(loop)
        with pytest.raises(ConfigError, match="belongs to process"):
            make(tmp_path, samples(5))
        assert len(list(loop)) == 4


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_on_a_full_disk_it_goes_on_answering_and_tells_when_there_is_space_again(small_disk):
    with make(small_disk, samples(10)) as loop:
        next(loop)
        loop._saving._job.wait(60)
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        loop._saving.start(loop._state())
        loop._saving._job.wait(60)
        assert len([next(loop) for _ in range(5)]) == 5
        assert loop.health.counts["checkpoint_failures"] == 1
        filler.unlink()
    with StateStore(small_disk) as store:
        assert store.newest()[1]["position"] == 6


def test_on_a_read_only_disk_it_answers_with_the_last_saved_model(small_disk):
    x = samples(30)
    list(make(small_disk, Tape(x[:16])))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    loop = make(small_disk, Tape(x))
    whole = adapter()
    whole.adapt(x[:8])
    whole.adapt(x[8:16])
    assert torch.equal(next(loop).scores, whole.predict(x[16:17])[0])
    assert len(list(loop)) == 13
    assert loop.health.counts["checkpoint_failures"] == 1
    assert loop.journal.log.lost > 0


def test_when_every_saved_state_is_damaged_it_starts_from_the_shipped_model_and_says_so(tmp_path):
    list(make(tmp_path, samples(20)))
    with StateStore(tmp_path) as store:
        for file in store.files():
            file.write_bytes(b"nothing")
    loop = make(tmp_path, samples(1))
    assert same(list(loop), by_the_shipped_model(samples(1)))
    assert told(tmp_path, "started")[-1]["lost"]
    assert told(tmp_path, "damaged_state")


PROGRAM = """
import resource, sys
import torch
from tests.stream.edge.parts import make
from torch import nn
from driftline.adapters import Tent

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                      nn.Flatten(), nn.Linear(32, 3)).eval()
x = torch.rand(600, 3, 32, 32)
loop = make(sys.argv[1], x, Tent(model), shipped=model, batch_size=256)
next(loop)
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used + 40_000_000, used + 40_000_000))
answers = sum(answer.scores is not None for answer in loop)
counts = loop.health.counts
print(answers, counts["out_of_memory"], counts["adaptations"], loop.adapting.batch_size)
"""


@pytest.mark.slow
def test_under_a_hard_memory_limit_the_batch_shrinks_and_every_sample_is_answered(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers, failures, adaptations, batch_size = map(int, done.stdout.split())
    assert answers == 599
    assert failures >= 1
    assert adaptations >= 1
    assert batch_size < 256


def answer_until_killed(folder: Path, enough: int) -> list[int]:
    """Run a loop in a process of its own, kill it after so many answers, and return what it had answered."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        # The pool of threads does not survive a fork.
        torch.set_num_threads(1)
        loop = make(folder, Tape(samples(10_000)), checkpoint_every=0.01, report_every=0.01)
        for answer in loop:
            os.write(theirs, b"%d\n" % answer.position)
        os._exit(0)
    os.close(theirs)
    answered = []
    with os.fdopen(ours) as lines:
        for line in lines:
            answered.append(int(line))
            if len(answered) == enough:
                os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    return answered


def test_killed_at_any_instant_it_resumes_with_nothing_lost(tmp_path):
    delivered: set[int] = set()
    for enough in (90, 1, 133, 60):
        answered = answer_until_killed(tmp_path, enough)
        delivered.update(answered)
        with StateStore(tmp_path) as store:
            found = store.newest()
            assert not store.damaged
            # None when it was killed before it had written anything at all.
            assert found is None or found[1]["position"] <= answered[-1] + 1
    assert delivered == set(range(max(delivered) + 1))


def test_a_limit_on_the_size_of_files_costs_checkpoints_but_no_answers(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        loop = make(tmp_path, samples(20))
        assert len(list(loop)) == 20
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert loop.health.counts["checkpoint_failures"] >= 1
    assert loop.health.counts["checkpoints"] == 0
