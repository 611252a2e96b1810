"""Hidden units as feature-wise UPGD sees them: their incoming weights and bias, and their outgoing weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from driftline.errors import ConfigError


class Units:
    """The n units of one layer.

    Parameters
    ----------
    in_weight, in_bias : Tensor
        Of the layer that makes the units: n rows each.
    out_weights : sequence of Tensor
        Of the layers that hear them: n columns each, or an equal number of neighbouring columns for each unit (a
        convolution's channel behind a flattening).
    replicas : int, optional
        Number of replicas in front.
    """

    def __init__(
        self, in_weight: Tensor, in_bias: Tensor | None, out_weights: Sequence[Tensor], replicas: int | None
    ) -> None:
        self.in_weight, self.in_bias, self.out_weights = in_weight, in_bias, tuple(out_weights)
        self._lead = lead = 0 if replicas is None else 1
        for out in self.out_weights:
            fits = in_weight.dim() >= lead + 2 and out.dim() >= lead + 2
            if not fits or out.shape[lead + 1] % in_weight.shape[lead]:
                raise ConfigError(
                    f"features: incoming weights of shape {tuple(in_weight.shape)} do not make the inputs of outgoing "
                    f"weights of shape {tuple(out.shape)}; name layers that follow one another"
                )
        if in_bias is not None and in_bias.shape != in_weight.shape[: lead + 1]:
            raise ConfigError(
                f"features: a bias of shape {tuple(in_bias.shape)} does not belong to weights of shape "
                f"{tuple(in_weight.shape)}"
            )
        self.count = in_weight.shape[lead]

    def gated(self) -> list[Tensor]:
        """Return the parameters that the units' utility protects."""
        return [self.in_weight] if self.in_bias is None else [self.in_weight, self.in_bias]

    def utility(self, curvatures: Mapping[Tensor, Tensor] | None) -> Tensor:
        """Return the utility of a gate of ones on each unit, (n,) or (R, n): the sum over its outgoing weights."""
        columns = [self._columns(w, None if curvatures is None else curvatures[w]) for w in self.out_weights]
        return torch.stack(columns).sum(0).neg_() if len(columns) > 1 else columns[0].neg_()

    def _columns(self, weight: Tensor, curvature: Tensor | None) -> Tensor:
        w, g, lead = weight.detach(), weight.grad, self._lead
        assert g is not None
        each = g * w if curvature is None else (g - curvature * w / 2) * w
        columns = each.sum((lead, *range(lead + 2, each.dim())))
        return columns.view(*columns.shape[:-1], self.count, -1).sum(-1)


def units_of(features: Iterable[Any], replicas: int | None) -> list[Units]:
    """Return the units named by triples of tensors, or by unit groups.

    Raises
    ------
    ConfigError
        When shapes do not fit, or a layer is named twice.
    """
    found: list[Units] = []
    for feature in features:
        if hasattr(feature, "in_module"):
            made = feature.in_module
            units = Units(made.weight, made.bias, [hearer.weight for hearer in feature.out_modules], replicas)
        else:
            in_weight, in_bias, out = feature
            units = Units(in_weight, in_bias, [out] if isinstance(out, Tensor) else out, replicas)
        if any(units.in_weight is other.in_weight for other in found):
            raise ConfigError("features: two entries have the same incoming weights; name each layer once")
        found.append(units)
    if not found:
        raise ConfigError("features: there are none; name at least one hidden layer")
    return found
