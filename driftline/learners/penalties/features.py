"""What penalties on features share: a hook that keeps what a linear layer received, and what it takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from driftline.errors import ConfigError, unknown
from driftline.learners.lockstep.modules import kind_of
from driftline.learners.penalties.base import trainable
from driftline.learners.replicas import Setting, check_setting


class FeatureTap:
    """A hook that keeps what a layer received in the last forward pass made with gradients, with its graph.

    Copies and pickles of a model take the hook along; what was kept does not travel.
    """

    kept: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Keep the layer's input; called by the layer before its forward pass."""
        if torch.is_grad_enabled():
            self.kept = inputs[0]

    def __getstate__(self) -> None:
        """Leave the features behind."""
        return None


class FeaturePenalty:
    """Base of the penalties on a model's features: what its last linear layer, or another one, receives.

    Such a term is part of the loss that autograd follows: it is called between forward and backward pass, with the
    model that it was made for.

    Parameters
    ----------
    model : nn.Module
        The model that will be trained.
    strength : float or sequence of float
        Factor of the term, at least 0; one number, or one for each replica. 0: as if the penalty were not there.
    layer : str, optional
        Name of the linear layer whose inputs are the features. Default: the last one.
    replicas : int, optional
        How many runs the model holds in lockstep.

    Raises
    ------
    ConfigError
        For a strength below 0, a model without linear layers, or none of that name.
    """

    def __init__(self, model: nn.Module, strength: Setting, layer: str | None, replicas: int | None) -> None:
        check_setting("strength", strength, replicas, low=0)
        who = type(self).__name__
        trainable(model, replicas, who)
        linear = {name: m for name, m in model.named_modules() if kind_of(m) == "linear"}
        if not linear:
            raise ConfigError(f"{who}: {type(model).__name__} has no linear layer, whose inputs would be the features")
        if layer is not None and layer not in linear:
            raise unknown("linear layer in layer=", layer, linear)
        self.model, self.strength, self.layer, self.replicas = model, strength, layer, replicas
        self._name = [*linear][-1] if layer is None else layer
        self._tapped = linear[self._name]
        self._tap = FeatureTap()
        if not self.off:
            self._handle = self._tapped.register_forward_pre_hook(self._tap)

    @property
    def off(self) -> bool:
        """Whether the strength is 0, for all replicas."""
        return not (any(self.strength) if isinstance(self.strength, list | tuple) else self.strength)

    def take(self, model: nn.Module) -> Tensor:
        """Return the features (R?, samples, F) of the last forward pass made with gradients, and forget them.

        Raises
        ------
        ConfigError
            When there was none since, it left the layer out, or the model is another one.
        """
        who = type(self).__name__
        if model is not self.model:
            raise ConfigError(f"{who} was made for another model, whose features it sees; make one for this model")
        features, self._tap.kept = self._tap.kept, None
        if features is None:
            raise ConfigError(
                f"{who}: no forward pass with gradients has used the layer {self._name!r} since the last call; call "
                "it once after each forward pass, or name a layer that the model uses by layer=..."
            )
        lead = 0 if self.replicas is None else 1
        return features if features.dim() == lead + 2 else features.flatten(lead, -2)

    def close(self) -> None:
        """Take the hook off the model."""
        if not self.off:
            self._handle.remove()
