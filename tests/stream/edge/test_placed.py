"""Sources of records in the loop: what was read ahead and not dealt with is read again."""

from __future__ import annotations

import pytest

from driftline.errors import CheckpointError
from driftline.stream.edge.events import read_events
from driftline.stream.edge.placed import Placed
from driftline.stream.sources import Columns, CSVSource, JSONLinesSource
from tests.stream.edge.parts import make


def rows(folder, count, name="rows.csv"):
    (folder / name).write_text("a,b,c,d\n" + "".join(f"{i},1,2,3\n" for i in range(count)))
    return Placed(CSVSource(folder / name, Columns("abcd"), "give"), f"csv:{name}")


def test_what_was_read_ahead_and_not_answered_is_answered_after_a_restart(tmp_path):
    with make(tmp_path / "state", rows(tmp_path, 30)) as loop:
        first = [next(loop).position for _ in range(7)]
    placed = rows(tmp_path, 30)
    with make(tmp_path / "state", placed) as loop:
        second = [prediction.position for prediction in loop]
    assert [*first, *second] == [*range(30)]
    assert placed.source.read == 30


def test_an_answer_that_the_caller_has_not_dealt_with_comes_once_more(tmp_path):
    with pytest.raises(RuntimeError), make(tmp_path / "state", rows(tmp_path, 30)) as loop:
        for prediction in loop:
            if prediction.position == 12:
                raise RuntimeError("the caller fails")
    with make(tmp_path / "state", rows(tmp_path, 30)) as loop:
        assert next(loop).position == 12


def test_places_that_are_dealt_with_are_not_kept(tmp_path):
    placed = rows(tmp_path, 60)
    with make(tmp_path / "state", placed, queue=4) as loop:
        for _ in loop:
            assert len(placed._places) <= 4 + 3


def test_a_source_that_fails_is_read_on_where_it_was(tmp_path):
    with make(tmp_path / "state", rows(tmp_path, 3), reconnect=(0.001, 0.001)) as loop:
        kept = loop._placed.source._open
        fails = iter((True,))

        def open_once_in_vain():
            if next(fails, False):
                raise OSError("gone for a moment")
            return kept()

        loop._placed.source._open = open_once_in_vain
        assert [prediction.position for prediction in loop] == [0, 1, 2]


def test_a_place_in_another_source_is_not_taken_up_and_one_that_cannot_be_is_an_error(tmp_path):
    with make(tmp_path / "state", rows(tmp_path, 5)) as loop:
        list(loop)
    with make(tmp_path / "state", rows(tmp_path, 8, "others.csv")) as loop:
        assert [prediction.position for prediction in loop] == [*range(5, 13)]
    said = [event for event in read_events(tmp_path / "state" / "events.jsonl") if event["event"] == "another_source"]
    assert [event["name"] for event in said] == ["csv:others.csv"]
    lines = Placed(JSONLinesSource("-", lambda value: value), "csv:others.csv")
    with pytest.raises(CheckpointError, match="was read from a CSVSource"):
        make(tmp_path / "state", lines)
