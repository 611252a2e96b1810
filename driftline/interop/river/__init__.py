"""River, in both directions: driftline's learners as River's estimators, River's models, metrics and data in ours."""

from driftline.interop.river.classifier import RiverClassifier
from driftline.interop.river.learner import RiverLearner
from driftline.interop.river.metric import RiverMetric

__all__ = ["RiverClassifier", "RiverLearner", "RiverMetric"]
