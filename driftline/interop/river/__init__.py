"""River, in both directions: driftline's learners as River's estimators, River's models, metrics and data in ours."""

from driftline.interop.river.classifier import RiverClassifier
from driftline.interop.river.data import stream
from driftline.interop.river.drift import DriftResponse, ReplayMore, SwitchingAdapter
from driftline.interop.river.learner import RiverLearner
from driftline.interop.river.metric import RiverMetric

__all__ = [
    "DriftResponse",
    "ReplayMore",
    "RiverClassifier",
    "RiverLearner",
    "RiverMetric",
    "SwitchingAdapter",
    "stream",
]
