import io
import json
import subprocess
import sys

import numpy as np
import pytest

import driftline
from driftline.errors import CheckpointError, ConfigError, SourceError
from driftline.learners import NearestClassMean
from driftline.stream import Label, Sample
from driftline.stream.sources import Columns, CSVSource, ImageFolderSource, JSONLinesSource, ParquetSource

COLUMNS = Columns(["a", "b"], "kind", ["off", "on"], "name")


def rows(count=50):
    return [{"name": f"n{i}", "a": i / 4, "b": -i / 2, "kind": ("off", "on")[i % 2]} for i in range(count)]


def as_csv(folder):
    lines = ["name,a,b,kind", *(f"{r['name']},{r['a']},{r['b']},{r['kind']}" for r in rows())]
    (folder / "rows.csv").write_text("\n".join(lines))
    return lambda **options: CSVSource(folder / "rows.csv", COLUMNS, **options)


def as_lines(folder):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows()))
    return lambda **options: JSONLinesSource(folder / "rows.jsonl", COLUMNS, **options)


def as_parquet(folder):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow (the 'parquet' extra) is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows()), folder / "rows.parquet", row_group_size=8)
    return lambda **options: ParquetSource(folder / "rows.parquet", COLUMNS, rows=3, **options)


def as_images(folder):
    images = pytest.importorskip("PIL.Image", reason="pillow (the 'vision' extra) is not installed")
    for i in range(50):
        images.fromarray(np.full((4, 4, 3), i * 5, np.uint8)).save(folder / f"{i:02}.png")
    return lambda **options: ImageFolderSource(
        folder, (2, 2), lambda file: int(file.stem) % 2, settle=0.0, idle=0.0, poll=0.0, **options
    )


FORMATS = [as_csv, as_lines, as_parquet, as_images]


@pytest.mark.parametrize("write", FORMATS)
def test_a_source_goes_on_behind_the_last_item_given_out(tmp_path, write):
    make = write(tmp_path)
    whole = [(item.id, item.y) for item in make()]
    assert len(whole) == 50
    for cut in (0, 1, 8, 23, 50):
        first = make()
        items = iter(first)
        head = [next(items) for _ in range(cut)]
        second = make()
        second.load_state_dict(first.state_dict())
        assert [(item.id, item.y) for item in [*head, *second]] == whole
        assert second.read == 50


@pytest.mark.parametrize("write", FORMATS)
def test_a_run_from_a_source_is_resumed_to_the_same_bits(tmp_path, write):
    (tmp_path / "data").mkdir()
    make = write(tmp_path / "data")

    def play(out, **options):
        stream = driftline.from_iterable(make(), classes=2)
        return driftline.run(stream, NearestClassMean(classes=2), record_every=5, out=tmp_path / out, **options)

    whole = play("whole")
    play("parts", until=lambda step: step.position >= 22)
    parts = play("parts", resume=True)
    assert parts.series == whole.series and parts.record["source"] == whole.record["source"]


def test_a_bad_record_stops_the_run_or_is_counted_and_recorded():
    text = b'{"a": 1, "b": 2}\n{"a": 1}\n{"a": NaN, "b": 0}\nnonsense\n{"a": 3, "b": 4}\n'
    with pytest.raises(SourceError, match=r"line 2: InputError: there is no field 'b'.*bad='skip'"):
        list(driftline.from_iterable(JSONLinesSource(io.BytesIO(text), COLUMNS)).batches())
    stream = driftline.from_iterable(JSONLinesSource(io.BytesIO(text), COLUMNS, bad="skip"), classes=2)
    report = driftline.run(stream, NearestClassMean(classes=2))
    source = report.record["source"]
    assert (source["read"], source["skipped"], report.record["position"]) == (5, 3, 2)
    assert "line 4" in source["first_skipped"][2]


def test_a_record_with_id_and_label_only_is_a_label():
    assert COLUMNS({"name": "x", "kind": "on"}) == Label("x", 1)
    assert COLUMNS({"name": "x", "a": 1, "b": 2, "kind": ""}) == Sample([1.0, 2.0], None, "x")


@pytest.mark.parametrize(("replayed", "expected"), [(True, [3, 4]), (False, [0, 1, 2, 3, 4])])
def test_standard_input_is_read_and_replayed_when_asked(replayed, expected):
    code = (
        "from driftline.stream.sources import JSONLinesSource\n"
        f"source = JSONLinesSource('-', lambda v: v, replayed={replayed})\n"
        "source._go_to({'offset': 6, 'lines': 3})\n"
        "print(list(source))"
    )
    lines = "0\n1\n2\n3\n4\n"
    done = subprocess.run([sys.executable, "-c", code], input=lines, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected


def test_new_images_are_found_as_they_appear(tmp_path):
    images = pytest.importorskip("PIL.Image", reason="pillow (the 'vision' extra) is not installed")
    source = ImageFolderSource(tmp_path, (2, 2), settle=0.0, poll=0.0, channels=1)
    images.new("RGB", (8, 8), "white").save(tmp_path / "first.png")
    items = iter(source)
    first = next(items)
    images.new("RGB", (8, 8)).save(tmp_path / "second.png")
    assert (first.id, next(items).id, first.x.shape, first.x.max()) == ("first.png", "second.png", (1, 2, 2), 255)


def test_missing_files_and_foreign_states_are_named_errors(tmp_path):
    for source in (CSVSource(tmp_path / "no.csv", COLUMNS), JSONLinesSource(tmp_path / "no.jsonl", COLUMNS)):
        with pytest.raises(SourceError, match="cannot read"):
            list(source)
    with pytest.raises(SourceError, match="no directory"):
        list(ImageFolderSource(tmp_path / "no", (2, 2)))
    with pytest.raises(CheckpointError, match="was read from a CSVSource"):
        JSONLinesSource("x", COLUMNS).load_state_dict(CSVSource("x", COLUMNS).state_dict())
    with pytest.raises(ConfigError, match="bad='drop'"):
        CSVSource("x", COLUMNS, bad="drop")
