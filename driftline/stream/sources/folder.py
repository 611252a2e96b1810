"""A directory watched for new images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from driftline.errors import ConfigError, SourceError
from driftline.stream.events import Sample
from driftline.stream.sources.base import Bad, RecordSource

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp")


class ImageFolderSource(RecordSource):
    """Images as they appear in a directory, the oldest first (needs pillow, in the 'vision' extra).

    Parameters
    ----------
    path : path
        The directory, searched with its subdirectories.
    size : (int, int)
        Height and width that images are brought to.
    label : callable, optional
        ``label(path) -> class index`` or None where it is not known. The file's path below ``path`` is the sample's id,
        by which a :class:`driftline.stream.Label` may come later.
    channels : 1 or 3
        Grey or colour.
    bad : "raise", "skip" or "give"
        See :class:`RecordSource`.
    settle : float
        Seconds for which a file must not have changed: until then it may still be being written.
    poll : float
        Seconds between looks.
    idle : float, optional
        Stop when so many seconds have brought nothing new; None: never.

    Notes
    -----
    The place is the names of the files seen; those deleted since are forgotten.
    """

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int],
        label: Callable[[Path], int | None] | None = None,
        *,
        channels: int = 3,
        bad: Bad = "raise",
        settle: float = 1.0,
        poll: float = 0.5,
        idle: float | None = None,
    ) -> None:
        super().__init__(self._image, bad)
        if channels not in (1, 3) or min(size) < 1:
            raise ConfigError(f"size={size}, channels={channels}: must be at least 1x1, with 1 or 3 channels")
        self.path, self.size, self.channels, self.label = Path(path), size, channels, label
        self.settle, self.poll, self.idle = settle, poll, idle
        self._seen: set[str] = set()

    def _records(self) -> Iterator[tuple[str, Path]]:
        quiet_since = time.monotonic()
        while True:
            new, unsettled = self._new()
            for name, file in new:
                self._seen.add(name)
                yield str(file), file
            now = time.monotonic()
            if new or unsettled:
                quiet_since = now
            elif self.idle is not None and now - quiet_since >= self.idle:
                return
            if not new:
                time.sleep(self.poll)

    def _new(self) -> tuple[list[tuple[str, Path]], bool]:
        """Return the new files in the order of their age, and whether there are others still being written."""
        if not self.path.is_dir():
            raise SourceError(f"there is no directory {self.path}")
        found: dict[str, tuple[int, Path]] = {}
        for file in self.path.rglob("*"):
            if file.suffix.lower() in IMAGES:
                try:
                    found[file.relative_to(self.path).as_posix()] = file.stat().st_mtime_ns, file
                except FileNotFoundError:
                    continue
        self._seen &= found.keys()
        new = {name: entry for name, entry in found.items() if name not in self._seen}
        latest = time.time_ns() - int(self.settle * 1e9)
        ready = sorted((changed, name, file) for name, (changed, file) in new.items() if changed <= latest)
        return [(name, file) for _, name, file in ready], len(ready) < len(new)

    def _image(self, file: Path) -> Sample:
        try:
            from PIL import Image
        except ImportError:
            raise ConfigError("images need pillow; pip install 'driftline[vision]'") from None
        with Image.open(file) as image:
            resized = image.convert("L" if self.channels == 1 else "RGB").resize(self.size[::-1])
        x = np.asarray(resized).reshape(*self.size, self.channels).transpose(2, 0, 1).copy()
        y = None if self.label is None else self.label(file)
        return Sample(x, y, file.relative_to(self.path).as_posix())

    def _place(self) -> object:
        return sorted(self._seen)

    def _go_to(self, place: list[str]) -> None:
        self._seen = set(place)
