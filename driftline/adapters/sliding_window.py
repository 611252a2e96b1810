"""A window over the last samples, so that what needs a batch can meet samples one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, cast

import torch
from torch import Tensor

from driftline.adapters.base import Adapter
from driftline.adapters.settings import at_least
from driftline.adapters.wrapper import Wrapper
from driftline.errors import CheckpointError


class SlidingWindow(Wrapper):
    """Let an adapter see the last ``size`` samples at each step: for streams of single samples or small batches.

    Each new sample is predicted together with those before it, and once all samples in the window are new the adapter
    adapts to the window. So it adapts as often, and to as many samples, as with batches of ``size``.

    Parameters
    ----------
    inner : Adapter
        Who predicts and adapts.
    size : int
        Samples in the window, at least 2.

    Attributes
    ----------
    window : Tensor or None
        The last samples, oldest first; fewer than ``size`` at the beginning of the stream.
    fresh : int
        Samples that came since the last adaptation.
    adapted : bool
        Whether the last batch was adapted to.

    Raises
    ------
    ConfigError
        For a size out of range.

    Notes
    -----
    As in Döbler, Marsden & Yang's comparison of methods (2023), but ``reset`` also empties the window. Every sample
    costs a forward pass of the whole window. At the beginning of a stream the window is small, so that the first
    predictions are those of a small batch. Batches of ``size`` or more samples are handed on as they are. Put a
    ``CollapseGuard`` inside the window, where it sees the same batches as the adapter.

    Examples
    --------
    >>> from torch import nn
    >>> from driftline.adapters import SlidingWindow, Tent
    >>> adapter = SlidingWindow(Tent(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))), size=16)
    >>> for x in torch.randn(40, 1, 4):
    ...     scores = adapter.adapt(x)
    >>> scores.shape, adapter.window.shape, adapter.fresh
    (torch.Size([1, 3]), torch.Size([16, 4]), 8)
    """

    def __init__(self, inner: Adapter, size: int = 64) -> None:
        at_least("size", size, 2)
        super().__init__(inner)
        self.size = size
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.window: Tensor | None = None
        self.fresh = 0
        self._adapted = False

    @property
    def adapted(self) -> bool:
        """Whether the last batch was adapted to."""
        return self._adapted and super().adapted

    def predict(self, x: Tensor) -> Tensor:
        """Return scores (B, classes) for samples behind those of the window; changes nothing."""
        self.check(x)
        return self.inner.predict(self._with_those_before(x))[-len(x) :]

    def adapt(self, x: Tensor) -> Tensor:
        """Return scores (B, classes) for samples (B, *input); adapt when the window is new."""
        self.check(x)
        together = self._with_those_before(x)
        due = self.fresh + len(x) >= self.size
        scores = (self.inner.adapt if due else self.inner.predict)(together)[-len(x) :]
        # Only now, since the inner adapter may have refused the batch.
        self.window = together[-self.size :].clone()
        self.fresh = 0 if due else self.fresh + len(x)
        self._adapted = due
        return scores

    def _with_those_before(self, x: Tensor) -> Tensor:
        """Return the last ``size`` samples, or the batch itself when it is larger."""
        if self.window is None or len(x) >= self.size:
            return x
        return torch.cat((self.window.to(x.device, x.dtype), x))[-self.size :]

    def reset(self) -> None:
        """Return to the source model, with an empty window."""
        super().reset()
        self._begin_anew()

    def own_state(self) -> dict[str, object]:
        """Return the window."""
        return {"window": self.window, "fresh": self.fresh, "adapted": self._adapted}

    def load_own_state(self, state: Mapping[str, object]) -> None:
        """Continue with the window of an :meth:`own_state`.

        Raises
        ------
        CheckpointError
            When it is larger than this one.
        """
        window = cast(Tensor | None, state["window"])
        if window is not None and len(window) > self.size:
            raise CheckpointError(f"the state's window has {len(window)} samples, this one {self.size}")
        self.window = None if window is None else window.clone()
        self.fresh, self._adapted = cast(int, state["fresh"]), bool(state["adapted"])

    def to(self, device: torch.device | str) -> Self:
        """Move everything to ``device``."""
        super().to(device)
        self.window = None if self.window is None else self.window.to(device)
        return self
