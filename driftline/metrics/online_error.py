"""Online (prequential) error of predicted numbers: each sample is predicted before it is learned from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self, cast

import torch
from torch import Tensor

from driftline.errors import ConfigError, InputError
from driftline.metrics.base import Metric
from driftline.stream.live import LiveStream
from driftline.stream.step import Step
from driftline.stream.stream import Stream

FLUSH = 128
"""Steps whose predictions are kept before their errors are added together."""
FLUSH_SAMPLES = 8192
"""Samples that are not kept any longer than that."""


class OnlineError(Metric):
    """Squared and absolute error of predictions made before learning, over the whole stream and a recent window.

    A sample's error is the mean over its outputs. Predictions are kept for up to :data:`FLUSH` steps and then
    compared at once, in float64 on the device.

    Parameters
    ----------
    window : int, optional
        Samples in the window; None: no windowed values.

    Raises
    ------
    InputError
        For a stream with classes, or without truth that is numbers; at the first step, when predictions and truth
        differ in shape. A learner's scores (B, 1) are compared with truth (B,); nothing else is broadcast.

    References
    ----------
    Dawid, "Present position and potential developments: the prequential approach" (1984).

    Examples
    --------
    >>> import torch, driftline
    >>> from driftline.learners import GradientLearner
    >>> from driftline.metrics.online_error import OnlineError
    >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    >>> stream = driftline.stream.Stream([driftline.stream.Segment.of(driftline.Dataset(x, x[:, :1] - 2 * x[:, 1:2]))])
    >>> model = torch.nn.Linear(3, 1)
    >>> learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.05), torch.nn.functional.mse_loss)
    >>> for step in driftline.play(stream, learner, metrics=[OnlineError(window=100)]):
    ...     pass
    >>> values = step.metrics()
    >>> values["online_squared_error"] > 0.01, values["online_squared_error_window"] < 1e-6
    (True, True)
    """

    prefix: ClassVar[str] = "online"
    """What the names of its values begin with."""
    definitions: ClassVar[Mapping[str, str]] = {
        "online_squared_error": "mean of (prediction - truth)^2 of samples before they are learned from, since the "
        "start; a sample's error is the mean over its outputs",
        "online_absolute_error": "the same with the absolute difference",
        "online_squared_error_window": "the squared error over the most recent samples",
        "online_absolute_error_window": "the absolute error over the most recent samples",
    }

    def __init__(self, window: int | None = 1000) -> None:
        if window is not None and window < 1:
            raise ConfigError(f"window={window}: must be at least 1 sample")
        self.window = window
        self._count = 0
        self._sums: Tensor | None = None
        self._recent = torch.empty(0, 2, dtype=torch.float64)
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._waiting = 0

    def begin(self, stream: Stream | LiveStream, batch_size: int) -> None:
        """Check that the stream has numbers to predict."""
        if stream.classes:
            raise InputError(
                f"OnlineError needs numbers to predict, and {stream.name!r} has classes; use OnlineAccuracy"
            )
        if isinstance(stream, Stream) and all(r.truth is None for s in stream.segments for r in s.recipes):
            raise InputError(f"OnlineError needs numbers to predict, and {stream.name!r} has no truth at all")

    def truth(self, y: Tensor) -> Tensor:
        """Return what the predictions are compared with, of a batch's labels."""
        return y

    def update(self, step: Step) -> None:
        """Take in the step's predictions."""
        scores, y = step.prediction, step.batch.y
        if y is None or scores is None:
            return
        y = self.truth(y)
        if scores.shape != y.shape:
            scores = _in_shape(scores, y)
        if not self._count and not y.is_floating_point():
            raise InputError(f"OnlineError needs numbers to predict, and the truth is {y.dtype}; give floating targets")
        self._count += len(y)
        self._waiting += len(y)
        self._pending.append((scores, y))
        if len(self._pending) >= FLUSH or self._waiting >= FLUSH_SAMPLES:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        scores, y = (torch.cat(parts).double() for parts in zip(*self._pending))
        self._pending, self._waiting = [], 0
        errors = (scores - y).reshape(len(y), -1)
        errors = torch.stack([errors.square().mean(1), errors.abs().mean(1)], 1)
        self._sums = errors.sum(0) if self._sums is None else self._sums.to(errors.device) + errors.sum(0)
        if self.window is not None:
            self._recent = torch.cat([self._recent.to(errors.device), errors])[-self.window :]

    def value(self) -> dict[str, float]:
        """Return ``online_squared_error``, ``online_absolute_error`` and, with a window, both over the window."""
        self._flush()
        names = (f"{self.prefix}_squared_error", f"{self.prefix}_absolute_error")
        nothing = [float("nan")] * 2
        means = nothing if self._sums is None else (self._sums / self._count).tolist()
        values = dict(zip(names, means))
        if self.window is not None:
            recent = self._recent.mean(0).tolist() if len(self._recent) else nothing
            values |= {f"{name}_window": error for name, error in zip(names, recent)}
        return values

    def merge(self, later: Self) -> None:
        """Add what was measured on a later part of the stream."""
        self._flush()
        later._flush()
        self._count += later._count
        if later._sums is not None:
            self._sums = later._sums if self._sums is None else self._sums + later._sums.to(self._sums.device)
        if self.window is not None:
            recent = self._recent.to(later._recent.device)
            self._recent = torch.cat([recent, later._recent])[-self.window :]

    def state_dict(self) -> dict[str, object]:
        """Return the sums, and the errors in the window."""
        self._flush()
        # The window is cut out of a longer tensor, which would be saved with it.
        return {"count": self._count, "sums": self._sums, "recent": self._recent.clone()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        self._pending, self._waiting = [], 0
        self._count = cast(int, state["count"])
        self._sums = cast("Tensor | None", state["sums"])
        self._recent = cast(Tensor, state["recent"])


def _in_shape(scores: Tensor, y: Tensor) -> Tensor:
    """Return scores (B, 1) as (B,), or raise."""
    if scores.shape == (*y.shape, 1):
        return scores.squeeze(-1)
    wanted = f"(B, {', '.join(str(n) for n in y.shape[1:])})" if y.dim() > 1 else "(B,) or (B, 1)"
    raise InputError(
        f"OnlineError: predictions of shape {tuple(scores.shape)} for truth of shape {tuple(y.shape)}; the learner "
        f"must give one number for each target, {wanted}"
    )
