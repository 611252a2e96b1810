"""A whole training loop of a small network, of one run or of many in lockstep, as one call into C."""

from __future__ import annotations

from torch import Tensor


class CompiledStep:
    """Trains a learner's model over consecutive batches in one call."""

    def __call__(self, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
        """Return the scores of each sample before the update on its batch."""
        raise NotImplementedError


def plan(learner: object) -> CompiledStep | None:
    """Return compiled steps for a learner, or None where :func:`why_not` gives a reason."""
    return None


def why_not(learner: object) -> str:
    """Return the first part of a learner that has no compiled form, and why."""
    return "they do not exist yet"
