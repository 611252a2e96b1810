"""How the loop is: counters, and quantiles of the latency in memory that does not grow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch

from driftline.errors import CheckpointError
from driftline.stream.edge.memory import major_faults, resident

COUNTERS = {
    "predictions": "samples answered",
    "late": "answers that took longer than the latency budget",
    "served_shipped": "answers by the shipped model",
    "damaged": "samples that could not be used, answered by an error",
    "dropped": "items of the source dropped on overload",
    "adaptations": "adaptations",
    "adapted_samples": "samples adapted to",
    "skipped_samples": "samples collected but not adapted to, for want of time or memory",
    "adapt_failures": "adaptations that failed",
    "predict_failures": "predictions by the adapted model that failed or were not finite",
    "out_of_memory": "adaptations for which there was no memory",
    "rollbacks": "returns to a good state or the shipped model, by whatever cause",
    "feedback": "labels that came back",
    "feedback_unknown": "labels of samples not known (any more), or that are no class",
    "drift_alarms": "alarms of the drift detector",
    "source_failures": "times that the source raised",
    "stalls": "times that the source gave nothing for long",
    "sink_dropped": "predictions that the receiver was too slow for",
    "sink_failures": "predictions for which the receiver raised",
    "checkpoints": "states written",
    "checkpoint_failures": "states that could not be written",
}
"""What is counted, from the first start on."""

SMALLEST, RATIO, BUCKETS = 1e-5, 1.05, 340


class Latency:
    """Quantiles of durations from counts in buckets, each 5 % wider than the one before: 10 microseconds to 160 s.

    Examples
    --------
    >>> latency = Latency()
    >>> for i in range(100):
    ...     latency.add(0.001 if i < 99 else 0.5)
    >>> f"{latency.quantile(0.5):.4f} {latency.quantile(0.999):.2f} {latency.largest}"
    '0.0010 0.50 0.5'
    """

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.largest = 0.0

    def add(self, seconds: float) -> None:
        """Note a duration."""
        bucket = math.ceil(math.log(max(seconds, SMALLEST) / SMALLEST) / math.log(RATIO) - 1e-9)
        self.counts[min(bucket, BUCKETS - 1)] += 1
        self.largest = max(self.largest, seconds)

    def quantile(self, share: float) -> float:
        """Return the duration that this share of all does not exceed, at most 5 % too large; NaN before the first."""
        total = sum(self.counts)
        reached = 0
        for bucket, count in enumerate(self.counts):
            reached += count
            if count and reached >= share * total:
                return min(SMALLEST * RATIO**bucket, self.largest)
        return math.nan


class Health:
    """Counters (see :data:`COUNTERS`) and latency, of all time and since the last report.

    Attributes
    ----------
    counts : dict of str to int
        By name.
    latency : Latency
        Since the loop was started.
    """

    def __init__(self) -> None:
        self.counts = dict.fromkeys(COUNTERS, 0)
        self.latency, self.recent = Latency(), Latency()

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""
        self.counts[name] += by

    def answered(self, seconds: float, late: bool) -> None:
        """Note an answer and its latency in seconds."""
        self.counts["predictions"] += 1
        self.counts["late"] += late
        self.latency.add(seconds)
        self.recent.add(seconds)

    def report(self) -> dict[str, object]:
        """Return counters, milliseconds since the last report and memory (JSON values), and begin the next."""
        recent, self.recent = self.recent, Latency()
        quantiles = {"p50_ms": recent.quantile(0.5), "p99_ms": recent.quantile(0.99), "max_ms": recent.largest}
        known = {name: None if math.isnan(v) else round(1000 * v, 3) for name, v in quantiles.items()}
        return {**self.counts, **known, "resident": resident(), "major_faults": major_faults()}

    def state_dict(self) -> dict[str, object]:
        """Return the counters."""
        return dict(self.counts)

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Count on.

        Raises
        ------
        CheckpointError
            When a count is none.
        """
        for name, value in state.items():
            if not isinstance(value, int):
                raise CheckpointError(f"the state counts {value!r} {name}")
        # Counters of another version are left out.
        self.counts.update({name: cast(int, state[name]) for name in self.counts if name in state})


def uncertainty(scores: torch.Tensor) -> float:
    """Return 1 - the probability of the likeliest class, of scores (classes,)."""
    return 1.0 - float(torch.softmax(scores, 0).max())
