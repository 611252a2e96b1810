"""Adapters: models that adapt at test time, without labels."""

from driftline.adapters.base import Adapter
from driftline.adapters.source import Source

__all__ = ["Adapter", "Source"]
