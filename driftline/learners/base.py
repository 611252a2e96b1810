"""The contract of a learner: predict, learn, and carry its state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.errors import ConfigError, DataError, InputError
from driftline.stream.dataset import check_labels, check_samples

State = dict[str, object]


class Learner(ABC):
    """Learns from labels, one batch at a time.

    A subclass writes :meth:`predict`, :meth:`learn`, :meth:`state_dict` and :meth:`load_state_dict`, and calls
    :meth:`check` first in the first two. A batch of one is as legal as a large one.

    Attributes
    ----------
    trusted : bool
        Set by the runtime around its calls: the data was checked where it entered, so :meth:`check` returns at
        once and nothing has to be read back from the device.
    """

    trusted: bool = False
    input_shape: tuple[int, ...] | None = None
    """Shape of one sample, once known."""
    num_classes: int | None = None
    """Number of scores of a prediction, once known; None also for regression."""
    replicas: int | None = None
    """How many independent learners step in lockstep; tensors then have this dimension first: x (R, B, *input)."""

    @property
    def task_aware(self) -> bool:
        """Whether the learner wants to be told which task its samples are of, see :meth:`begin_task`."""
        return False

    def begin_task(self, task: int, classes: Tensor | None = None) -> None:  # noqa: B027 (most learners do nothing)
        """Take notice that samples of a task come from now on; does nothing where :attr:`task_aware` is False.

        The runtime calls this before the first batch of each segment. It is oracle information, which a model in the
        world does not get for free. Samples that are replayed, or whose labels come late, may be of earlier tasks.

        Parameters
        ----------
        task : int
            Its number; an earlier one where a task comes back.
        classes : Tensor, shape (C,), optional
            Bool: which classes occur in it; with replicas (R, C). None: unknown.
        """

    def predict_task(self, x: Tensor, task: int) -> Tensor:
        """Return scores for samples that are known to be of a task (task-incremental evaluation)."""
        return self.predict(x)

    @abstractmethod
    def predict(self, x: Tensor) -> Tensor:
        """Return scores (B, classes) for samples (B, *input); changes no state."""

    @abstractmethod
    def learn(self, x: Tensor, y: Tensor) -> None:
        """Learn from samples (B, *input) and labels (B,)."""

    @abstractmethod
    def state_dict(self) -> State:
        """Return everything the learner has learned and drawn: tensors and plain values only."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When the state belongs to another learner; nothing has been changed then.
        """

    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        """Predict, then learn; override to share the forward pass."""
        scores = self.predict(x)
        self.learn(x, y)
        return scores

    def observe_each(self, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
        """Observe consecutive batches one after the other; return all their scores.

        Parameters
        ----------
        x, y : Tensor, shape (N, *input) and (N,)
            The batches joined; the last one may be smaller. With replicas, (R, N, *input) and (R, N).
        batch_size : int
            Samples in each.
        """
        axis = 0 if self.replicas is None else 1
        parts = zip(x.split(batch_size, axis), y.split(batch_size, axis))  # type: ignore[no-untyped-call]
        return joined([self.observe(*part) for part in parts], axis)

    def replica(self, number: int) -> Learner:
        """Return one of the replicas as a learner of its own, to be looked at (not trained).

        Raises
        ------
        ConfigError
            When this learner has no replicas.
        """
        raise ConfigError(f"{type(self).__name__} has no replicas")

    def network(self) -> nn.Module | None:
        """Return the model that metrics may look at, or None when there is none."""
        return None

    def describe(self) -> dict[str, object]:
        """Return name and parameters for the record (JSON values)."""
        return {"name": type(self).__name__, "parameters": {}}

    def to(self, device: torch.device | str) -> Self:
        """Move everything to ``device``."""
        return self

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Raise if a batch cannot be used, before any state changes.

        Raises
        ------
        InputError
            For an empty batch, NaN or Inf, a wrong shape or dtype, or labels out of range.
        """
        if self.trusted:
            return
        where = type(self).__name__
        try:
            if self.replicas is not None:
                x, y = _together(x, y, self.replicas, where)
            check_samples(x, f"{where}, x", shape=self.input_shape)
            if y is None:
                return
            if not isinstance(y, Tensor) or y.shape[:1] != x.shape[:1]:
                found = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
                raise DataError(f"{where}, y: expected one label for each of {len(x)} samples, got {found}")
            if y.is_floating_point() and self.num_classes is None:
                check_samples(y, f"{where}, y", at_least=1)
            else:
                check_labels(y, self.num_classes, f"{where}, y")
        except DataError as error:
            raise InputError(str(error)) from None


def joined(scores: Sequence[Tensor], axis: int) -> Tensor:
    """Return the scores of consecutive batches as one tensor; classes that come up on the way score -Inf before.

    Examples
    --------
    >>> joined([torch.zeros(1, 1), torch.ones(1, 2)], axis=0)
    tensor([[0., -inf],
            [1., 1.]])
    """
    most = max(s.shape[-1] for s in scores)
    if any(s.shape[-1] < most for s in scores):
        scores = [F.pad(s, (0, most - s.shape[-1]), value=float("-inf")) for s in scores]
    return torch.cat(list(scores), axis)


def _together(x: Tensor, y: Tensor | None, replicas: int, where: str) -> tuple[Tensor, Tensor | None]:
    """Return the samples and labels of all replicas as one batch."""
    for name, tensor in (("x", x), ("y", y)):
        if tensor is not None and (tensor.dim() < 2 or len(tensor) != replicas):
            raise DataError(
                f"{where}, {name}: shape {tuple(tensor.shape)}, but there are {replicas} replicas: give "
                f"({replicas}, samples, ...)"
            )
    return x.flatten(0, 1), None if y is None else y.flatten(0, 1)
