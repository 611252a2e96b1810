"""Where a run's numbers go besides its record: for ``driftline.run(..., trackers=[...])``."""

from driftline.stream.trackers.base import Tracker
from driftline.stream.trackers.mlflow import MLflowTracker
from driftline.stream.trackers.named import tracker
from driftline.stream.trackers.tensorboard import TensorBoardTracker
from driftline.stream.trackers.wandb import WandbTracker

__all__ = ["MLflowTracker", "TensorBoardTracker", "Tracker", "WandbTracker", "tracker"]
