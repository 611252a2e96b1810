"""TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from driftline.errors import ConfigError
from driftline.stream.trackers.base import settings


class TensorBoardTracker:
    """Writes a run's numbers as scalars for TensorBoard, by stream position (needs the 'tensorboard' extra).

    Parameters
    ----------
    path : path
        Folder of the event files; each start adds one.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError("TensorBoard is not installed; pip install 'driftline[tensorboard]'") from None
        self._writer = SummaryWriter(str(path))

    def start(self, record: Mapping[str, object]) -> None:
        """Write what the run was made with, as text."""
        self._writer.add_text("settings", f"```\n{json.dumps(settings(record), indent=1)}\n```")

    def log(self, values: Mapping[str, float], position: int) -> None:
        """Write values."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, position)
        self._writer.flush()

    def finish(self, record: Mapping[str, object]) -> None:
        """Close the file."""
        self._writer.close()
