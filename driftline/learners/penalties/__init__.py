"""Penalties: terms that a learner adds to its loss, or pulls that it makes after each step."""

from driftline.learners.penalties.base import Penalty
from driftline.learners.penalties.center_loss import CenterLoss
from driftline.learners.penalties.effective_rank import EffectiveRank
from driftline.learners.penalties.ewc import OnlineEWC
from driftline.learners.penalties.l2 import L2, L2Init
from driftline.learners.penalties.mas import MAS
from driftline.learners.penalties.orthogonal import Orthogonal
from driftline.learners.penalties.rwalk import RWalk
from driftline.learners.penalties.si import SynapticIntelligence
from driftline.learners.penalties.spectral import SpectralRegularization
from driftline.learners.penalties.wasserstein import WassersteinRegularization

__all__ = [
    "L2",
    "MAS",
    "CenterLoss",
    "EffectiveRank",
    "L2Init",
    "OnlineEWC",
    "Orthogonal",
    "Penalty",
    "RWalk",
    "SpectralRegularization",
    "SynapticIntelligence",
    "WassersteinRegularization",
]
