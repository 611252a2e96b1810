"""The state on disk: power cut at every call that writes, damaged, full and read-only disks, two owners."""

from __future__ import annotations

import io
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from driftline.errors import CheckpointError, CheckpointVersionError, ConfigError, RecordError
from driftline.stream.edge import StateStore, roll_back
from driftline.stream.edge.state import files
from tests.stream.edge.parts import Clock

STATE = {"weight": torch.arange(1000.0), "step": 0}


def state(step):
    return {**STATE, "step": step}


class CutOff:
    """The power goes at the n-th call that touches the disk; a write is then done by half."""

    def __init__(self, call):
        self.left = call

    def at(self, function):
        def cut_off(*arguments, **options):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return cut_off

    def open(self, *arguments, **options):
        file = self.at(OPEN)(*arguments, **options)
        if "w" in str(arguments[1:2]):
            write = file.write
            half = self.at(lambda content: write(content[len(content) // 2 :]))
            file = Halved(file, lambda content: (write(content[: len(content) // 2]), file.flush(), half(content)))
        return file


class Halved:
    def __init__(self, file, write):
        self._file, self.write = file, write

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


OPEN = io.open


def save_until_cut_off(folder: Path, call: int) -> int:
    """Save a third state in a process whose power goes at the n-th call; return what became of the process."""
    child = os.fork()
    if child == 0:
        try:
            store = StateStore(folder, generations=2)
            power = CutOff(call)
            io.open = power.open
            for name in ("fsync", "replace", "unlink", "close"):
                setattr(os, name, power.at(getattr(os, name)))
            store.save(state(3))
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def test_power_cut_at_any_call_that_writes_leaves_the_old_or_the_new_state_whole(tmp_path):
    ends = []
    steps = []
    for call in range(1, 50):
        folder = tmp_path / str(call)
        with StateStore(folder, generations=2) as store:
            store.save(state(1))
            store.save(state(2))
        ends.append(save_until_cut_off(folder, call))
        with StateStore(folder, generations=2) as store:
            found = store.newest()
            assert found is not None
            assert not store.damaged
            assert torch.equal(found[1]["weight"], STATE["weight"])
            steps.append(found[1]["step"])
            # Nothing is left behind, and saving goes on.
            assert sorted(p.name for p in folder.iterdir()) == sorted([*(f.name for f in store.files()), "lock"])
            store.save(state(4))
            assert len(store.files()) == 2
        if ends[-1] == 0:
            break
    assert all(os.WIFSIGNALED(end) for end in ends[:-1])
    assert ends[-1] == 0
    assert len(ends) >= 7
    # Before the file has its name the old state is there, after that the new one.
    assert steps == sorted(steps)
    assert {2, 3} == set(steps)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_when_the_newest_state_is_damaged_the_one_before_is_taken_and_kept(tmp_path, damage):
    with StateStore(tmp_path, generations=2) as store:
        for step in range(3):
            store.save(state(step))
        newest = store.files()[-1]
        newest.write_bytes(damage(newest.read_bytes()))
        number, found = store.newest()
        assert (number, found["step"], len(store.damaged)) == (2, 1, 1)
        store.save(state(9))
        assert [torch.equal(found["weight"], STATE["weight"]), len(store.files())] == [True, 2]


def test_a_state_that_the_disk_does_not_give_out_now_is_passed_over_and_kept_for_later(tmp_path):
    with StateStore(tmp_path / "folder") as store:
        for step in range(3):
            store.save(state(step))
        newest, elsewhere = store.files()[-1], tmp_path / "unmounted"
        content = newest.read_bytes()
        newest.unlink()
        newest.symlink_to(elsewhere)
        number, found = store.newest()
        assert (number, found["step"], len(store.damaged)) == (2, 1, 1)
        elsewhere.write_bytes(content)
        number, found = store.newest()
        assert (number, found["step"]) == (3, 2)


def test_a_state_in_a_later_format_is_refused_and_stays(tmp_path):
    with StateStore(tmp_path) as store:
        store.save({"step": 1})
        store.save({"step": 2})
        newest = store.files()[-1]
        content = newest.read_bytes().replace(b"checkpoint 1", b"checkpoint 2", 1)
        newest.write_bytes(content)
        with pytest.raises(CheckpointVersionError, match="has format 2"):
            store.newest()
    assert newest.read_bytes() == content
    assert not store.damaged


def test_only_the_last_generations_are_kept_and_fewer_where_size_is_limited(tmp_path):
    with StateStore(tmp_path / "a", generations=3) as store:
        for step in range(6):
            store.save(state(step))
        assert [file.name[-1] for file in store.files()] == ["4", "5", "6"]
        size = store.last_size
    with StateStore(tmp_path / "b", generations=3, size_limit=5 * size // 2) as store:
        for step in range(6):
            store.save(state(step))
        assert len(store.files()) == 2
    with (
        StateStore(tmp_path / "c", size_limit=3 * size // 2) as store,
        pytest.raises(RecordError, match=r"two states of \d+ bytes do not fit"),
    ):
        store.save(state(0))
        store.save(state(1))


def test_writing_is_held_to_the_bytes_of_a_day_whatever_the_clock_does(tmp_path):
    clock = Clock()
    with StateStore(tmp_path / "size") as store:
        store.save(state(0))
        size = store.last_size
    day = 24 * size
    with StateStore(tmp_path / "a", bytes_per_day=day, clock=clock) as store:
        for step in range(24 * 60):
            clock.now += 60
            store.save(state(step))
        assert size * 23 <= store.written <= size * 26
        assert store.postponed > 1000
        before = store.written
        # A clock that goes back, then forward by a year: no more than an hour's worth is saved up.
        for jump in (-1e6, 3e7, 0, 0, 0):
            clock.now += jump
            store.save(state(0))
        assert store.written - before <= 2 * size
        assert store.save(state(1), force=True) is not None


def test_a_folder_has_one_owner_and_is_free_again_when_it_dies(tmp_path):
    child = os.fork()
    if child == 0:
        store = StateStore(tmp_path)
        (tmp_path / "ready").touch()
        signal.pause()
        os._exit(len(store.files()))
    while not (tmp_path / "ready").exists():
        pass
    with pytest.raises(ConfigError, match=f"belongs to process {child}, which is running"):
        StateStore(tmp_path)
    with pytest.raises(CheckpointError, match="holds no state"):
        roll_back(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    StateStore(tmp_path).close()


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_raises_and_leaves_the_older_states(small_disk):
    with StateStore(small_disk) as store:
        store.save({"weight": torch.zeros(5000)})
        with pytest.raises(RecordError, match="No space left"):
            store.save({"weight": torch.zeros(20_000)})
        assert [number for number, _ in [store.newest()]] == [1]


def test_a_read_only_disk_can_be_read_and_is_locked_all_the_same(small_disk):
    with StateStore(small_disk) as store:
        store.save(state(5))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with StateStore(small_disk) as store:
        assert not store.writable
        assert store.newest()[1]["step"] == 5
        with pytest.raises(ConfigError, match="is running"):
            StateStore(small_disk)
        with pytest.raises(RecordError, match="Read-only"):
            store.save(state(6))


def test_rolling_back_by_hand_to_one_generation_rejects_those_after_it(tmp_path):
    with StateStore(tmp_path, generations=4) as store:
        for step in range(4):
            store.save({"player": {"weight": step}, "position": 10 * step, "floor": {}, "adapting": {}})
    for missing in (4, 9):
        with pytest.raises(CheckpointError, match=rf"no generation {missing} before the newest; it has \[1, 2, 3, 4\]"):
            roll_back(tmp_path, generation=missing)
    with pytest.raises(ConfigError, match="choose one"):
        roll_back(tmp_path, shipped=True, generation=2)
    assert (
        roll_back(tmp_path, generation=2)
        == "generations 3 to 4 are rejected; generation 5 has the model of generation 2"
    )
    assert [int(file.name.partition("-")[2]) for file in files(tmp_path)] == [1, 5]
    with StateStore(tmp_path) as store:
        number, state = store.newest()
    assert (number, state["player"], state["position"]) == (5, {"weight": 1}, 30)


def test_rolling_back_by_hand_takes_the_older_model_and_keeps_the_place_in_the_source(tmp_path):
    with StateStore(tmp_path, generations=3) as store:
        for step in range(3):
            store.save({"player": {"weight": step}, "position": 10 * step, "floor": {}, "adapting": {}})
    assert "generation 3 is rejected; generation 4 has the model of generation 2" in roll_back(tmp_path)
    with StateStore(tmp_path) as store:
        assert store.newest() == (
            4,
            {"player": {"weight": 1}, "position": 20, "floor": None, "adapting": None},
        )
    roll_back(tmp_path)
    with StateStore(tmp_path) as store:
        assert store.newest()[1]["player"] == {"weight": 0}
    with pytest.raises(CheckpointError, match="one state only"):
        roll_back(tmp_path)
    roll_back(tmp_path, shipped=True)
    with StateStore(tmp_path) as store:
        assert store.newest()[1]["player"] is None
    assert len(files(tmp_path)) == 1
