"""Live sources by name, as the command line knows them."""

import json

import numpy as np
import pytest

from driftline import build
from driftline.errors import ConfigError, InputError, MissingDataError, SourceError
from driftline.plan import Plan
from driftline.stream import Label
from driftline.stream.sources.named import Described

ROWS = [{"name": f"n{i}", "a": i / 4, "b": -i / 2, "kind": ("off", "on")[i % 2]} for i in range(50)]
SETTINGS = {"label": "kind", "classes": "off,on", "id": "name"}


@pytest.fixture
def folder(tmp_path):
    lines = ["name,a,b,kind", *(f"{r['name']},{r['a']},{r['b']},{r['kind']}" for r in ROWS)]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def seen(named):
    return [(item.x, item.y, item.id) for item in named.source]


def test_a_csv_file_gives_its_other_columns_as_features(folder):
    named = build.source(f"csv:{folder}/rows.csv", **SETTINGS)
    assert (named.shape, named.classes, named.labelled) == ((2,), ("off", "on"), True)
    assert seen(named) == [([r["a"], r["b"]], i % 2, r["name"]) for i, r in enumerate(ROWS)]
    assert build.source(f"csv://{folder}/rows.csv", features="b", label="a").shape == (1,)
    assert not build.source(f"csv:{folder}/rows.csv", features=["a"]).labelled


def test_lines_and_a_parquet_file_give_the_same_samples(folder):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow (the 'parquet' extra) is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=8)
    expected = seen(build.source(f"csv:{folder}/rows.csv", **SETTINGS))
    assert seen(build.source(f"parquet:{folder}/rows.parquet", rows=3, **SETTINGS)) == expected
    assert seen(build.source(f"jsonl:{folder}/rows.jsonl", features="a,b", **SETTINGS)) == expected


def test_an_images_own_folder_is_its_label(tmp_path):
    images = pytest.importorskip("PIL.Image", reason="pillow (the 'vision' extra) is not installed")
    for name in ("cat", "dog", "bird"):
        (tmp_path / name).mkdir()
        images.new("L", (4, 4)).save(tmp_path / name / "one.png")
    settings = {"size": [2, 3], "channels": 1, "settle": 0.0, "poll": 0.0, "idle": 0, "bad": "skip"}
    named = build.source(f"folder:{tmp_path}", classes="cat,dog", **settings)
    assert sorted((item.y, item.id) for item in named.source) == [(0, "cat/one.png"), (1, "dog/one.png")]
    assert named.shape == (1, 2, 3) and named.source.skipped == 1
    assert [item.y for item in build.source(f"folder:{tmp_path}", **settings).source] == [None, None, None]


def test_values_that_describe_themselves():
    decode = Described(["off", "on"])
    assert decode({"id": 7, "y": "on"}) == Label(7, 1)
    sample = decode({"x": [[1, 2], [3, 4]], "y": 0, "id": "a"})
    assert sample.x.dtype == np.float64 and (sample.x.shape, sample.y, sample.id) == ((2, 2), 0, "a")
    for wrong in ({"z": 1}, "text", 3, {"x": ["a"]}, {"x": [[1], [1, 2]]}, {"x": [1], "y": "broken"}):
        with pytest.raises(InputError):
            decode(wrong)


def test_classes_can_be_counted():
    assert build.source("jsonl:-", classes=3, shape=[2, 2]).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("address", "settings", "message"),
    [
        ("cvs://rows.csv", {}, "unknown source 'cvs'; did you mean 'csv'"),
        ("csv:", {}, "says no place; give such as csv:PATH"),
        ("csv:rows.csv", {"lable": "kind"}, "unknown parameter of source csv 'lable'; did you mean 'label'"),
        ("csv:rows.csv", {"label": "kin"}, "unknown column 'kin'; did you mean 'kind'"),
        ("csv:rows.csv", {"features": "a,c"}, "unknown column 'c'"),
        ("csv:rows.csv", {"features": "a,a"}, "a name is there twice"),
        ("csv:rows.csv", {"features": "a,kind", "label": "kind"}, "among the features too"),
        ("csv:rows.csv", {"classes": 2}, "no field is the label"),
        ("csv:rows.csv", {"bad": "drop"}, "bad='drop'"),
        ("csv:rows.csv", {"delimiter": ";;"}, "must be one character"),
        ("jsonl:rows.jsonl", {"label": "kind"}, "only where features="),
        ("jsonl:rows.jsonl", {"features": "a", "shape": 1}, "leave it out"),
        ("jsonl:rows.jsonl", {"shape": 0}, "above 0"),
        ("jsonl:rows.jsonl", {"classes": {"a": 1}}, "names with commas"),
        ("kafka://broker:9092", {}, "kafka://host:port/topic"),
        ("kafka://broker:9092/topic", {"start": "middle"}, "start="),
        ("kafka://broker:9092/topic", {"idle": "soon"}, "idle='soon'"),
        ("kafka://broker:9092/topic", {"timeout": "soon"}, "should be a float"),
        ("kafka://broker:9092/topic", {"config": "nowhere.json"}, "librdkafka's settings"),
        ("kafka://broker:9092/topic", {"config": "list.json"}, "object of settings"),
        ("folder:.", {"size": [1, 2, 3]}, "height and width"),
        ("folder:.", {"channels": 2}, "1 or 3 channels"),
    ],
)
def test_a_bad_name_or_setting_is_a_named_error(folder, monkeypatch, address, settings, message):
    monkeypatch.chdir(folder)
    (folder / "list.json").write_text("[1]")
    with pytest.raises(ConfigError, match=message):
        build.source(address, **settings)


@pytest.mark.parametrize("address", ["csv:no.csv", "jsonl:no.jsonl", "folder:no"])
def test_a_place_that_is_not_there_is_a_named_error_at_once(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDataError, match="there is no no"):
        build.source(address)


def test_a_table_that_cannot_be_read_is_a_named_error(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(SourceError, match="has no header"):
        build.source(f"csv:{tmp_path}/empty.csv")
    pytest.importorskip("pyarrow", reason="pyarrow (the 'parquet' extra) is not installed")
    with pytest.raises(SourceError, match="cannot read"):
        build.source(f"parquet:{tmp_path}/empty.csv")


def test_settings_of_the_broker_are_not_recorded(tmp_path):
    (tmp_path / "secret.json").write_text('{"sasl.password": "hush"}')
    named = build.source("kafka://a:1,b:2/readings", config=str(tmp_path / "secret.json"), shape=2)
    assert (named.source.servers, named.source.topic) == ("a:1,b:2", "readings")
    assert named.source.config == {"sasl.password": "hush"}
    assert "hush" not in str(named.source.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": (0, 1)}, "finite streams"),
        ({"compile": True}, "finite streams"),
        ({"standardize": True}, "as they come"),
        ({"data": "digits"}, "as they come"),
        ({"scenario_parameters": {}}, "a learner needs labels"),
        ({"metrics": ("held-out",)}, "no held-out samples"),
        ({"shift": 5}, "play stream.delay_labels"),
    ],
)
def test_a_plan_that_a_live_source_cannot_follow_is_refused_before_anything_is_written(folder, settings, message):
    plan = Plan(f"csv:{folder}/rows.csv", learner="ncm", **{"scenario_parameters": SETTINGS, **settings})
    with pytest.raises(ValueError, match=message):
        plan.run(folder / "run")
    assert not (folder / "run").exists()
    with pytest.raises(
        ConfigError, match="as they come" if "data" in settings or "standardize" in settings else "read again"
    ):
        plan.stream()


def test_a_model_needs_to_know_the_shape_of_a_sample(folder):
    (folder / "own.jsonl").write_text('{"x": [1, 2], "y": 0}\n' * 5)
    with pytest.raises(ConfigError, match="set shape="):
        Plan(f"jsonl:{folder}/own.jsonl", scenario_parameters={"classes": 2}).run()
    plan = Plan(f"jsonl:{folder}/own.jsonl", scenario_parameters={"classes": 2, "shape": 2})
    assert plan.run().record["position"] == 5


@pytest.mark.parametrize("batch_size", [1, 10])
def test_a_plan_ends_at_so_many_samples_and_resumes_to_the_end_of_it(folder, batch_size):
    def plan(samples):
        settings = {k: v for k, v in SETTINGS.items() if k != "id"} | {"features": "a,b"}
        return Plan(f"csv:{folder}/rows.csv", samples=samples, batch_size=batch_size, scenario_parameters=settings)

    report = plan(25).run(folder / "run", checkpoint_every=10)
    assert (report.record["position"], report.record["status"]) == (25, "finished")
    again = Plan.of_run(folder / "run").run(folder / "run", resume=True, checkpoint_every=10)
    assert again.record == report.record and again.series == report.series
    assert plan(None).run().record["position"] == 50


def test_numbers_are_predicted_where_there_are_no_classes(folder):
    settings = {"features": "a", "label": "b"}
    report = Plan(f"csv:{folder}/rows.csv", scenario_parameters=settings, learner_parameters={"lr": 1e-3}).run()
    always_zero = np.mean([r["b"] ** 2 for r in ROWS])
    assert report.results["online_squared_error"] < always_zero / 2
