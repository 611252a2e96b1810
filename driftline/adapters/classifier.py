"""A model's classifier layer, and the features that it sees."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from driftline.errors import ConfigError, InputError, unknown


class ClassifierTap:
    """Reads a model's features: the input of its last linear layer.

    Parameters
    ----------
    model : nn.Module
        Gives the scores of its classifier.
    name : str, optional
        The classifier's name in the model, such as ``"fc"``. Default: the last ``nn.Linear`` in it; that it gives the
        model's scores is checked by :meth:`verify`.

    Raises
    ------
    ConfigError
        When there is no linear layer, or no layer of that name.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> tap = ClassifierTap(model)
    >>> features, scores = tap(torch.zeros(2, 4))
    >>> tap.name, features.shape, scores.shape
    ('2', torch.Size([2, 8]), torch.Size([2, 3]))
    """

    def __init__(self, model: nn.Module, name: str | None = None) -> None:
        self.model = model
        linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        if name is not None and name not in linear:
            raise unknown("linear layer in classifier=", name, linear)
        if not linear:
            raise ConfigError(
                f"{type(model).__name__} has no nn.Linear, so no classifier with weights by class; "
                "end the model with one, or name it by classifier=..."
            )
        self.name = [*linear][-1] if name is None else name

    @property
    def layer(self) -> nn.Linear:
        """The classifier."""
        return cast(nn.Linear, self.model.get_submodule(self.name))

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, F) and scores (B, classes), in the mode and with the gradients the model is in."""
        taken: list[Tensor] = []
        handle = self.layer.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
        try:
            scores: Tensor = self.model(x)
        finally:
            handle.remove()
        if not taken:
            raise InputError(f"the model does not use its layer {self.name!r}; name its classifier by classifier=...")
        return taken[-1], scores

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and scores without gradients, every module in evaluation mode and put back afterwards."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with torch.no_grad():
                return self(x)
        finally:
            for module in training:
                module.training = True

    def verify(self, x: Tensor) -> None:
        """Raise unless the layer's own output is the model's scores for the first of these samples.

        Raises
        ------
        InputError
            With the way to name another layer.
        """
        features, scores = self.features(x[:1])
        with torch.no_grad():
            own = self.layer(features)
        if own.shape != scores.shape or not torch.allclose(own, scores, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise InputError(
                f"layer {self.name!r} (input {tuple(features.shape)}) does not give the model's scores; name the "
                "classifier by classifier=..., a linear layer whose output is what the model returns"
            )
