"""Metrics, measured while the stream runs."""

from driftline.metrics.base import Metric
from driftline.metrics.held_out import HeldOut
from driftline.metrics.near_future import BlindAccuracy, NearFutureAccuracy
from driftline.metrics.online import OnlineAccuracy

__all__ = ["BlindAccuracy", "HeldOut", "Metric", "NearFutureAccuracy", "OnlineAccuracy"]
