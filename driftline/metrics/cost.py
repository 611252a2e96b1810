"""What meeting a batch costs, in forward passes, time and memory."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ClassVar, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from driftline.errors import ConfigError
from driftline.metrics.base import Metric
from driftline.stream.live import LiveStream
from driftline.stream.step import Step
from driftline.stream.stream import Stream


class AdaptationCost(Metric):
    """Forward and backward passes per sample, time and memory of adapting (or learning).

    At one step in ``every``, the arithmetic of all matrix products, convolutions and attentions is counted, whichever
    models, copies and functions it takes place in, and set against that of a bare ``predict`` of the same batch: 3
    passes through a copy of the network are 3 forwards, and one through its first half is 0.5. A backward pass that
    trains all weights costs 2 forwards, one that passes through to normalisation layers only about 1. At another step
    in ``every`` the time is taken. Nothing is left behind in any module.

    Parameters
    ----------
    every : int, at least 2
        Steps between two that are counted. The default is prime, so that a method that does more at every 10th or 64th
        step is seen doing so in proportion.

    Attributes
    ----------
    times : dict of str to float
        As in :meth:`timing`.

    Raises
    ------
    ConfigError
        When ``every`` is below 2.

    Notes
    -----
    Other operations are not counted (normalisation, augmentation, recurrent layers in one kernel), nor are kernels in C
    or compiled steps of learners. Where nothing can be counted the values are NaN. Times and memory are kept apart from
    the record, which would otherwise differ between runs. Waits for the device at the steps where time is taken.

    Examples
    --------
    >>> import torch, driftline
    >>> from driftline.adapters import Source
    >>> from driftline.metrics import AdaptationCost
    >>> stream = driftline.scenarios.iid(driftline.load("digits"))
    >>> model = driftline.models.mlp(stream.input_shape, 10)
    >>> for step in driftline.play(stream, Source(model), batch_size=50, metrics=[AdaptationCost()]):
    ...     pass
    >>> step.metrics()
    {'adapt_forwards': 1.0, 'adapt_backwards': 0.0, 'adapted_share': 1.0}
    """

    surrounds: ClassVar[bool] = True
    definitions: ClassVar[Mapping[str, str]] = {
        "adapt_forwards": "arithmetic outside of backward passes per sample, in bare predictions of one sample",
        "adapt_backwards": "arithmetic of backward passes per sample, in bare predictions of one sample",
        "adapted_share": "share of batches adapted to; below 1 where an adapter had no time for all",
    }

    def __init__(self, every: int = 7) -> None:
        if every < 2:
            raise ConfigError(
                f"every={every}: must be at least 2 steps, since time is taken at other steps than counted"
            )
        self.every = every
        self._steps = self._adapted = 0
        self._forward = self._backward = self._bare = 0
        self._samples = 0
        self._seconds = self._bare_seconds = 0.0
        self._memory = self._peak = 0

    def begin(self, stream: Stream | LiveStream, batch_size: int) -> None:
        """Note the memory in use."""
        self._peak = _peak_memory()

    def cuts(self, position: int, batch_size: int) -> int | None:
        """See each batch apart."""
        return position + batch_size

    def around(self, step: Step) -> AbstractContextManager[object]:
        """Count, or take the time, where it is due."""
        turn = self._steps % self.every
        return self._count(step) if turn == 0 else self._time(step) if turn == 1 else nullcontext()

    @contextmanager
    def _count(self, step: Step) -> Iterator[None]:
        with Arithmetic() as bare:
            step.learner.predict(step.batch.x)
        with Arithmetic() as found:
            yield
        self._bare += bare.forward
        self._forward += found.forward
        self._backward += found.backward

    @contextmanager
    def _time(self, step: Step) -> Iterator[None]:
        device = step.batch.x.device
        cuda = device.type == "cuda"
        start = _now(device)
        step.learner.predict(step.batch.x)
        between = _now(device)
        held = torch.cuda.memory_allocated(device) if cuda else 0
        yield
        self._seconds += _now(device) - between
        self._bare_seconds += between - start
        self._samples += len(step.batch)
        if cuda:
            self._memory = max(self._memory, torch.cuda.max_memory_allocated(device) - held)

    def update(self, step: Step) -> None:
        """Count the step."""
        self._steps += 1
        self._adapted += bool(getattr(step.learner, "adapted", True))

    def value(self) -> dict[str, float]:
        """Return ``adapt_forwards`` and ``adapt_backwards`` per sample, and ``adapted_share`` in [0, 1]."""
        return {
            "adapt_forwards": _ratio(self._forward, self._bare),
            "adapt_backwards": _ratio(self._backward, self._bare),
            "adapted_share": _ratio(self._adapted, self._steps),
        }

    def timing(self) -> dict[str, float]:
        """Return times and memory since the run began or was resumed (NaN: not measured).

        Seconds per sample of adapting and of a bare prediction, their ratio, the growth of the process's peak memory
        in bytes, and, on a CUDA device, how far the allocations' peak lies above what is held between steps.
        """
        return {
            "adapt_seconds_per_sample": _ratio(self._seconds, self._samples),
            "predict_seconds_per_sample": _ratio(self._bare_seconds, self._samples),
            "adapt_relative_time": _ratio(self._seconds, self._bare_seconds),
            "adapt_memory_growth_bytes": float(_peak_memory() - self._peak),
            "adapt_device_memory_bytes": float(self._memory) if self._memory else math.nan,
        }

    def state_dict(self) -> dict[str, object]:
        """Return the counts; times start anew."""
        return {
            "steps": self._steps,
            "adapted": self._adapted,
            "forward": self._forward,
            "backward": self._backward,
            "bare": self._bare,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        counts = cast(Mapping[str, int], state)
        self._steps, self._adapted = counts["steps"], counts["adapted"]
        self._forward, self._backward, self._bare = counts["forward"], counts["backward"], counts["bare"]


class Arithmetic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts floating-point operations of everything inside, those of backward passes apart.

    Attributes
    ----------
    forward, backward : int
        Operations so far, as torch's ``flop_counter`` counts them.

    Examples
    --------
    >>> x, layer = torch.ones(2, 4), torch.nn.Linear(4, 3)
    >>> with Arithmetic() as counted:
    ...     layer(x).sum().backward()
    >>> counted.forward, counted.backward
    (48, 48)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.forward = self.backward = 0

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run an operation and count it."""
        kwargs = kwargs or {}
        formula = cast("Callable[..., int] | None", flop_registry.get(func._overloadpacket))
        if formula is None:
            # In inference mode compound operations arrive whole.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            count = int(formula(*args, **kwargs, out_val=result))
            # What runs inside the autograd engine belongs to a backward pass.
            if torch._C._current_graph_task_id() == -1:
                self.forward += count
            else:
                self.backward += count
        return result


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _peak_memory() -> int:
    """Return the most memory the process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
