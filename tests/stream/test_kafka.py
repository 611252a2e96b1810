import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import driftline
from driftline import build
from driftline.cli import app
from driftline.errors import CheckpointError, ConfigError, SourceError
from driftline.learners import NearestClassMean
from driftline.stream import checkpoint
from driftline.stream.record import RunDirectory
from driftline.stream.sources import KafkaSource

kafka = pytest.importorskip("confluent_kafka", reason="confluent-kafka (the 'kafka' extra) is not installed")
ROOT = Path(__file__).resolve().parents[2]
QUIET = {"log_level": 0}


@pytest.fixture
def cluster():
    """librdkafka's own mock cluster, which lives in the producer."""
    producer = kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock", **QUIET})
    brokers = producer.list_topics(timeout=10).brokers.values()
    return producer, ",".join(f"{broker.host}:{broker.port}" for broker in brokers)


def fill(producer, topic, values, partition=0):
    for value in values:
        producer.produce(topic, value if isinstance(value, bytes) else json.dumps(value).encode(), partition=partition)
    producer.flush(10)


def source(servers, topic="readings", **options):
    return KafkaSource(topic, servers, until_end=True, timeout=5, config=QUIET, **options)


def test_offsets_are_the_place(cluster):
    producer, servers = cluster
    fill(producer, "readings", range(300))
    fill(producer, "readings", range(1000, 1100), partition=1)
    first = source(servers)
    items = iter(first)
    head = [next(items) for _ in range(130)]
    items.close()
    second = source(servers)
    second.load_state_dict(first.state_dict())
    assert sorted([*head, *second]) == [*range(300), *range(1000, 1100)]


def test_a_killed_run_goes_on_without_skipping_or_repeating_a_message(cluster, tmp_path):
    producer, servers = cluster
    fill(producer, "readings", [{"x": [i * 0.1, i % 7], "y": i % 2} for i in range(400)])

    def play(folder, kill_at):
        command = [sys.executable, "-m", "tests.stream.kafka_run", servers, folder, str(kill_at)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).returncode

    assert play(tmp_path / "whole", 0) == 0
    assert play(tmp_path / "killed", 173) == -9
    assert play(tmp_path / "killed", 0) == 0
    for file in ("record.json", "series.csv"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    state = checkpoint.load(tmp_path / "killed" / "checkpoint")["playback"]
    assert state["stream"]["source"]["place"]["offsets"][0] == 400
    assert float(state["learner"]["counts"].sum()) == 400
    assert RunDirectory(tmp_path / "killed").read_record()["source"]["read"] == 400


def test_bad_messages_are_counted_when_asked(cluster):
    producer, servers = cluster
    fill(producer, "readings", [1, b"\xff", 2])
    skipping = source(servers, bad="skip")
    assert list(skipping) == [1, 2] and skipping.skipped == 1
    with pytest.raises(ValueError, match="partition 0, offset 1"):
        list(source(servers))


def test_a_missing_topic_or_broker_is_a_named_error(cluster):
    _, servers = cluster
    with pytest.raises(SourceError, match="'nothing'.*does not exist"):
        list(source(servers, "nothing"))
    with pytest.raises(SourceError, match="readings"):
        list(KafkaSource("readings", "127.0.0.1:1", timeout=0.5, config=QUIET))


def mock(producer):
    """The mock cluster's own controls, of librdkafka's C interface, which Python's does not reach."""
    package = Path(kafka.__file__).parent
    files = [*package.parent.glob("confluent_kafka.libs/librdkafka*"), *package.glob("*/librdkafka*")]
    if not files:
        pytest.skip("confluent-kafka brings no librdkafka of its own")
    library = ctypes.CDLL(str(files[0]))
    library.rd_kafka_handle_mock_cluster.restype = ctypes.c_void_p
    library.rd_kafka_handle_mock_cluster.argtypes = [ctypes.c_void_p]
    library.rd_kafka_mock_topic_set_error.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
    for name in ("down", "up"):
        getattr(library, f"rd_kafka_mock_broker_set_{name}").argtypes = [ctypes.c_void_p, ctypes.c_int32]
    # The client's handle stands first in the Python object, behind its reference count and type.
    handle = ctypes.c_void_p.from_address(id(producer) + object.__basicsize__).value
    return library, library.rd_kafka_handle_mock_cluster(handle)


@pytest.mark.parametrize("options", [{"timeout": 5}, {"timeout": 60, "idle": 5}])
def test_a_topic_that_disappears_while_it_is_read_is_a_named_error_and_no_quiet_end(cluster, options):
    producer, servers = cluster
    fill(producer, "readings", range(20))
    library, handle = mock(producer)
    items = iter(KafkaSource("readings", servers, config=QUIET, **options))
    assert [next(items) for _ in range(20)] == [*range(20)]
    gone = kafka.KafkaError.UNKNOWN_TOPIC_OR_PART
    assert library.rd_kafka_mock_topic_set_error(handle, b"readings", gone) == 0
    with pytest.raises(SourceError, match=r"is gone since it was read up to offsets \{0: 20.*begin a new run"):
        next(items)


def test_a_topic_that_is_quiet_is_waited_for_and_one_whose_broker_comes_back_goes_on(cluster):
    producer, servers = cluster
    fill(producer, "readings", range(3))
    library, handle = mock(producer)
    items = iter(KafkaSource("readings", servers, timeout=10, config={**QUIET, "reconnect.backoff.max.ms": 100}))
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    library.rd_kafka_mock_broker_set_down(handle, 1)
    library.rd_kafka_mock_broker_set_up(handle, 1)
    fill(producer, "readings", [3])
    assert next(items) == 3


def test_brokers_that_stay_away_are_a_named_error(cluster):
    producer, servers = cluster
    fill(producer, "readings", range(3))
    library, handle = mock(producer)
    items = iter(KafkaSource("readings", servers, timeout=0.5, config=QUIET))
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    library.rd_kafka_mock_broker_set_down(handle, 1)
    with pytest.raises(SourceError, match="topic 'readings' at 127.0.0.1"):
        next(items)


def test_a_run_fails_with_the_reason_in_its_record_when_the_topic_disappears(cluster, tmp_path):
    producer, servers = cluster
    fill(producer, "readings", [{"x": [i % 2], "y": i % 2} for i in range(20)])
    library, handle = mock(producer)
    source = build.source(f"kafka://{servers}/readings", classes=2, timeout=0.5).source
    source.config = QUIET

    def until(step):
        if step.position == 20:
            library.rd_kafka_mock_topic_set_error(handle, b"readings", kafka.KafkaError.UNKNOWN_TOPIC_OR_PART)
        return False

    stream = driftline.from_iterable(source, classes=2)
    with pytest.raises(SourceError, match="is gone"):
        driftline.run(stream, NearestClassMean(classes=2), out=tmp_path / "run", until=until)
    record = RunDirectory(tmp_path / "run").read_record()
    assert (record["status"], record["position"]) == ("failed", 20) and "is gone" in record["error"]


def test_a_killed_command_goes_on_without_skipping_or_repeating_a_message(cluster, tmp_path):
    producer, servers = cluster
    messages = [{"x": [i * 0.1, i % 7], "y": "ab"[i % 2]} for i in range(400)]
    fill(producer, "readings", messages[:173])
    (tmp_path / "quiet.json").write_text(json.dumps(QUIET))
    settings = ["--set", "classes=a,b", "--set", f"config={tmp_path}/quiet.json", "--samples", "400"]
    run = [f"kafka://{servers}/readings", *settings, "--learner", "ncm", "--checkpoint-every", "50"]

    command = [sys.executable, "-m", "driftline", "run", *run, "--out", str(tmp_path / "killed")]
    killed = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    saved = tmp_path / "killed" / "checkpoint"
    while killed.poll() is None:
        if saved.exists() and checkpoint.load(saved)["playback"]["position"] == 150:
            killed.kill()
    assert killed.wait() == -9
    fill(producer, "readings", messages[173:])
    for arguments in (["resume", str(tmp_path / "killed")], ["run", *run, "--out", str(tmp_path / "whole")]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.exception
    for file in ("record.json", "series.csv"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    state = checkpoint.load(saved)["playback"]
    assert float(state["learner"]["counts"].sum()) == 400


def test_messages_that_are_no_longer_kept_are_a_named_error(cluster):
    producer, servers = cluster
    fill(producer, "readings", range(3))
    late = source(servers)
    late.load_state_dict({**late.state_dict(), "place": {"topic": "readings", "offsets": {0: 50}}})
    with pytest.raises(SourceError, match="no longer kept"):
        list(late)


def test_the_state_of_another_topic_or_of_partitions_that_are_gone_is_refused(cluster):
    producer, servers = cluster
    fill(producer, "readings", range(3))
    other = source(servers, "others")
    with pytest.raises(CheckpointError, match="topic 'readings'"):
        other.load_state_dict({**other.state_dict(), "place": {"topic": "readings", "offsets": {0: 0}}})
    gone = source(servers)
    gone.load_state_dict({**gone.state_dict(), "place": {"topic": "readings", "offsets": {99: 0}}})
    with pytest.raises(SourceError, match=r"partitions \[99\] are no longer there"):
        list(gone)


def test_a_bad_start_is_refused():
    with pytest.raises(ConfigError, match="start="):
        KafkaSource("readings", "nowhere", start="middle")
