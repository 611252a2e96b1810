from __future__ import annotations

import os

import pytest
import torch

from driftline.errors import CheckpointError, DriftlineError, RecordError
from driftline.stream import checkpoint


@pytest.fixture
def file(tmp_path):
    checkpoint.save(tmp_path / "state", {"weight": torch.arange(1000.0), "step": 3})
    return tmp_path / "state"


def test_tensors_and_plain_values_come_back_as_they_were(tmp_path):
    state = {
        "tensors": [torch.tensor([1.5, float("nan")]), torch.arange(3, dtype=torch.int8), torch.tensor(True)],
        "nested": {"none": None, "text": "ü", "pair": [1, 2.5, False], 7: {}},
        "empty": torch.empty(0, 3, dtype=torch.float64),
    }
    checkpoint.save(tmp_path / "state", state)
    loaded = checkpoint.load(tmp_path / "state")
    assert loaded["nested"] == state["nested"]
    assert [t.dtype for t in loaded["tensors"]] == [torch.float32, torch.int8, torch.bool]
    assert torch.equal(loaded["tensors"][0].nan_to_num(9), torch.tensor([1.5, 9]))
    assert loaded["empty"].shape == (0, 3)


def test_a_new_checkpoint_replaces_the_old_and_leaves_nothing_else(file):
    checkpoint.save(file, {"step": 4})
    assert checkpoint.load(file) == {"step": 4}
    assert os.listdir(file.parent) == ["state"]


def test_every_changed_byte_is_noticed(file):
    content = file.read_bytes()
    for place in [*range(0, 120, 7), *range(120, len(content), 301), len(content) - 1]:
        damaged = bytearray(content)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged|not a driftline checkpoint|has format"):
            checkpoint.load(file)


@pytest.mark.parametrize("length", [0, 5, 23, 60, 88, 500, -1])
def test_a_file_cut_off_anywhere_is_noticed(file, length):
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="is damaged|not a driftline checkpoint|has format"):
        checkpoint.load(file)


def test_bytes_added_at_the_end_are_noticed(file):
    file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="cannot read checkpoint .*nowhere: No such file"):
        checkpoint.load(tmp_path / "nowhere")


class Payload:
    """What unpickling would run."""

    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    checkpoint.save(tmp_path / "state", {"harmless": Payload()})
    with pytest.raises(CheckpointError, match="something other than tensors and plain values"):
        checkpoint.load(tmp_path / "state")
    assert not Payload.ran


def test_what_cannot_be_written_is_reported_with_advice_and_the_old_file_stays(file):
    blocked = file / "below a file"
    with pytest.raises(
        RecordError, match="cannot write .*below a file: Not a directory; free space or choose"
    ) as raised:
        checkpoint.save(blocked, {"step": 5})
    assert isinstance(raised.value, DriftlineError)
    assert checkpoint.load(file)["step"] == 3


def test_a_failure_half_way_leaves_the_old_file_and_no_remains(file, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match="No space left on device"):
        checkpoint.save(file, {"step": 5})
    assert checkpoint.load(file)["step"] == 3
    assert os.listdir(file.parent) == ["state"]
