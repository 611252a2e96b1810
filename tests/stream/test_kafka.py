import json
import subprocess
import sys
from pathlib import Path

import pytest

from driftline.errors import CheckpointError, ConfigError, SourceError
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
    with pytest.raises(SourceError, match="'nothing'.*Unknown topic"):
        list(source(servers, "nothing"))
    with pytest.raises(SourceError, match="readings"):
        list(KafkaSource("readings", "127.0.0.1:1", timeout=0.5, config=QUIET))


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
