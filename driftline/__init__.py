"""driftline: continual and test-time adaptation on streams."""

from driftline import activations, adapters, data, learners, metrics, models, scenarios, weights
from driftline.data import load
from driftline.diagnosis import Diagnosis, diagnose
from driftline.stream import Dataset, Segment, Stream, concatenate, from_iterable, interleave, scenario
from driftline.stream.play import play
from driftline.stream.run import Report, run

__version__ = "0.1.0"

__all__ = [
    "Dataset",
    "Diagnosis",
    "Report",
    "Segment",
    "Stream",
    "activations",
    "adapters",
    "concatenate",
    "data",
    "diagnose",
    "from_iterable",
    "interleave",
    "learners",
    "load",
    "metrics",
    "models",
    "play",
    "run",
    "scenario",
    "scenarios",
    "weights",
]
