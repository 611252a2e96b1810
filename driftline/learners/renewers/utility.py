"""How useful a unit is for one batch: the utilities of continual backprop.

Dohare et al., "Loss of plasticity in deep continual learning" (Nature 2024), and the earlier drafts of the same work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from driftline import native
from driftline.learners.renewers.unit_groups import UnitGroup, weight_of

Utility = Literal[
    "contribution", "zero_contribution", "adaptable_contribution", "adaptation", "feature_by_input", "weight", "random"
]
UTILITIES: tuple[str, ...] = get_args(Utility)
CENTRED = ("zero_contribution", "adaptable_contribution", "feature_by_input")
"""Utilities of the activation's deviation from its mean."""
LARGE = 2**17
"""Entries of a weight from which on one pass in C, instead of two and a copy, is worth the call."""


def outgoing(group: UnitGroup) -> Tensor:
    """Return the summed magnitude of the outgoing weights in each column, (R?, units * out_repeat)."""
    first, *others = (_columns(group, weight_of(module)) for module in group.out_modules)
    for sums in others:
        first = first + sums
    return first


def outgoing_of_all(groups: Sequence[UnitGroup]) -> list[Tensor]:
    """Return the same for several groups, where their layers are small in fewer calls."""
    weights = []
    for group in groups:
        weight = weight_of(group.out_modules[0])
        if group.heard_by_conv or len(group.out_modules) > 1 or weight.numel() >= LARGE:
            return [outgoing(group) for group in groups]
        weights.append(weight)
    return [magnitudes.sum(-2) for magnitudes in torch._foreach_abs(weights)]


def _columns(group: UnitGroup, weight: Tensor) -> Tensor:
    if group.heard_by_conv:
        weight = weight.flatten(group.lead + 2).transpose(-1, -2).flatten(group.lead, -2)
    return absolute_sums(weight)


def incoming(group: UnitGroup) -> Tensor:
    """Return the mean magnitude of each unit's incoming weights, (R?, units)."""
    weight = weight_of(group.in_module).flatten(group.lead + 1)
    if _for_native(weight):
        return native.absolute_sums(weight)[0] / weight.shape[-1]
    return weight.abs().mean(-1)


def absolute_sums(weight: Tensor) -> Tensor:
    """Return the sums of magnitudes over the rows of (R?, rows, columns)."""
    return native.absolute_sums(weight)[1] if _for_native(weight) else weight.abs().sum(-2)


def _for_native(weight: Tensor) -> bool:
    return weight.numel() >= LARGE and native.fits(weight) and native.available()


def instantaneous(kind: str, group: UnitGroup, samples: Tensor, mean: Tensor) -> Tensor:
    """Return the utility that units have for one batch, (R?, units).

    With h the activations of the batch, W the outgoing and V the incoming weights of a unit, the mean over them all,
    and f the mean activation so far: ``contribution`` is mean|W| mean|h|, ``zero_contribution`` mean|W| mean|h - f|,
    ``adaptable_contribution`` that / mean|V|, ``adaptation`` 1 / mean|V|, ``feature_by_input`` mean|h - f| / mean|V|,
    ``weight`` mean|W|. Where a unit has several columns, each is multiplied with what it carries, then averaged.

    Parameters
    ----------
    kind : str
        One of :data:`UTILITIES` but ``random``.
    group : UnitGroup
        The layer.
    samples : Tensor
        Activations (R?, samples, units * out_repeat).
    mean : Tensor
        Bias-corrected mean activations (R?, units); only looked at by the utilities in :data:`CENTRED`.
    """
    if kind == "weight":
        return group.fold(outgoing(group)) / group.out_weights
    if kind == "adaptation":
        return 1 / incoming(group)
    if kind in CENTRED:
        centre = mean if group.out_repeat == 1 else mean.repeat_interleave(group.out_repeat, -1)
        samples = samples - centre.unsqueeze(-2)
    magnitude = over_samples(samples.abs())
    if kind == "feature_by_input":
        return group.fold(magnitude) / incoming(group)
    contribution = group.fold(magnitude * outgoing(group)) / group.out_weights
    return contribution / incoming(group) if kind == "adaptable_contribution" else contribution


def over_samples(values: Tensor) -> Tensor:
    """Return the mean over samples (R?, samples, n); a batch of one needs no pass."""
    return values.squeeze(-2) if values.shape[-2] == 1 else values.mean(-2)


def relative(magnitudes: Tensor, silence: float = 0.0) -> Tensor:
    """Return magnitudes (R?, units) over their layer's mean; what is not finite is NaN and counts for no mean.

    ``silence`` is added to the mean; without it, a layer of zeros is NaN too.

    Examples
    --------
    >>> relative(torch.tensor([1.0, 3.0, torch.inf]))
    tensor([0.5000, 1.5000,    nan])
    """
    finite = magnitudes.masked_fill(~magnitudes.isfinite(), torch.nan)
    return finite / (finite.nanmean(-1, keepdim=True) + silence)
