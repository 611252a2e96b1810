"""What flows: a batch of samples with its place in the stream."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """Which part of the stream a batch comes from: oracle information, for metrics, records and task-aware learners.

    Parameters
    ----------
    index : int
        Number of the segment, from 0.
    name : str
        Name of the segment.
    start, stop : int
        First position and the one after the last; ``stop`` is None for live data.
    task : int
        Number of the task: segments of one name are one task, numbered from 0 in the order in which they first come.
    """

    index: int
    name: str
    start: int
    stop: int | None
    task: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive samples of one segment.

    Parameters
    ----------
    x : Tensor, shape (B, *input)
        Samples, on the run's device.
    y : Tensor, shape (B,) or (B, *target), optional
        The truth, for metrics; what the *learner* is told, and when, is the stream's label policy. -1 marks
        a sample of a live stream whose truth is unknown; None: no truth at all.
    position : int
        Stream position of the first sample.
    segment : SegmentInfo
        Where the batch comes from.
    labelled : int
        How many samples have a known truth.
    replicas : int, optional
        Number of runs in lockstep; x is then (R, B, *input) and y (R, B, *target).
    ids : tuple, optional
        By which the labels of a live stream's samples come later (None for a sample that has none).
    """

    x: Tensor
    y: Tensor | None
    position: int
    segment: SegmentInfo
    labelled: int
    replicas: int | None = None
    ids: tuple[int | str | None, ...] | None = None

    def __len__(self) -> int:
        return self.x.shape[0 if self.replicas is None else 1]

    def replica(self, number: int) -> Batch:
        """Return one replica's samples."""
        y = None if self.y is None else self.y[number]
        return Batch(self.x[number], y, self.position, self.segment, self.labelled)

    @property
    def stop(self) -> int:
        """Stream position after the last sample."""
        return self.position + len(self)

    @property
    def ends_segment(self) -> bool:
        """Whether this is the last batch of its segment (never for live data)."""
        return self.stop == self.segment.stop
