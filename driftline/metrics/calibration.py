"""Whether a model is as sure as it is right: calibration error, likelihood and Brier score, while the stream runs.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self, cast

import torch
from torch import Tensor

from driftline.errors import CheckpointError, ConfigError
from driftline.metrics.base import Metric
from driftline.metrics.online import FLUSH, need_classes
from driftline.stream.live import LiveStream
from driftline.stream.step import Step
from driftline.stream.stream import Stream

LEAST = 1e-12
"""A probability below this counts as this in the likelihood, so that a class given none costs 27.6 nats, not all."""
NAMES = ("calibration_error", "negative_log_likelihood", "brier_score")


class Calibration(Metric):
    """Expected calibration error, negative log-likelihood and Brier score of predictions made before learning.

    The softmax of the scores is taken for the predicted distribution. Samples without a known truth do not count; a
    class beyond the scores has probability 0.

    Parameters
    ----------
    bins : int
        Bins of equal width over the largest probability; bin m of M holds ((m - 1) / M, m / M].
    window : int, optional
        Samples in the window; None: no windowed values.

    Raises
    ------
    ConfigError
        When ``bins`` or ``window`` is below 1.

    Notes
    -----
    The calibration error is the mean over samples of the difference between accuracy and mean largest probability in
    the sample's bin, in [0, 1]; the likelihood is in nats; the Brier score is the squared distance of the distribution
    to the truth, summed over classes, in [0, 2]. Sums are kept in float64.

    References
    ----------
    Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017).
    Brier, "Verification of forecasts expressed in terms of probability" (1950).

    Examples
    --------
    >>> import torch, driftline
    >>> from driftline.adapters import Source
    >>> from driftline.metrics import Calibration
    >>> x = torch.eye(2).repeat(50, 1)
    >>> stream = driftline.stream.Stream([driftline.stream.Segment.of(driftline.Dataset(x, x.argmax(1)))])
    >>> for step in driftline.play(stream, Source(torch.nn.Identity()), batch_size=10, metrics=[Calibration()]):
    ...     pass
    >>> {name: round(value, 2) for name, value in step.metrics().items() if "window" not in name}
    {'calibration_error': 0.27, 'negative_log_likelihood': 0.31, 'brier_score': 0.14}
    """

    definitions: ClassVar[Mapping[str, str]] = {
        "calibration_error": "mean difference between accuracy and largest probability, by bins of the latter",
        "negative_log_likelihood": "mean of -log(probability of the true class), in nats",
        "brier_score": "mean squared distance between predicted distribution and truth, summed over classes",
        **{f"{name}_window": "the same over the most recent samples" for name in NAMES},
    }

    def __init__(self, bins: int = 15, window: int | None = 1000) -> None:
        if bins < 1:
            raise ConfigError(f"bins={bins}: must be at least 1")
        if window is not None and window < 1:
            raise ConfigError(f"window={window}: must be at least 1 sample")
        self.bins, self.window = bins, window
        self._table: Tensor | None = None  # (bins, 5): samples, and sums of the columns of _rows
        self._recent = torch.empty(0, 4, dtype=torch.float64)
        self._pending: list[tuple[Tensor, Tensor, bool]] = []

    def begin(self, stream: Stream | LiveStream, batch_size: int) -> None:
        """Check that the stream has classes."""
        need_classes(self, stream)

    def update(self, step: Step) -> None:
        """Take in the step's predictions."""
        y = step.batch.y
        if y is not None and step.prediction is not None:
            self._pending.append((step.prediction, y, step.batch.labelled < len(y)))
            if len(self._pending) >= FLUSH:
                self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        rows = torch.cat([_rows(scores, y, gaps) for scores, y, gaps in self._pending])
        self._pending.clear()
        table = self._tabulate(rows)
        self._table = table if self._table is None else self._table.to(table.device) + table
        if self.window is not None:
            self._recent = torch.cat([self._recent.to(rows.device), rows])[-self.window :]

    def _tabulate(self, rows: Tensor) -> Tensor:
        """Sum samples (n, 4) by bin."""
        place = (rows[:, 0].nan_to_num(0.0) * self.bins).ceil().long().sub(1).clamp(0, self.bins - 1)
        counted = torch.cat([torch.ones_like(rows[:, :1]), rows], 1)
        return torch.zeros(self.bins, 5, dtype=torch.float64, device=rows.device).index_add_(0, place, counted)

    def value(self) -> dict[str, float]:
        """Return ``calibration_error``, ``negative_log_likelihood``, ``brier_score``, and each ``_window``."""
        self._flush()
        values = dict(zip(NAMES, _summary(self._table)))
        if self.window is not None:
            recent = self._tabulate(self._recent) if len(self._recent) else None
            values |= dict(zip((f"{name}_window" for name in NAMES), _summary(recent)))
        return values

    def merge(self, later: Self) -> None:
        """Add what was measured on a later part of the stream."""
        self._flush()
        later._flush()
        if later._table is not None:
            self._table = later._table if self._table is None else self._table + later._table.to(self._table.device)
        if self.window is not None:
            recent = self._recent.to(later._recent.device)
            self._recent = torch.cat([recent, later._recent])[-self.window :]

    def state_dict(self) -> dict[str, object]:
        """Return the sums, and the samples in the window."""
        self._flush()
        # The window is cut out of a longer tensor, which would be saved with it.
        return {"table": self._table, "recent": self._recent.clone()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When it was measured with another number of bins.
        """
        table = cast("Tensor | None", state["table"])
        if table is not None and len(table) != self.bins:
            raise CheckpointError(f"the state has {len(table)} bins, this Calibration {self.bins}")
        self._pending.clear()
        self._table, self._recent = table, cast(Tensor, state["recent"])


def _rows(scores: Tensor, y: Tensor, gaps: bool) -> Tensor:
    """Largest probability, whether it is right, -log likelihood and Brier score of each sample, (n, 4) in float64."""
    if gaps:
        scores, y = scores[y >= 0], y[y >= 0]
    p = scores.double().softmax(-1)
    largest, predicted = p.max(-1)
    beyond = y >= p.shape[-1]
    true = p.gather(-1, y.masked_fill(beyond, 0).unsqueeze(-1)).squeeze(-1).masked_fill(beyond, 0.0)
    brier = p.square().sum(-1) - 2 * true + 1
    return torch.stack([largest, (predicted == y).double(), -true.clamp_min(LEAST).log(), brier], 1)


def _summary(table: Tensor | None) -> list[float]:
    if table is None:
        return [float("nan")] * 3
    count, confidence, right, loss, brier = table.unbind(1)
    sums = torch.stack([(confidence - right).abs().sum(), loss.sum(), brier.sum()])
    return cast("list[float]", (sums / count.sum()).tolist())
