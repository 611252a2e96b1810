"""River, in both directions: driftline's learners as River's estimators, River's models, metrics and data in ours."""

from driftline.interop.river.classifier import RiverClassifier

__all__ = ["RiverClassifier"]
