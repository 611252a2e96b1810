"""A run from a Kafka topic, to be killed: python -m tests.stream.kafka_run SERVERS FOLDER KILL_AT"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import driftline
from driftline.learners import NearestClassMean
from driftline.stream.sources import KafkaSource


def main(servers: str, folder: str, kill_at: str) -> None:
    source = KafkaSource("readings", servers, item, until_end=True, timeout=10)
    stream = driftline.from_iterable(source, classes=2)

    def until(step: driftline.stream.step.Step) -> bool:
        if step.position == int(kill_at):
            os.kill(os.getpid(), 9)
        return False

    out = Path(folder)
    resume = (out / "checkpoint").exists()
    driftline.run(
        stream, NearestClassMean(classes=2), out=out, resume=resume, checkpoint_every=50, record_every=25, until=until
    )


def item(message: bytes) -> tuple[list[float], int]:
    value = json.loads(message)
    return value["x"], value["y"]


if __name__ == "__main__":
    main(*sys.argv[1:])
