"""Adapters: models that adapt at test time, without labels."""

from driftline.adapters.base import Adapter

__all__ = ["Adapter"]
