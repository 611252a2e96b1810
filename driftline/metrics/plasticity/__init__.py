"""Plasticity: metrics that measure it while a stream is played, and the definitions that they go by."""

from driftline.metrics.plasticity.metric import QUANTITIES, Plasticity
from driftline.metrics.plasticity.probe_task import ProbePlasticity
from driftline.metrics.plasticity.sharpness import Sharpness, hessian_product, top_eigenvalue
from driftline.metrics.plasticity.trainability import Slope, Trainability, slope
from driftline.plasticity.ranks import (
    approximate_rank,
    effective_rank,
    singular_values,
    srank,
    stable_rank,
)
from driftline.plasticity.units import (
    active_units,
    dead_units,
    dormant_units,
    rarely_active_units,
    redo_score,
)
from driftline.plasticity.weights import (
    gradient_norm,
    matrices,
    nonzero_share,
    sample_plasticity,
    total_norm,
    update_norm,
    weight_magnitude,
    weight_rank,
)

__all__ = [
    "QUANTITIES",
    "Plasticity",
    "ProbePlasticity",
    "Sharpness",
    "Slope",
    "Trainability",
    "active_units",
    "approximate_rank",
    "dead_units",
    "dormant_units",
    "effective_rank",
    "gradient_norm",
    "hessian_product",
    "matrices",
    "nonzero_share",
    "rarely_active_units",
    "redo_score",
    "sample_plasticity",
    "singular_values",
    "slope",
    "srank",
    "stable_rank",
    "top_eigenvalue",
    "total_norm",
    "update_norm",
    "weight_magnitude",
    "weight_rank",
]
