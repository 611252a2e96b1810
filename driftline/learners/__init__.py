"""Learners, and the parts they are composed of."""

from driftline.learners.adaptive_replay_ratio import AdaptiveReplayRatio
from driftline.learners.base import Learner
from driftline.learners.gradient import GradientLearner
from driftline.learners.lockstep.stack import in_lockstep
from driftline.learners.losses import squared_error
from driftline.learners.nearest_class_mean import NearestClassMean
from driftline.learners.normalizer import InputNormalizer
from driftline.learners.replay import ClassBalancedReplay, Replay, ReservoirReplay, SlidingReplay
from driftline.learners.replay_ratio import FixedReplayRatio
from driftline.learners.streaming_lda import StreamingLDA
from driftline.learners.task_loss import TaskCrossEntropy
from driftline.learners.td_loss import TDLoss

__all__ = [
    "AdaptiveReplayRatio",
    "ClassBalancedReplay",
    "FixedReplayRatio",
    "GradientLearner",
    "InputNormalizer",
    "Learner",
    "NearestClassMean",
    "Replay",
    "ReservoirReplay",
    "SlidingReplay",
    "StreamingLDA",
    "TDLoss",
    "TaskCrossEntropy",
    "in_lockstep",
    "squared_error",
]
