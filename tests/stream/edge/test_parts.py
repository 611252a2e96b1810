"""The parts of the edge loop, each alone: pace, floor, log, latency, intake, sink, worker, memory."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from driftline.adapters import Tent
from driftline.errors import ConfigError
from driftline.stream.edge import EventLog, Floor, Prediction, preset, read_events
from driftline.stream.edge.health import Latency
from driftline.stream.edge.intake import Intake
from driftline.stream.edge.memory import PeakBytes, give_back, major_faults, resident
from driftline.stream.edge.pace import Pace
from driftline.stream.edge.planning import plan
from driftline.stream.edge.sink import Sink
from driftline.stream.edge.worker import Worker
from tests.stream.edge.parts import network, samples


@pytest.mark.parametrize(("when_late", "part"), [("skip", 8), ("smaller", 2)])
def test_a_passing_load_does_not_stop_adapting_for_long(when_late, part):
    pace = Pace(0.1, when_late)
    pace.adapted(8, 9.0)
    assert [pace.choose(8, waiting=0) for _ in range(4)] == [0, 0, 0, part]
    pace.adapted(part, 0.01)
    assert pace.choose(8, waiting=0) == 8


def test_where_there_is_no_time_tries_grow_rare_until_there_is():
    pace = Pace(0.1)
    pace.adapted(8, 9.0)
    tries = []
    for number in range(1000):
        size = pace.choose(8, waiting=0)
        if size:
            tries.append(number)
            assert size == 2
            pace.adapted(2, 0.2)
    # Two in a row, of which the second is no faster.
    assert [after - before for before, after in zip(tries, tries[1:])] == [
        *(1, 8, 1, 16, 1, 32, 1, 64, 1, 128, 1, 256, 1, 256, 1)
    ]
    pace.predicted(0.2)
    assert not any(pace.choose(8, waiting=0) for _ in range(1000)), "not even a prediction is in time"
    for _ in range(100):
        pace.predicted(0.01)
    next(size for _ in range(256) if (size := pace.choose(8, waiting=0)))
    pace.adapted(2, 0.02)
    assert pace.choose(8, waiting=0) == 8
    pace.adapted(8, 9.0)
    assert [pace.choose(8, waiting=0) for _ in range(4)] == [0, 0, 0, 2]


def test_tries_that_become_faster_follow_each_other():
    pace = Pace(0.1)
    pace.adapted(8, 9.0)
    assert [pace.choose(8, waiting=0) for _ in range(3)] == [0, 0, 0]
    for seconds in (3.0, 2.0, 1.0, 0.5, 0.02):
        assert pace.choose(8, waiting=0) == 2
        pace.adapted(2, seconds)
    assert pace.choose(8, waiting=0) == 8


def test_one_slow_measurement_is_corrected_by_the_smaller_batches_that_follow():
    pace = Pace(0.1, "smaller")
    pace.adapted(8, 0.4)
    assert pace.choose(8, waiting=0) == 2
    pace.adapted(2, 0.01)
    assert pace.choose(8, waiting=0) == 8
    # It is slow indeed: the smaller batches are no measure of it.
    pace.adapted(8, 0.4)
    assert pace.choose(8, waiting=0) == 2


@pytest.mark.parametrize("seed", range(3))
def test_the_floor_holds_over_every_run_of_labels_up_to_its_window(seed):
    draw = random.Random(seed)
    floor = Floor(window=40, margin=0.1)
    differences = []
    served_adapted = 0
    skill = 0.5
    for step in range(5000):
        # Now and then the adapted model becomes a good one, or a bad one.
        skill = draw.random() if step % 150 == 0 else skill
        shipped, adapted = draw.random() < 0.6, draw.random() < skill
        served = adapted if floor.adapted else shipped
        served_adapted += floor.adapted
        differences.append(int(shipped) - int(served))
        floor.feedback(served, shipped, adapted)
    sums = torch.tensor([0, *differences]).cumsum(0)
    assert max(int((sums[n:] - sums[: len(sums) - n]).max()) for n in range(1, 41)) == 4
    assert floor.falls > 1
    assert served_adapted > 100


def test_after_each_fall_the_adapted_model_must_prove_itself_for_longer():
    floor = Floor(window=10, margin=0.1)
    waits = []
    for _ in range(3):
        assert floor.feedback(served=False, shipped=True, adapted=False)
        wait = 0
        while not floor.adapted:
            floor.feedback(served=True, shipped=True, adapted=True)
            wait += 1
        waits.append(wait)
    assert waits == [10, 20, 40]


def test_a_floor_goes_on_from_its_state():
    one, other = Floor(20, 0.1), Floor(20, 0.1)
    draw = random.Random(0)
    events = [(draw.random() < 0.5, draw.random() < 0.7, draw.random() < 0.5) for _ in range(400)]
    for event in events[:200]:
        one.feedback(*event)
    other.load_state_dict(one.state_dict())
    assert [one.feedback(*e) for e in events[200:]] == [other.feedback(*e) for e in events[200:]]
    assert one.state_dict() == other.state_dict()
    with pytest.raises(ConfigError, match="between 0.05"):
        Floor(20, 0.01)


def test_the_log_turns_over_and_stays_within_its_size(tmp_path):
    log = EventLog(tmp_path / "log", max_bytes=1000, backups=2)
    for i in range(500):
        log.write("tick", i=i)
    log.close()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"log", "log.1", "log.2"}
    assert max(sizes.values()) < 1100
    numbers = [event["i"] for event in read_events(tmp_path / "log")]
    assert numbers == list(range(numbers[0], 500))


def test_lines_that_could_not_be_written_are_counted_and_told_later(tmp_path):
    log = EventLog(tmp_path / "folder" / "log")
    log.write("a")
    log.write("b")
    (tmp_path / "folder").mkdir()
    log.write("c")
    assert log.lost == 2
    assert [event["lines_lost_before"] for event in read_events(log.path)] == [2]


def test_a_line_cut_off_by_a_power_cut_is_left_out(tmp_path):
    path = tmp_path / "log"
    path.write_text('{"event": "a"}\n{"event": "b')
    log = EventLog(path)
    log.write("c")
    assert [event["event"] for event in read_events(path)] == ["a", "c"]


def test_quantiles_of_the_latency_are_within_five_percent():
    latency = Latency()
    draw = random.Random(0)
    durations = sorted(draw.lognormvariate(-5, 1) for _ in range(5000))
    for duration in durations:
        latency.add(duration)
    for share in (0.01, 0.5, 0.9, 0.99):
        true = durations[int(share * 5000) - 1]
        assert true <= latency.quantile(share) <= 1.051 * true
    assert latency.quantile(1.0) == durations[-1]


@pytest.mark.parametrize(("overload", "kept"), [("drop-oldest", [7, 8, 9]), ("drop-newest", [0, 1, 2])])
def test_on_overload_items_are_dropped_as_stated_and_counted(overload, kept):
    intake = Intake(range(10), size=3, overload=overload)
    intake._thread.join(60)
    assert [intake.get(1).item for _ in range(3)] == kept
    assert (intake.dropped, intake.ended) == (7, True)


def test_a_source_that_must_wait_loses_nothing():
    intake = Intake(range(100), size=2)
    assert [intake.get(60).item for _ in range(100)] == list(range(100))
    assert intake.dropped == 0


def test_closing_waits_for_the_item_that_the_source_is_at():
    done = []

    def source():
        while True:
            time.sleep(0.2)
            done.append(1)
            yield 0

    intake = Intake(source)
    intake.close(10)
    assert not intake._thread.is_alive() and len(done) == 1


def test_a_source_that_fails_is_opened_again_where_it_was():
    class Unstable:
        opened: list[int] = []

        def seek(self, position):
            self.position = position

        def __call__(self):
            self.opened.append(self.position)
            for i in range(self.position, 9):
                yield i
                if i % 3 == 2:
                    raise ConnectionError("gone")

    source = Unstable()
    intake = Intake(source, reconnect=(0.0, 0.0))
    assert [intake.get(60).item for _ in range(9)] == list(range(9))
    assert intake.get(60) is None
    assert (source.opened, intake.failures, intake.error) == ([0, 3, 6, 9], 3, "ConnectionError: gone")


def test_a_receiver_that_blocks_makes_nobody_wait_and_one_that_raises_is_counted():
    gate, seen = threading.Event(), []

    def receive(prediction):
        assert gate.wait(60)
        seen.append(prediction.id)
        if prediction.id == 9:
            raise OSError("full")

    sink = Sink(receive, size=3)
    sink.put(Prediction(0, 0, None, "none", 0.0))
    while sink.first_undelivered() is None or sink._waiting:
        pass
    for i in range(1, 10):
        sink.put(Prediction(i, i, None, "none", 0.0))
    assert sink.first_undelivered() == 0
    gate.set()
    assert sink.close(60)
    assert seen == [0, 7, 8, 9]
    assert (sink.dropped, sink.failed, sink.error, sink.first_undelivered()) == (6, 1, "OSError: full", None)


def test_a_job_that_takes_its_thread_down_is_told_and_the_next_one_is_done():
    worker = Worker("test")

    def die():
        raise SystemExit("gone")

    job = worker.submit(die)
    assert job.wait(60)
    assert isinstance(job.error, SystemExit)
    job = worker.submit(lambda: 3)
    assert job.wait(60)
    assert job.result == 3
    worker.close()


def test_the_peak_of_a_step_counts_activations_gradients_and_optimizer():
    def peak(batch, width=64):
        model = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 3))
        adapter = Tent(model)
        x = samples(batch)
        with PeakBytes() as made:
            adapter.adapt(x)
        return made.peak

    small, large = peak(64), peak(1024)
    # At least the two activations that are kept for the backward pass, and at most some more of them.
    assert 2 * 4 * 64 * (1024 - 64) < large - small < 6 * 4 * 64 * (1024 - 64)


def test_what_the_allocator_keeps_but_does_not_use_is_given_back():
    before = resident()
    # Under the size from which on each has pages of its own; the last one keeps the heap from shrinking.
    kept = [torch.ones(4000) for _ in range(4000)][-1]
    gaps = resident() - before
    if not give_back():
        pytest.skip("this allocator returns nothing when asked to")
    assert len(kept) == 4000
    assert resident() - before < gaps / 2 or gaps < 16e6


def test_pages_that_must_come_from_the_disk_are_counted(tmp_path):
    def touched() -> int:
        """Waits for the disk while every 64th page of the file is looked at."""
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
            pages.madvise(mmap.MADV_RANDOM)
            before = major_faults()
            assert sum(pages[:: 64 * mmap.PAGESIZE]) == 0
            return major_faults() - before

    with (tmp_path / "pages").open("w+b") as file:
        file.write(bytes(32 * 64 * mmap.PAGESIZE))
        file.flush()
        os.fsync(file.fileno())
        assert touched() == 0
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if touched() == 0:
            pytest.skip("this file system keeps its files in memory")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert touched() >= 16


def test_the_batch_is_halved_until_the_plan_fits():
    wide = torch.nn.Sequential(torch.nn.Linear(4, 4096), torch.nn.BatchNorm1d(4096), torch.nn.Linear(4096, 3))
    whole = plan(Tent(wide), samples(1), batch_size=4096)
    some = plan(Tent(wide), samples(1), batch_size=4096, limit=whole.total - whole.step // 2)
    assert 1 <= some.batch_size < 4096
    assert some.fits


def test_presets_are_found_by_name_and_adapt_what_they_say():
    x = samples(16)
    for name in ("fixed", "statistics", "last-layer", "affine"):
        adapter = preset(name).make(network())
        before = adapter.predict(x)
        adapter.adapt(x)
        assert torch.equal(before, adapter.predict(x)) == (name == "fixed")
    with pytest.raises(ConfigError, match="did you mean 'affine'"):
        preset("afine")


LEAN = """
import sys, tempfile, torch
from torch import nn
from driftline.stream.edge import AdaptationLoop, PRESETS
from tests.stream.edge.parts import samples

x = samples(64)
width = x.shape[1]
hidden = nn.Sequential(nn.Linear(width, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
model = nn.Sequential(hidden, nn.Linear(16, 3))
for name, way in PRESETS.items():
    folder = tempfile.mkdtemp()
    settings = {"shipped": model, "example": x[0], "batch_size": way.batch_size, "window": way.window}
    loop = AdaptationLoop(way.make(model), x, latency_budget=1e6, state_dir=folder, **settings)
    assert sum(1 for _ in loop) == 64
    assert name == "fixed" or loop.health.counts["adaptations"] >= 4
sys.exit("torch._dynamo" in sys.modules)
"""


def test_no_preset_loads_the_compiler_of_torch_which_takes_memory_that_a_device_may_not_have():
    assert subprocess.run([sys.executable, "-c", LEAN], cwd=Path(__file__).parents[3], check=False).returncode == 0
