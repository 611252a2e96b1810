"""RDumb: ETA that returns to its source every thousand batches (Press et al., NeurIPS 2023)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from driftline.adapters.choosing import MakeOptimizer, Parameters
from driftline.adapters.eata import ETA
from driftline.adapters.settings import at_least


class RDumb(ETA):
    """Adapt as ETA, and return to the source, all of it, at regular intervals.

    Parameters
    ----------
    model : nn.Module
        The source, as in :class:`ETA`.
    reset_every : int
        Batches between two returns, those without a step included. Published: 1 000.
    lr, optimizer, entropy_margin, redundancy, steps, parameters, inplace
        As in :class:`ETA`. Published for ImageNet-C and CCC: 2.5e-4 with SGD, and a redundancy of 0.05 (batches of 64).

    Attributes
    ----------
    batches : int
        Batches met since the last return.

    Raises
    ------
    ConfigError
        As :class:`ETA`.

    Notes
    -----
    Source: Press, Schneider, Kümmerer & Bethge, *RDumb: a simple approach that questions our progress in continual
    test-time adaptation*, NeurIPS 2023. The return comes after the last batch of an interval, not before the first of
    the next as in the released code: the same scores, and ``predict`` in between is already the source's.
    Single samples: as in :class:`ETA`; an interval is counted in batches, so with single samples it is 1 000 samples.

    Examples
    --------
    >>> import torch
    >>> source = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    >>> adapter = RDumb(source, lr=0.1, entropy_margin=1.1, redundancy=1.0, reset_every=3)
    >>> x = torch.randn(50, 4)
    >>> first, second, third, fourth = (adapter.adapt(x) for _ in range(4))
    >>> torch.equal(first, third), torch.equal(first, fourth)
    (False, True)
    """

    held: ClassVar[tuple[str, ...]] = ("model", "optimizer", "average", "batches")

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        optimizer: MakeOptimizer = "adam",
        entropy_margin: float | None = None,
        redundancy: float = 0.4,
        reset_every: int = 1000,
        steps: int = 1,
        parameters: Parameters = "affine",
        inplace: bool = False,
    ) -> None:
        at_least("reset_every", reset_every, 1)
        self.reset_every, self.batches = reset_every, 0
        super().__init__(model, lr, optimizer, entropy_margin, redundancy, steps, parameters, inplace=inplace)

    def update(self, x: Tensor) -> Tensor:
        """Adapt as ETA; return to the source after every ``reset_every``-th batch."""
        scores = super().update(x)
        self.batches += 1
        if self.batches == self.reset_every:
            self.reset()
        return scores
