"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from driftline.errors import ConfigError
from driftline.stream.trackers.base import settings


class WandbTracker:
    """Sends a run's settings and numbers to Weights & Biases, by stream position (needs the 'wandb' extra).

    Parameters
    ----------
    **options
        For ``wandb.init``, such as ``project``, ``mode="offline"``, ``dir``, or ``id`` and ``resume`` to go on with a
        run.
    """

    def __init__(self, **options: object) -> None:
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise ConfigError("Weights & Biases is not installed; pip install 'driftline[wandb]'") from None
        self.options: dict[str, Any] = {"project": "driftline", **options}
        self._run: Any = None

    def start(self, record: Mapping[str, object]) -> None:
        """Begin a run, with what it is made with as its configuration."""
        import wandb

        self._run = wandb.init(name=str(record["name"]), config=settings(record), **self.options)

    def log(self, values: Mapping[str, float], position: int) -> None:
        """Send values."""
        self._run.log(dict(values), step=position)

    def finish(self, record: Mapping[str, object]) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if record["status"] in ("finished", "stopped") else 1)
