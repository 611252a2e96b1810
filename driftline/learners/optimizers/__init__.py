"""Optimizers for learning that never ends, usable in anybody's loop."""

from driftline.learners.optimizers.adam import Adam
from driftline.learners.optimizers.clipping import WeightClipping
from driftline.learners.optimizers.curvature import HesScale
from driftline.learners.optimizers.named import named_optimizer
from driftline.learners.optimizers.obgd import ObGD
from driftline.learners.optimizers.perturbed import Perturbed, PerturbedSGD, ShrinkAndPerturb
from driftline.learners.optimizers.tag import TAG
from driftline.learners.optimizers.upgd import UPGD

__all__ = [
    "TAG",
    "UPGD",
    "Adam",
    "HesScale",
    "ObGD",
    "Perturbed",
    "PerturbedSGD",
    "ShrinkAndPerturb",
    "WeightClipping",
    "named_optimizer",
]
