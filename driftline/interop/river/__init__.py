"""River, in both directions: driftline's learners as River's estimators, River's models, metrics and data in ours."""

from driftline.interop.river.classifier import RiverClassifier
from driftline.interop.river.data import stream
from driftline.interop.river.drift import DriftResponse
from driftline.interop.river.learner import RiverLearner
from driftline.interop.river.metric import RiverMetric
from driftline.interop.river.replay_more import ReplayMore
from driftline.interop.river.switching import SwitchingAdapter

__all__ = [
    "DriftResponse",
    "ReplayMore",
    "RiverClassifier",
    "RiverLearner",
    "RiverMetric",
    "SwitchingAdapter",
    "stream",
]
