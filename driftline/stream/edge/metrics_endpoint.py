"""The loop's health as Prometheus reads it (needs the ``edge`` extra)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from driftline.errors import ConfigError
from driftline.stream.edge.health import COUNTERS
from driftline.stream.edge.memory import major_faults, resident

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from driftline.stream.edge.loop import AdaptationLoop

QUANTILES = (0.5, 0.9, 0.99)


class Collector:
    """Gives counters, latency quantiles, memory and the age of the last checkpoint, as they are when asked.

    Parameters
    ----------
    loop : AdaptationLoop
        Whose.
    """

    def __init__(self, loop: AdaptationLoop) -> None:
        self.loop = loop

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        health = self.loop.health
        for name, about in COUNTERS.items():
            yield CounterMetricFamily(f"driftline_{name}", about, value=health.counts[name])
        yield CounterMetricFamily("driftline_major_faults", "waits for a page from the disk", value=major_faults())
        latency = GaugeMetricFamily(
            "driftline_latency_seconds", "seconds to an answer, since the start", labels=["quantile"]
        )
        for share in QUANTILES:
            latency.add_metric([str(share)], health.latency.quantile(share))
        yield latency
        gauges = {
            "checkpoint_age_seconds": ("seconds since a state was written", self.loop.checkpoint_age),
            "slowest_write_seconds": ("seconds that the slowest write of a state took", self.loop.slowest_write),
            "serving_adapted": ("1 while the adapted model answers", float(self.loop.floor.adapted)),
            "resident_bytes": ("memory that the process has", float(resident())),
            "position": ("items of the source that are dealt with", float(self.loop.position)),
        }
        for name, (about, value) in gauges.items():
            yield GaugeMetricFamily(f"driftline_{name}", about, value=value)


def serve_metrics(loop: AdaptationLoop, port: int, address: str = "127.0.0.1") -> int:
    """Answer Prometheus at ``http://address:port/metrics`` from a thread, until the process ends.

    Parameters
    ----------
    loop : AdaptationLoop
        Whose health.
    port : int
        0: any that is free.
    address : str
        Where to listen; the default answers on this machine only.

    Returns
    -------
    int
        The port.

    Raises
    ------
    ConfigError
        Without the ``edge`` extra, or when the port is taken.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise ConfigError("the metrics endpoint needs prometheus-client: pip install 'driftline[edge]'") from error
    registry = CollectorRegistry()
    registry.register(Collector(loop))
    try:
        server, _ = start_http_server(port, address, registry)
    except OSError as error:
        raise ConfigError(f"cannot listen at {address}:{port}: {error.strerror}; choose another port") from error
    return int(server.server_port)
