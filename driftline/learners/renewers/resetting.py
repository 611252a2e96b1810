"""What renewing does to a unit: fresh incoming weights, silence to the next layers, and amends for what it said."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from driftline.learners.renewers.unit_groups import UnitGroup
from driftline.learners.renewers.unit_state import Chosen, entries


@torch.no_grad()
def reset_units(group: UnitGroup, chosen: Chosen, rows: Tensor) -> None:
    """Give units new incoming weights, zero bias, fresh normalisation and outgoing weights of zero.

    Parameters
    ----------
    group : UnitGroup
        The layer.
    chosen : Chosen
        Its units.
    rows : Tensor
        Their incoming weights (R?, k, fan_in).

    Notes
    -----
    Writes through ``.data``: the layer form renews during a backward pass, which must not notice.
    """
    weight, bias = _data(group.in_module, "weight"), _data(group.in_module, "bias")
    assert weight is not None
    chosen.write(weight, rows.view(*chosen.units.shape, *weight.shape[group.lead + 1 :]))
    if bias is not None:
        chosen.write(bias, 0.0)
    for norm in group.norms:
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            if (tensor := _data(norm, name)) is not None:
                entries(group, chosen, tensor).write(tensor, value)
    columns = chosen.repeated(group.out_repeat)
    for module in group.out_modules:
        columns.write(module.weight.data, 0.0, dim=1)  # type: ignore[arg-type]


@torch.no_grad()
def compensate(group: UnitGroup, chosen: Chosen, means: Tensor) -> None:
    """Add to the next layers' biases what units say on average, so that their silence changes little.

    A layer without bias is left as it is. Behind convolutions, each pixel of a channel counts with the channel's
    mean, and the border is not looked at.

    Parameters
    ----------
    group : UnitGroup
        The layer.
    chosen : Chosen
        Units about to be reset.
    means : Tensor
        Their mean activations (R?, k).
    """
    if chosen.counts is not None:
        means = means.where(chosen.counts, 0.0)
    if group.out_repeat > 1:
        means = means.repeat_interleave(group.out_repeat, -1)
    columns = chosen.repeated(group.out_repeat)
    for module in group.out_modules:
        bias = _data(module, "bias")
        if bias is not None:
            weights = columns.read(module.weight.data, dim=1)  # type: ignore[arg-type]
            weights = weights.flatten(group.lead + 2).sum(-1) if group.heard_by_conv else weights
            bias += (means.unsqueeze(-1) * weights).sum(-2)


def _data(module: nn.Module, name: str) -> Tensor | None:
    tensor = getattr(module, name, None)
    return None if tensor is None else tensor.data
