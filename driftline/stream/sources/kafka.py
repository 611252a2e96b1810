"""A Kafka topic, whose offsets are part of the checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from driftline.errors import CheckpointError, ConfigError, SourceError
from driftline.stream.sources.base import Bad, Decode, RecordSource

FETCH = 500
"""Messages taken from the client at once."""


class KafkaSource(RecordSource):
    """The messages of a topic (needs the 'kafka' extra).

    Partitions are assigned, not subscribed to, and nothing is committed to the broker: the offset behind the last
    message given out is in the run's checkpoint, together with what was learned from it. So a run that is killed and
    resumed neither passes over nor repeats a message; those behind the checkpoint are read again.

    Parameters
    ----------
    topic : str
        Its name.
    servers : str
        Addresses of brokers, ``host:port`` with commas.
    decode : callable, optional
        Makes a sample of a message's bytes. Default: the parsed JSON value as it is, which :class:`Columns` around
        :func:`json.loads` makes samples of.
    bad : "raise", "skip" or "give"
        See :class:`RecordSource`.
    start : "earliest" or "latest"
        Where a new run begins.
    until_end : bool
        Stop at the end of every partition; default: wait for more, for ever.
    idle : float, optional
        Stop when no message has come for so many seconds.
    timeout : float
        Seconds after which brokers that do not answer are an error; after so many without a message they are asked
        whether the topic is still there.
    config : mapping, optional
        Further settings of librdkafka, such as those for security.

    Notes
    -----
    With several partitions the order between them is the broker's, and may be another after resuming; within one it is
    that of the offsets. For a run that is resumed to the same bits, give each run one partition.

    Raises
    ------
    SourceError
        When brokers do not answer, the topic is not there or disappears while it is read, a partition is taken away, or
        the messages to go on with are no longer kept.

    References
    ----------
    Kreps, Narkhede and Rao, "Kafka: a distributed messaging system for log processing" (NetDB 2011).
    """

    def __init__(
        self,
        topic: str,
        servers: str,
        decode: Decode = json.loads,
        *,
        bad: Bad = "raise",
        start: str = "earliest",
        until_end: bool = False,
        idle: float | None = None,
        timeout: float = 30.0,
        config: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(decode, bad)
        if start not in ("earliest", "latest"):
            raise ConfigError(f"start={start!r}: must be 'earliest' or 'latest'")
        self.topic, self.servers, self.start, self.until_end = topic, servers, start, until_end
        self.idle, self.timeout, self.config = idle, timeout, dict(config or {})
        self._offsets: dict[int, int] = {}

    def _records(self) -> Iterator[tuple[str, bytes]]:
        try:
            import confluent_kafka
        except ImportError:
            raise ConfigError("Kafka needs confluent-kafka; pip install 'driftline[kafka]'") from None
        consumer = confluent_kafka.Consumer(
            {
                "bootstrap.servers": self.servers,
                "group.id": "driftline",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                # Messages that are gone must not be passed over in silence.
                "auto.offset.reset": "error",
                **self.config,
            }
        )
        try:
            yield from self._consume(consumer, confluent_kafka)
        finally:
            consumer.close()

    def _consume(self, consumer: Any, kafka: Any) -> Iterator[tuple[str, bytes]]:
        partitions = self._partitions(consumer, kafka)
        for partition in partitions:
            if partition not in self._offsets:
                low, high = self._call(
                    consumer.get_watermark_offsets, kafka, kafka.TopicPartition(self.topic, partition)
                )
                self._offsets[partition] = low if self.start == "earliest" else high
        consumer.assign([kafka.TopicPartition(self.topic, p, self._offsets[p]) for p in partitions])
        ended: set[int] = set()
        heard = asked = time.monotonic()
        while True:
            messages = consumer.consume(FETCH, timeout=0.2)
            now = time.monotonic()
            for message in messages:
                error = message.error()
                if error is not None and error.code() == kafka.KafkaError._PARTITION_EOF:
                    ended.add(message.partition())
                elif error is not None:
                    self._raise(error, message.partition(), kafka)
                else:
                    heard = now
                    partition, offset = message.partition(), message.offset()
                    ended.discard(partition)
                    self._offsets[partition] = offset + 1
                    yield f"{self.topic}, partition {partition}, offset {offset}", message.value()
            if self.until_end and len(ended) == len(partitions):
                return
            over = self.idle is not None and now - heard >= self.idle
            if over or (not messages and now - max(heard, asked) >= self.timeout):
                # A quiet topic and one that is gone look the same until one asks.
                self._partitions(consumer, kafka)
                asked = time.monotonic()
            if over:
                return

    def _partitions(self, consumer: Any, kafka: Any) -> list[int]:
        """Return the topic's partitions; those of the checkpoint must be among them."""
        found = self._call(consumer.list_topics, kafka, self.topic).topics[self.topic]
        if found.error is not None and found.error.code() in _absent(kafka):
            raise self._gone(found.error)
        if found.error is not None or not found.partitions:
            raise SourceError(f"topic {self.topic!r} at {self.servers}: {found.error or 'it has no partitions'}")
        partitions = sorted(found.partitions)
        if gone := sorted(set(self._offsets) - set(partitions)):
            raise SourceError(f"topic {self.topic!r}: partitions {gone} are no longer there")
        return partitions

    def _call(self, function: Any, kafka: Any, argument: Any) -> Any:
        try:
            return function(argument, timeout=self.timeout)
        except kafka.KafkaException as error:
            if error.args[0].code() in _absent(kafka):
                raise self._gone(error.args[0]) from error
            raise SourceError(f"topic {self.topic!r} at {self.servers}: {error.args[0]}") from error

    def _gone(self, error: Any) -> SourceError:
        topic = f"topic {self.topic!r} at {self.servers}"
        if not self._offsets:
            return SourceError(f"{topic} does not exist ({error.str()}); create it, or correct its name")
        return SourceError(
            f"{topic} is gone since it was read up to offsets {self._offsets} ({error.str()}), as when it is deleted; "
            "a checkpoint keeps what was learned by then: resume with the topic's messages back, or begin a new run"
        )

    def _raise(self, error: Any, partition: int, kafka: Any) -> None:
        where = f"topic {self.topic!r}, partition {partition}, offset {self._offsets.get(partition)}"
        lost = (kafka.KafkaError._AUTO_OFFSET_RESET, kafka.KafkaError.OFFSET_OUT_OF_RANGE)
        if error.code() in _absent(kafka):
            raise self._gone(error)
        if error.code() in lost:
            raise SourceError(f"{where}: the messages from here on are no longer kept ({error}); start a new run")
        raise SourceError(f"{where}: {error}")

    def _place(self) -> object:
        return {"topic": self.topic, "offsets": dict(self._offsets)}

    def _go_to(self, place: dict[str, Any]) -> None:
        if place["topic"] != self.topic:
            raise CheckpointError(f"the run on disk was read from topic {place['topic']!r}, not {self.topic!r}")
        self._offsets = dict(place["offsets"])


def _absent(kafka: Any) -> tuple[int, ...]:
    """Return the codes of a topic or partition that is not there."""
    codes = kafka.KafkaError
    return codes.UNKNOWN_TOPIC_OR_PART, codes._UNKNOWN_TOPIC, codes._UNKNOWN_PARTITION
