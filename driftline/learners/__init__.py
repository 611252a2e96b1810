"""Learners, and the parts they are composed of."""

from driftline.learners.base import Learner
from driftline.learners.gradient import GradientLearner
from driftline.learners.replay import ClassBalancedReplay, Replay, ReservoirReplay, SlidingReplay

__all__ = ["ClassBalancedReplay", "GradientLearner", "Learner", "Replay", "ReservoirReplay", "SlidingReplay"]
