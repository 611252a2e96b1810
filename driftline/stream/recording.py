"""What surrounds the loop: the record, the series, checkpoints, and resuming from them."""

from __future__ import annotations

import math
import resource
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from driftline.errors import CheckpointError, ConfigError
from driftline.metrics.replicas import ReplicaMetric
from driftline.stream import checkpoint
from driftline.stream.live import LiveStream
from driftline.stream.play import Playback
from driftline.stream.record import FORMAT, RunDirectory, versions, without_nan
from driftline.stream.step import Step

if TYPE_CHECKING:
    from driftline.metrics.base import Point
    from driftline.stream.trackers import Tracker


class Recording:
    """One call of :func:`run`."""

    def __init__(
        self,
        playback: Playback,
        out: str | Path | None,
        until: Callable[[Step], bool] | None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.playback, self.trackers = playback, tuple(trackers)
        self.folder = RunDirectory(out) if out is not None else None
        self.until = until
        self.record: dict[str, object] = {}
        self.series: list[Point] = []
        self.timing: dict[str, object] = {}
        self._recorded = -1
        self._warned = False
        self._resumed = 0
        self._wall = 0.0

    @property
    def samples(self) -> int | None:
        """Length of the stream; None when it is live."""
        stream = self.playback.stream
        return None if isinstance(stream, LiveStream) else len(stream)

    def set_intervals(self, record_every: int | None, checkpoint_every: int | None) -> None:
        """Settle how often values are recorded and checkpoints written."""
        for label, value in (("record_every", record_every), ("checkpoint_every", checkpoint_every)):
            if value is not None and value < 1:
                raise ConfigError(f"{label}={value}: must be at least 1 sample")
        samples = self.samples
        self.record_every = record_every or (max(1, samples // 200) if samples else 1000)
        self.checkpoint_every = checkpoint_every or (max(1, samples // 10) if samples else 10_000)
        self.playback.stops = (self.record_every, self.checkpoint_every)

    def describe(self, name: str | None, seed: int, about: Mapping[str, object]) -> None:
        """Begin the record with everything needed to repeat the run."""
        playback = self.playback
        learner = playback.learner.describe()
        stream = playback.stream
        place = None if isinstance(stream, LiveStream) else stream.device
        device = playback.device or place or "cpu"
        self.record = {
            "format": FORMAT,
            "name": name or str(learner["name"]),
            "status": "running",
            "error": None,
            "scenario": stream.describe(),
            "learner": learner,
            "protocol": {
                "batch_size": playback.batch_size,
                "seed": seed,
                "record_every": self.record_every,
                "checkpoint_every": self.checkpoint_every,
                "device": _device_name(torch.device(device)),
                # Random transforms draw where the data is, which depends on what fits.
                "data_device": None if place is None else place.type,
                "chunk": playback.chunk,
                "reset": playback.reset,
                "normalization": self._normalization(),
                "metrics": [m.describe() for m in playback.metrics],
            },
            "weights": {"start": self._weights(), "end": None},
            "versions": versions(),
            "position": 0,
            "results": {},
            "definitions": {},
            "warnings": [],
            **about,
        }

    def _weights(self) -> str | None:
        from driftline.weights import weights_hash

        network = self.playback.learner.network()
        return weights_hash(network) if network is not None else None

    def _normalization(self) -> list[dict[str, object]] | None:
        """Return how the model normalises its input, where it says so."""
        from driftline.weights import Normalize

        network = self.playback.learner.network()
        found = [m for m in network.modules() if isinstance(m, Normalize)] if network is not None else []
        return [{"mean": m.mean.flatten().tolist(), "std": m.std.flatten().tolist()} for m in found] or None

    def open(self, resume: bool, overwrite: bool) -> None:
        """Begin a new folder, or go on with the run in it; then begin to track."""
        self._open(resume, overwrite)
        for tracker in self.trackers:
            tracker.start(self.record)

    def _open(self, resume: bool, overwrite: bool) -> None:
        if self.folder is None:
            if resume:
                raise ConfigError("resume=True needs out=, the folder of the run to continue")
            return
        if resume:
            self._resume(self.folder)
            return
        self.folder.create(self.record, overwrite)
        self._checkpoint()

    def _resume(self, folder: RunDirectory) -> None:
        saved = folder.read_record()
        for part in ("scenario", "learner", "protocol", "replicas"):
            if part in saved or part in self.record:
                _check_same(part, _without_results(saved.get(part)), _without_results(self.record.get(part)))
        state = checkpoint.load(folder.checkpoint)
        self.playback.load_state_dict(cast(Mapping[str, object], state["playback"]))
        self.series = folder.reopen(cast(int, state["series_bytes"]))
        self._recorded = cast(int, state["recorded"])
        self.record["weights"] = {**cast(dict[str, object], saved["weights"]), "end": None}
        self.record["warnings"] = list(cast(list[str], state["warnings"]))
        self._warned = bool(self.record["warnings"])
        timing = folder.read_timing()
        self._wall = float(cast(float, timing.get("wall_seconds", 0.0)))
        self._resumed = int(cast(int, timing.get("resumed", 0))) + 1
        torch.set_rng_state(cast(Tensor, state["rng"]))
        if state["cuda_rng"] is not None and self._cuda is not None:
            torch.cuda.set_rng_state(cast(Tensor, state["cuda_rng"]), self._cuda)

    @property
    def _cuda(self) -> torch.device | None:
        device = torch.device(self.playback.device or "cpu")
        return device if device.type == "cuda" else None

    def _checkpoint(self) -> None:
        assert self.folder is not None
        state: dict[str, object] = {
            "playback": self.playback.state_dict(),
            "series_bytes": self.folder.sync(),
            "recorded": self._recorded,
            "warnings": list(cast(list[str], self.record["warnings"])),
            "rng": torch.get_rng_state(),
            "cuda_rng": None if self._cuda is None else torch.cuda.get_rng_state(self._cuda),
        }
        checkpoint.save(self.folder.checkpoint, state)
        self._time()

    def drain(self, show: Callable[[int], None], interrupt: list[int]) -> bool:
        """Play until the end, or until told to stop; return whether the end was reached."""
        before = self.playback.position
        self._clock = time.perf_counter()
        record_every, checkpoint_every, until = self.record_every, self.checkpoint_every, self.until
        saves = self.folder is not None
        for step in self.playback:
            position = step.position
            if position // record_every > before // record_every:
                self._note(step)
                show(position)
            if saves and position // checkpoint_every > before // checkpoint_every:
                self._checkpoint()
            before = position
            if interrupt or (until is not None and until(step)):
                return self.samples == position
        return True

    def _note(self, step: Step | None) -> None:
        """Record the metrics' values as they are now."""
        position = self.playback.position
        if position == self._recorded:
            return
        self._recorded = position
        points = [p for metric in self.playback.metrics for p in metric.points(position) if not math.isnan(p[2])]
        self.series.extend(points)
        if self.folder is not None:
            self.folder.append(points)
        by_position: dict[int, dict[str, float]] = {}
        for at, name, value in points:
            by_position.setdefault(at, {})[name] = value
        for tracker in self.trackers:
            for at, values in by_position.items():
                tracker.log(values, at)
        if step is not None and step.prediction is not None and not self._warned:
            # Of the latest sample: a learner that has diverged does not come back.
            latest = step.prediction.select(0 if step.batch.replicas is None else 1, -1)
            self._warned = not math.isfinite(float(latest.cpu().numpy().max(-1).sum()))
            if self._warned:
                text = f"scores are NaN or Inf at position {position}: the learner has diverged; lower its step size"
                cast(list[str], self.record["warnings"]).append(text)
                warnings.warn(text, RuntimeWarning, stacklevel=4)

    def close(self, status: str, error: str | None, save: bool) -> None:
        """Record the end of the run, however it ended."""
        if save and self.folder is not None:
            # Before the last values are recorded: a resumed run goes on as if it had never stopped.
            self._checkpoint()
        if self.playback.position:
            self._note(None)
        metrics = self.playback.metrics
        values = {name: value for m in metrics for name, value in m.value().items()}
        weights = cast(dict[str, object], self.record["weights"])
        self.record |= {
            "status": status,
            "error": error,
            "weights": {**weights, "end": self._weights()},
            "position": self.playback.position,
            "results": without_nan(values),
            "definitions": {name: text for m in metrics for name, text in m.definitions.items()},
        }
        if isinstance(self.playback.stream, LiveStream):
            self.record["source"] = self.playback.stream.notes()
        each = {name: own for m in metrics if isinstance(m, ReplicaMetric) for name, own in m.values().items()}
        if each:
            replicas = cast(dict[str, object], self.record.get("replicas", {}))
            results = {name: [v if math.isfinite(v) else None for v in own] for name, own in each.items()}
            self.record["replicas"] = {**replicas, "results": results}
        self._time()
        if self.folder is not None:
            self.folder.write_record(self.record)
            self.folder.close()
        for tracker in self.trackers:
            tracker.finish(self.record)

    def abandon(self) -> None:
        """Leave the record as it is: it cannot be written."""
        if self.folder is not None:
            self.folder.close()

    def _time(self) -> None:
        wall = self._wall + (time.perf_counter() - self._clock if hasattr(self, "_clock") else 0.0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        self.timing = {
            "wall_seconds": wall,
            "samples_per_second": self.playback.position / wall if wall else None,
            "peak_memory_bytes": peak,
            "peak_device_memory_bytes": torch.cuda.max_memory_allocated(self._cuda) if self._cuda else None,
            "resumed": self._resumed,
            **without_nan({name: v for m in self.playback.metrics for name, v in m.timing().items()}),
        }
        if self.folder is not None:
            self.folder.write_timing(self.timing)


def _without_results(part: object) -> object:
    """What a run was made with, of an entry that also says what came out."""
    return {k: v for k, v in part.items() if k != "results"} if isinstance(part, dict) else part


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _check_same(part: str, saved: object, here: object) -> None:
    """Raise if the run on disk was made with other settings, naming the first difference."""
    if saved == here:
        return
    if isinstance(saved, dict) and isinstance(here, dict):
        for key in [*saved, *here]:
            _check_same(f"{part}.{key}", saved.get(key), here.get(key))
    raise CheckpointError(f"the run on disk has {part} = {saved!r}, this one {here!r}; resume with the same settings")
