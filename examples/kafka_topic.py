"""A Kafka topic as a stream: the run is stopped and goes on behind the last message it has learned from.

The broker here is librdkafka's own mock cluster; give your own addresses in its place.
"""

import json
import tempfile
from pathlib import Path

from confluent_kafka import Producer

import driftline
from driftline.learners import NearestClassMean
from driftline.metrics import OnlineAccuracy
from driftline.stream.sources import Columns, KafkaSource

COLUMNS = Columns(["height", "width"], label="kind", classes=["short", "tall"])


def play(servers: str, out: Path, samples: int | None = None) -> driftline.Report:
    source = KafkaSource("readings", servers, lambda message: COLUMNS(json.loads(message)), bad="skip", until_end=True)
    stream = driftline.from_iterable(source, classes=COLUMNS.classes)
    until = None if samples is None else lambda step: step.position >= samples
    metrics = [OnlineAccuracy(window=None)]
    return driftline.run(
        stream, NearestClassMean(classes=2), metrics=metrics, out=out, resume=(out / "checkpoint").exists(), until=until
    )


def main() -> None:
    producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock", "log_level": 0})
    servers = ",".join(f"{b.host}:{b.port}" for b in producer.list_topics(timeout=10).brokers.values())
    for i in range(300):
        row = {"height": i % 2 + 0.1 * (i % 5), "width": 1.0 + 0.1 * (i % 3), "kind": ("short", "tall")[i % 2]}
        producer.produce("readings", json.dumps(row).encode(), partition=0)
    producer.produce("readings", b"not JSON", partition=0)
    producer.flush(10)

    out = Path(tempfile.mkdtemp()) / "run"
    print("stopped after", play(servers, out, samples=120).record["source"]["read"])
    whole = play(servers, out)
    print("read", whole.record["source"]["read"], "skipped", whole.record["source"]["skipped"])
    print("accuracy", round(whole.results["online_accuracy"], 3))


if __name__ == "__main__":
    main()
