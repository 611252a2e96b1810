"""A stream that does not wait: while a slow adapter is busy, batches are predicted without adapting to them.

The protocol of Alfarra et al., "Evaluation of Test-Time Adaptation Under Computational Time Constraints", ICML 2024.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor

from driftline.adapters.base import Adapter
from driftline.adapters.wrapper import Wrapper
from driftline.errors import CheckpointError, ConfigError

Cost = str | float | Callable[[Tensor], float]


class RealTime(Wrapper):
    """Let an adapter miss the batches that arrive while it is busy: they are predicted by the model as it is then.

    Adapting to a batch that takes C times as long as predicting it keeps the adapter busy for
    ``ceil(rate * C) - 1`` further batches. A batch that the inner adapter only predicts (a window that is not new, a
    guard at rest) does not.

    Parameters
    ----------
    inner : Adapter
        Who adapts.
    cost : "measured", float, or callable
        C, in predictions of the same batch: measured at each adaptation; given, at least 0; or found from the batch,
        ``cost(x) -> float``. Only with a given cost are results the same on every machine and after resuming.
        :class:`driftline.metrics.AdaptationCost` measures what an adapter costs.
    rate : float
        Batches that arrive in the time of one prediction; above 0. 1 is the fastest stream the bare model can follow.

    Attributes
    ----------
    delay : int
        Batches that will still be missed.
    adapted : bool
        Whether the last batch was adapted to.
    batches, adaptations : int
        Batches met since the source model, and those of them adapted to.

    Raises
    ------
    ConfigError
        For a cost or rate out of range.

    Notes
    -----
    The published code measures the adapter's forward pass (which adapts) against the bare model's; here ``predict``
    stands for the latter. Returning to the source model also frees the adapter.

    Examples
    --------
    >>> from torch import nn
    >>> from driftline.adapters import Source
    >>> from driftline.adapters.real_time import RealTime
    >>> adapter = RealTime(Source(nn.Linear(4, 3)), cost=3)
    >>> for _ in range(7):
    ...     scores = adapter.adapt(torch.ones(2, 4))
    ...     print(int(adapter.adapted), end=" ")
    1 0 0 1 0 0 1
    >>> round(adapter.share, 2)
    0.43
    """

    def __init__(self, inner: Adapter, cost: Cost = "measured", rate: float = 1.0) -> None:
        super().__init__(inner)
        if isinstance(cost, str):
            if cost != "measured":
                raise ConfigError(
                    f'cost={cost!r}: give "measured", a number of predictions, or a function of the batch'
                )
        elif not callable(cost):
            cost = _checked(cost)
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
            raise ConfigError(f"rate={rate!r}: give the batches that arrive during one prediction, above 0")
        self.cost, self.rate = cost, float(rate)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.delay, self.batches, self.adaptations = 0, 0, 0
        self._adapted = True

    @property
    def adapted(self) -> bool:
        """Whether the last batch was adapted to."""
        return self._adapted and super().adapted

    @property
    def share(self) -> float:
        """Share of the batches since the source model that were adapted to; NaN before the first."""
        return self.adaptations / self.batches if self.batches else float("nan")

    def adapt(self, x: Tensor) -> Tensor:
        """Return scores (B, classes) for samples (B, *input), having adapted to them if there is time."""
        free = self.delay == 0
        scores, cost = self._adapt_and_time(x) if free else (self.inner.predict(x), 0.0)
        self._adapted = free
        if not free:
            self.delay -= 1
        elif self.adapted:
            self.delay = max(0, math.ceil(self.rate * cost) - 1)
        self.batches += 1
        self.adaptations += self.adapted
        return scores

    def _adapt_and_time(self, x: Tensor) -> tuple[Tensor, float]:
        if isinstance(self.cost, float):
            return self.inner.adapt(x), self.cost
        if callable(self.cost):
            self.check(x)
            cost = _checked(self.cost(x))
            return self.inner.adapt(x), cost
        start = _now(x)
        self.inner.predict(x)
        between = _now(x)
        scores = self.inner.adapt(x)
        return scores, (_now(x) - between) / max(between - start, 1e-9)

    def reset(self) -> None:
        """Return to the source model, with nothing missed."""
        super().reset()
        self._begin_anew()

    def own_state(self) -> dict[str, object]:
        """Return the clock."""
        return {
            "delay": self.delay,
            "batches": self.batches,
            "adaptations": self.adaptations,
            "adapted": self._adapted,
        }

    def load_own_state(self, state: Mapping[str, object]) -> None:
        """Continue with the clock of an :meth:`own_state`.

        Raises
        ------
        CheckpointError
            When it is none.
        """
        numbers = [state[name] for name in ("delay", "batches", "adaptations")]
        if not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise CheckpointError(f"RealTime: the state's clock says {numbers}; load another checkpoint")
        self.delay, self.batches, self.adaptations = cast(list[int], numbers)
        self._adapted = bool(state["adapted"])

    def describe(self) -> dict[str, object]:
        """Return what a record needs to repeat it (JSON values); a function is known by its name only."""
        cost = getattr(self.cost, "__qualname__", type(self.cost).__name__) if callable(self.cost) else self.cost
        return {"name": "RealTime", "parameters": {"cost": cost, "rate": self.rate, "inner": self.inner.describe()}}


def _checked(cost: object) -> float:
    if isinstance(cost, bool) or not isinstance(cost, (int, float)) or not 0 <= cost < math.inf:
        raise ConfigError(f"cost={cost!r}: adapting costs a number of predictions, at least 0 and finite")
    return float(cost)


def _now(x: Tensor) -> float:
    """Return the time once the device has done everything asked of it."""
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
