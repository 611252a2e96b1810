"""Metrics, measured while the stream runs."""

from driftline.metrics.base import Metric
from driftline.metrics.calibration import Calibration
from driftline.metrics.cost import AdaptationCost
from driftline.metrics.critic_error import CriticError
from driftline.metrics.domain_error import DomainError
from driftline.metrics.held_out import HeldOut
from driftline.metrics.near_future import BlindAccuracy, NearFutureAccuracy
from driftline.metrics.online import OnlineAccuracy
from driftline.metrics.online_error import OnlineError
from driftline.metrics.plasticity import Plasticity, ProbePlasticity, Sharpness, Trainability
from driftline.metrics.rollbacks import Rollbacks
from driftline.metrics.source_error import SourceError

__all__ = [
    "AdaptationCost",
    "BlindAccuracy",
    "Calibration",
    "CriticError",
    "DomainError",
    "HeldOut",
    "Metric",
    "NearFutureAccuracy",
    "OnlineAccuracy",
    "OnlineError",
    "Plasticity",
    "ProbePlasticity",
    "Rollbacks",
    "Sharpness",
    "SourceError",
    "Trainability",
]
