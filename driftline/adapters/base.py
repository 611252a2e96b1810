"""The contract of an adapter: adapt to samples without labels, and return to the source model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from driftline.errors import DataError, InputError
from driftline.stream.dataset import check_samples


class Adapter(ABC):
    """Adapts a source model at test time, one batch at a time, without labels.

    Attributes
    ----------
    trusted : bool
        Set by the runtime around its calls, as in :class:`driftline.learners.Learner`.
    """

    trusted: bool = False
    input_shape: tuple[int, ...] | None = None
    num_classes: int | None = None

    @abstractmethod
    def predict(self, x: Tensor) -> Tensor:
        """Return scores (B, classes) with the current state; changes nothing.

        Scores are logits or logarithms of probabilities: their softmax is the predicted distribution. A method that
        computes probabilities returns their logarithm.
        """

    @abstractmethod
    def adapt(self, x: Tensor) -> Tensor:
        """Adapt to samples (B, *input) and return the method's own scores for them.

        They are (B, classes), and as in :meth:`predict` their softmax is the predicted distribution.
        """

    @abstractmethod
    def reset(self) -> None:
        """Return to the source model."""

    @abstractmethod
    def state_dict(self) -> dict[str, object]:
        """Return everything adapted so far: tensors and plain values only."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""

    def network(self) -> nn.Module | None:
        """Return the model that metrics may look at, or None when there is none."""
        return None

    def adapted_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that training may change, those of teachers, too; by default all of the network's."""
        network = self.network()
        return [] if network is None else [*network.parameters()]

    def as_module(self) -> nn.Module | None:
        """Return a module whose forward pass is :meth:`predict` as it is now, to be exported.

        None where the method predicts in another way than by one. The module may share its weights with the adapter.
        """
        return None

    def describe(self) -> dict[str, object]:
        """Return name and parameters for the record (JSON values)."""
        return {"name": type(self).__name__, "parameters": {}}

    def to(self, device: torch.device | str) -> Self:
        """Move everything to ``device``."""
        return self

    def check(self, x: Tensor) -> None:
        """Raise if a batch cannot be used, before any state changes.

        Raises
        ------
        InputError
            For an empty batch, NaN or Inf, or a wrong shape.
        """
        if self.trusted:
            return
        try:
            check_samples(x, f"{type(self).__name__}, x", shape=self.input_shape)
        except DataError as error:
            raise InputError(str(error)) from None
