from __future__ import annotations

import json

import pytest

from driftline.errors import CheckpointError, ConfigError, RecordError
from driftline.stream.record import RunDirectory, parse_series, versions, without_nan

POINTS = [
    (10, "online_accuracy", 0.1),
    (10, "held_out_accuracy/0", 1 / 3),
    (20, "online_accuracy", 0.30000000000000004),
]


@pytest.fixture
def folder(tmp_path):
    folder = RunDirectory(tmp_path / "deep" / "run")
    folder.create({"status": "running"}, overwrite=False)
    yield folder
    folder.close()


def test_a_record_and_a_series_come_back_as_they_were_written(folder):
    folder.append(POINTS[:2])
    folder.append(POINTS[2:])
    assert parse_series((folder.path / "series.csv").read_text(), folder.path) == POINTS
    assert folder.read_record() == {"status": "running"}
    folder.write_record({"status": "finished", "results": {"a": None, "b": 0.1}})
    assert RunDirectory(folder.path).read_record() == {"status": "finished", "results": {"a": None, "b": 0.1}}


def test_values_that_are_not_finite_survive_in_the_series(folder):
    folder.append([(1, "a", float("nan")), (2, "a", float("inf"))])
    (_, _, first), (_, _, second) = parse_series((folder.path / "series.csv").read_text(), folder.path)
    assert first != first and second == float("inf")


def test_json_has_no_nan():
    assert without_nan({"a": float("nan"), "b": float("-inf"), "c": 0.5}) == {"a": None, "b": None, "c": 0.5}


def test_what_was_appended_can_be_read_while_the_run_goes_on(folder):
    folder.append(POINTS)
    assert len((folder.path / "series.csv").read_bytes().splitlines()) == 4


def test_reopening_cuts_the_series_to_the_checkpoint_and_goes_on(folder):
    folder.append(POINTS[:2])
    length = folder.sync()
    folder.append(POINTS[2:])
    folder.close()
    again = RunDirectory(folder.path)
    assert again.reopen(length) == POINTS[:2]
    again.append([(30, "online_accuracy", 0.5)])
    again.close()
    series = parse_series((folder.path / "series.csv").read_text(), folder.path)
    assert series == [*POINTS[:2], (30, "online_accuracy", 0.5)]


def test_a_series_shorter_than_at_the_checkpoint_is_refused(folder):
    folder.append(POINTS)
    length = folder.sync()
    with pytest.raises(CheckpointError, match=f"has {length} bytes, but had {length + 5} at the checkpoint"):
        RunDirectory(folder.path).reopen(length + 5)


def test_a_missing_series_is_reported(folder):
    (folder.path / "series.csv").unlink()
    with pytest.raises(RecordError, match="series.csv: No such file"):
        RunDirectory(folder.path).reopen(10)


def test_a_run_is_not_overwritten_unasked(folder):
    folder.checkpoint.write_bytes(b"old")
    with pytest.raises(ConfigError, match="holds a run already; resume it, choose another folder, or overwrite it"):
        RunDirectory(folder.path).create({"status": "new"}, overwrite=False)
    assert folder.checkpoint.exists()
    again = RunDirectory(folder.path)
    again.create({"status": "new"}, overwrite=True)
    again.close()
    assert again.read_record() == {"status": "new"}
    assert not folder.checkpoint.exists()


@pytest.mark.parametrize(
    "line", ["10,online_accuracy", "ten,online_accuracy,0.5", "10,online_accuracy,half", "1,a,b,2"]
)
def test_a_damaged_line_of_a_series_is_named(line, tmp_path):
    with pytest.raises(RecordError, match=f"series.csv, line 3: expected position,metric,value, found '{line}'"):
        parse_series(f"position,metric,value\n10,a,0.5\n{line}\n", tmp_path / "series.csv")


def test_a_folder_without_a_run_or_with_a_damaged_one_is_named(folder, tmp_path):
    with pytest.raises(RecordError, match="no run in .*nowhere: cannot read record.json"):
        RunDirectory(tmp_path / "nowhere").read_record()
    assert not RunDirectory(tmp_path / "nowhere").exists()
    (folder.path / "record.json").write_text('{"status": "runn')
    with pytest.raises(RecordError, match="record.json is damaged"):
        folder.read_record()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RecordError, match="cannot write .*run: Not a directory"):
        RunDirectory(tmp_path / "file" / "run").create({}, overwrite=False)


def test_timing_is_empty_before_the_first_checkpoint(folder):
    assert folder.read_timing() == {}
    folder.write_timing({"wall_seconds": 1.5})
    assert folder.read_timing() == {"wall_seconds": 1.5}


def test_the_versions_that_matter_are_recorded():
    found = json.loads(json.dumps(versions()))
    assert set(found) == {"driftline", "torch", "numpy", "python"}
    assert all(found.values())
