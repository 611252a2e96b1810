"""Plasticity: metrics that measure it while a stream is played, and the definitions that they go by."""

from driftline import plasticity
from driftline.metrics.plasticity.metric import QUANTITIES, Plasticity
from driftline.metrics.plasticity.probe_task import ProbePlasticity
from driftline.metrics.plasticity.sharpness import Sharpness, hessian_product, top_eigenvalue
from driftline.metrics.plasticity.trainability import Slope, Trainability, slope
from driftline.plasticity import *  # noqa: F403

__all__ = [
    "QUANTITIES",
    "Plasticity",
    "ProbePlasticity",
    "Sharpness",
    "Slope",
    "Trainability",
    "hessian_product",
    "slope",
    "top_eigenvalue",
]
__all__ += plasticity.__all__
