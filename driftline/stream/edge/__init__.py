"""The loop on an edge device: adapt within a latency and memory budget, for months, and never end up worse."""

from driftline.stream.edge.events import EventLog, read_events
from driftline.stream.edge.exporting import Exported, export, samples_of, served_by
from driftline.stream.edge.fleet import merge
from driftline.stream.edge.floor import Floor
from driftline.stream.edge.loop import AdaptationLoop
from driftline.stream.edge.presets import PRESETS, preset
from driftline.stream.edge.samples import Prediction
from driftline.stream.edge.state import StateStore, roll_back
from driftline.stream.events import Label, Sample

__all__ = [
    "PRESETS",
    "AdaptationLoop",
    "EventLog",
    "Exported",
    "Floor",
    "Label",
    "Prediction",
    "Sample",
    "StateStore",
    "export",
    "merge",
    "preset",
    "read_events",
    "roll_back",
    "samples_of",
    "served_by",
]
