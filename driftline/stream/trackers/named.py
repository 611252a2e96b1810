"""Trackers that a command line can name, such as ``tensorboard:logs``."""

from __future__ import annotations

from driftline.errors import ConfigError, unknown
from driftline.stream.trackers.base import Tracker
from driftline.stream.trackers.mlflow import MLflowTracker
from driftline.stream.trackers.tensorboard import TensorBoardTracker
from driftline.stream.trackers.wandb import WandbTracker

TRACKERS = ("tensorboard", "mlflow", "wandb")


def tracker(address: str) -> Tracker:
    """Return a tracker by name.

    Parameters
    ----------
    address : str
        ``tensorboard:FOLDER``; ``mlflow`` or ``mlflow:URI`` (of the server or store; else where MLflow's own settings
        say); ``wandb`` or ``wandb:PROJECT`` (``WANDB_MODE=offline`` keeps it here).

    Raises
    ------
    ConfigError
        For another name, TensorBoard without a folder, or a library that is not installed.

    Examples
    --------
    >>> tracker("tensorboard")
    Traceback (most recent call last):
        ...
    driftline.errors.ConfigError: tensorboard: where to? Give a folder, as in tensorboard:logs
    """
    name, _, place = address.partition(":")
    if name == "tensorboard":
        if not place:
            raise ConfigError("tensorboard: where to? Give a folder, as in tensorboard:logs")
        return TensorBoardTracker(place)
    if name == "mlflow":
        return MLflowTracker(place or None)
    if name == "wandb":
        return WandbTracker(**({"project": place} if place else {}))
    raise unknown("tracker", name, TRACKERS)
