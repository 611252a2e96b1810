"""Adapters: models that adapt at test time, without labels."""

from driftline.adapters.base import Adapter
from driftline.adapters.batch_norm import BatchNormAdapter
from driftline.adapters.model import ModelAdapter
from driftline.adapters.real_time import RealTime
from driftline.adapters.source import Source
from driftline.adapters.tent import Tent

__all__ = ["Adapter", "BatchNormAdapter", "ModelAdapter", "RealTime", "Source", "Tent"]
