"""The source model as it is: the baseline that every adapter is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, cast

import torch
from torch import Tensor, nn

from driftline.adapters.base import Adapter
from driftline.errors import CheckpointError
from driftline.stream.modules import check_same_model, evaluate, probe


class Source(Adapter):
    """The model without any adaptation, in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        Maps (B, *input) to scores (B, classes). It is used, not copied, and never changed (but by
        :meth:`load_state_dict` and :meth:`to`).

    Examples
    --------
    >>> import torch
    >>> from driftline.adapters import Source
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    >>> adapter = Source(model)
    >>> x = torch.ones(2, 4)
    >>> torch.equal(adapter.adapt(x), adapter.predict(x)), model.training
    (True, True)
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._dtype: torch.dtype | None = None

    def predict(self, x: Tensor) -> Tensor:
        """Return the model's scores (B, classes)."""
        self.check(x)
        return evaluate(self.model, x)

    def adapt(self, x: Tensor) -> Tensor:
        """Return the model's scores (B, classes), like :meth:`predict`."""
        return self.predict(x)

    def reset(self) -> None:
        """Do nothing: this is the source model."""

    def state_dict(self) -> dict[str, object]:
        """Return the model's state, by which a checkpoint of another model is recognised."""
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take over the weights of a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When it belongs to another model or adapter; nothing has been changed then.
        """
        if set(state) != {"model"}:
            raise CheckpointError(f"the state has parts {sorted(state)}, Source only 'model'; it is another adapter's")
        model = cast(Mapping[str, Tensor], state["model"])
        check_same_model(self.model, model)
        self.model.load_state_dict(model)

    def network(self) -> nn.Module:
        """Return the model."""
        return self.model

    def adapted_parameters(self) -> list[nn.Parameter]:
        """Return none: nothing is adapted."""
        return []

    def as_module(self) -> nn.Module:
        """Return the model."""
        return self.model

    def describe(self) -> dict[str, object]:
        """Return what is used (JSON values)."""
        size = sum(p.numel() for p in self.model.parameters())
        return {"name": "Source", "parameters": {"model": type(self.model).__name__, "parameters": size}}

    def to(self, device: torch.device | str) -> Self:
        """Move the model to ``device``."""
        self.model.to(device)
        return self

    def check(self, x: Tensor) -> None:
        """Raise if a batch cannot be used; the first of its kind is also tried on the model."""
        if self.trusted:
            return
        super().check(x)
        if x.dtype != self._dtype:
            self.num_classes = probe(self.model, x).shape[-1]
            self.input_shape, self._dtype = tuple(x.shape[1:]), x.dtype
