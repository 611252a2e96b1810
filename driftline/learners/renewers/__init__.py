"""Renewers: parts that change a model after an optimizer step, so that it can go on learning."""

from driftline.learners.renewers.continual_backprop import ContinualBackprop
from driftline.learners.renewers.continual_backprop_layer import ContinualBackpropLayer
from driftline.learners.renewers.layer_reset import LayerReset
from driftline.learners.renewers.plasticity_injection import PlasticityInjection
from driftline.learners.renewers.projection import NormalizeAndProject
from driftline.learners.renewers.redo import ReDo
from driftline.learners.renewers.regrama import ReGraMa
from driftline.learners.renewers.self_normalized_reset import SelfNormalizedReset
from driftline.learners.renewers.sparse_training import SparseTraining
from driftline.learners.renewers.unit_groups import UnitGroup, find_unit_groups

__all__ = [
    "ContinualBackprop",
    "ContinualBackpropLayer",
    "LayerReset",
    "NormalizeAndProject",
    "PlasticityInjection",
    "ReDo",
    "ReGraMa",
    "SelfNormalizedReset",
    "SparseTraining",
    "UnitGroup",
    "find_unit_groups",
]
