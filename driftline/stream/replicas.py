"""One stream for each of R runs in lockstep, or one for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from driftline.errors import ConfigError
from driftline.stream.batch import Batch, SegmentInfo
from driftline.stream.stream import Stream


@dataclass(frozen=True, eq=False)
class ReplicaStream:
    """Streams that are played in lockstep: batches have the replicas in front, x (R, B, *input) and y (R, B).

    Parameters
    ----------
    streams : sequence of Stream
        One that all replicas see, or one for each: of the same length, with the same segments, classes and label delay.
    replicas : int
        R.

    Raises
    ------
    ConfigError
        When there are not as many streams as replicas, or they cannot be played in lockstep; says what differs.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.iid(driftline.load("digits"))
    >>> next(ReplicaStream([stream], 3).batches(10)).x.shape
    torch.Size([3, 10, 1, 8, 8])
    """

    streams: Sequence[Stream]
    replicas: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", tuple(self.streams))
        if len(self.streams) not in (1, self.replicas):
            raise ConfigError(f"{len(self.streams)} streams for {self.replicas} replicas; give one for each, or one")
        first = _form(self.streams[0])
        for i, stream in enumerate(self.streams[1:], 1):
            for (what, expected), (_, found) in zip(first.items(), _form(stream).items()):
                if found != expected:
                    raise ConfigError(
                        f"stream {i} cannot be played in lockstep with stream 0: its {what} is {found}, not {expected}"
                    )
        draws = (r.fraction for s in self.streams for segment in s.segments for r in segment.recipes)
        if len(self.streams) > 1 and any(0 < fraction < 1 for fraction in draws):
            raise ConfigError(
                "a label fraction between 0 and 1 is drawn differently for each stream, so labels would arrive at "
                "different steps; share one stream among the replicas"
            )

    def __len__(self) -> int:
        return len(self.streams[0])

    @property
    def name(self) -> str:
        """Name of the scenario."""
        return self.streams[0].name

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; empty for regression."""
        return self.streams[0].classes

    @property
    def device(self) -> torch.device:
        """Where the samples live."""
        return self.streams[0].device

    def replica(self, number: int) -> Stream:
        """Return the stream that one replica sees."""
        return self.streams[number if len(self.streams) > 1 else 0]

    def to(self, device: torch.device | str) -> ReplicaStream:
        """Return the streams with their datasets on ``device``."""
        return ReplicaStream([stream.to(device) for stream in self.streams], self.replicas)

    def nbytes(self) -> int:
        """Bytes that the distinct datasets take."""
        datasets = {id(d): d for stream in self.streams for d in stream.datasets}
        return sum(d.x.numel() * d.x.element_size() for d in datasets.values())

    def infos(self) -> list[SegmentInfo]:
        """The segments, with their positions."""
        return self.streams[0].infos()

    def task_classes(self, number: int) -> Tensor | None:
        """Return which classes occur in a segment, (R, C) bool; see :meth:`Stream.task_classes`."""
        each = [stream.task_classes(number) for stream in self.streams]
        found = [classes for classes in each if classes is not None]
        if len(found) < len(each):
            return None
        return torch.stack(found).expand(self.replicas, -1)

    def batches(
        self,
        batch_size: int = 1,
        start: int = 0,
        device: torch.device | str | None = None,
        until: Callable[[int], int] | None = None,
    ) -> Iterator[Batch]:
        """Yield the batches of all replicas together; see :meth:`Stream.batches`."""
        if len(self.streams) == 1:
            for batch in self.streams[0].batches(batch_size, start, device, until):
                yield self._joined([batch] * self.replicas, shared=True)
            return
        for batches in zip(*(s.batches(batch_size, start, device, until) for s in self.streams)):
            yield self._joined(batches, shared=False)

    def _joined(self, batches: Sequence[Batch], shared: bool) -> Batch:
        first = batches[0]

        def join(tensors: list[Tensor]) -> Tensor:
            return tensors[0].expand(self.replicas, *tensors[0].shape) if shared else torch.stack(tensors)

        x = join([b.x for b in batches])
        y = None if first.y is None else join([b.y for b in batches if b.y is not None])
        return Batch(x, y, first.position, first.segment, first.labelled, self.replicas)

    def due(self, batch: Batch) -> Tensor | None:
        """Return the position at which each label arrives, the same for all replicas."""
        return self.streams[0].due(batch)

    def describe(self) -> dict[str, object]:
        """Return what a record needs to repeat the streams."""
        if len(self.streams) == 1:
            return self.streams[0].describe()
        return {**self.streams[0].describe(), "seed": [stream.seed for stream in self.streams]}


def _form(stream: Stream) -> dict[str, object]:
    """What has to agree for streams to be played together."""
    delays = [sorted({r.delay for r in segment.recipes}) for segment in stream.segments]
    mixed = any(len(d) > 1 for d in delays)
    return {
        "length": len(stream),
        "list of segments": [(info.start, info.stop) for info in stream.infos()],
        "list of classes": stream.classes,
        "label delay": f"mixed within a segment ({id(stream)})" if mixed else delays,
        "label fraction": sorted({r.fraction for segment in stream.segments for r in segment.recipes}),
    }
