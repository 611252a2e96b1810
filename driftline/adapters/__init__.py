"""Adapters: models that adapt at test time, without labels."""

from driftline.adapters.adanpc import AdaNPC
from driftline.adapters.base import Adapter
from driftline.adapters.batch_norm import BatchNormAdapter
from driftline.adapters.collapse_guard import CollapseGuard
from driftline.adapters.cotta import CoTTA
from driftline.adapters.deyo import DeYO
from driftline.adapters.disagreement_guard import DisagreementGuard
from driftline.adapters.drm import DRM
from driftline.adapters.dynamic_evaluation import DynamicEvaluation
from driftline.adapters.eata import EATA, ETA
from driftline.adapters.lame import LAME
from driftline.adapters.low_rank import LOW_RANK, low_rank
from driftline.adapters.mecta import MECTA
from driftline.adapters.model import ModelAdapter
from driftline.adapters.note import NOTE
from driftline.adapters.petta import PeTTA
from driftline.adapters.rdumb import RDumb
from driftline.adapters.real_time import RealTime
from driftline.adapters.rmt import RMT
from driftline.adapters.roid import ROID
from driftline.adapters.rotta import RoTTA
from driftline.adapters.sar import SAR
from driftline.adapters.sliding_window import SlidingWindow
from driftline.adapters.source import Source
from driftline.adapters.t3a import T3A
from driftline.adapters.tent import Tent

__all__ = [
    "DRM",
    "EATA",
    "ETA",
    "LAME",
    "LOW_RANK",
    "MECTA",
    "NOTE",
    "RMT",
    "ROID",
    "SAR",
    "T3A",
    "AdaNPC",
    "Adapter",
    "BatchNormAdapter",
    "CoTTA",
    "CollapseGuard",
    "DeYO",
    "DisagreementGuard",
    "DynamicEvaluation",
    "ModelAdapter",
    "PeTTA",
    "RDumb",
    "RealTime",
    "RoTTA",
    "SlidingWindow",
    "Source",
    "Tent",
    "low_rank",
]
