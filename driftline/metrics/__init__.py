"""Metrics, measured while the stream runs."""

from driftline.metrics.base import Metric
from driftline.metrics.held_out import HeldOut
from driftline.metrics.near_future import BlindAccuracy, NearFutureAccuracy
from driftline.metrics.online import OnlineAccuracy
from driftline.metrics.online_error import OnlineError
from driftline.metrics.plasticity import Plasticity

__all__ = ["BlindAccuracy", "HeldOut", "Metric", "NearFutureAccuracy", "OnlineAccuracy", "OnlineError", "Plasticity"]
