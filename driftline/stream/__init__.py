"""The runtime: what flows, in which order, when labels come, the loop and its checkpoints."""

from driftline.stream.batch import Batch, SegmentInfo
from driftline.stream.dataset import Dataset
from driftline.stream.events import Label, Sample
from driftline.stream.join import concatenate, interleave
from driftline.stream.live import LiveStream, from_iterable
from driftline.stream.recipe import NEVER, Recipe, Transform
from driftline.stream.replicas import ReplicaStream
from driftline.stream.scenario import OwnDataScenario, Scenario, scenario
from driftline.stream.segment import Segment
from driftline.stream.stream import Stream, concatenate_streams

__all__ = [
    "NEVER",
    "Batch",
    "Dataset",
    "Label",
    "LiveStream",
    "OwnDataScenario",
    "Recipe",
    "ReplicaStream",
    "Sample",
    "Scenario",
    "Segment",
    "SegmentInfo",
    "Stream",
    "Transform",
    "concatenate",
    "concatenate_streams",
    "from_iterable",
    "interleave",
    "scenario",
]
