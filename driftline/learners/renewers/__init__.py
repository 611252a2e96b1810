"""Renewers: parts that change a model after an optimizer step, so that it can go on learning."""

from driftline.learners.renewers.continual_backprop import ContinualBackprop
from driftline.learners.renewers.continual_backprop_layer import ContinualBackpropLayer
from driftline.learners.renewers.projection import NormalizeAndProject
from driftline.learners.renewers.unit_groups import UnitGroup, find_unit_groups

__all__ = ["ContinualBackprop", "ContinualBackpropLayer", "NormalizeAndProject", "UnitGroup", "find_unit_groups"]
