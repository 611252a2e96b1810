"""The loop on an edge device: adapt within a latency and memory budget, for months, and never end up worse."""

from driftline.stream.edge.events import EventLog, read_events
from driftline.stream.edge.fleet import merge
from driftline.stream.edge.floor import Floor
from driftline.stream.edge.loop import AdaptationLoop
from driftline.stream.edge.presets import PRESETS, preset
from driftline.stream.edge.samples import Feedback, Prediction, Sample
from driftline.stream.edge.state import StateStore, roll_back

__all__ = [
    "PRESETS",
    "AdaptationLoop",
    "EventLog",
    "Feedback",
    "Floor",
    "Prediction",
    "Sample",
    "StateStore",
    "merge",
    "preset",
    "read_events",
    "roll_back",
]
