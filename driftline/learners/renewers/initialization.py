"""How large the incoming weights of a renewed unit are: uniform between plus and minus a bound."""

from __future__ import annotations

import math
from typing import Literal, get_args

from driftline.learners.renewers.unit_groups import UnitGroup, weight_of

Initialization = Literal["kaiming", "default", "xavier", "lecun"]
INITIALIZATIONS: tuple[str, ...] = get_args(Initialization)
GAINS = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "leaky_relu": math.sqrt(2 / (1 + 0.01**2))}
"""As in ``torch.nn.init.calculate_gain``; everything else counts as ReLU."""


def bound(group: UnitGroup, initialization: str, released: bool = False) -> float:
    """Return the bound B of new incoming weights, drawn uniformly from (-B, B).

    ``default`` is torch's sqrt(1 / fan_in), ``kaiming`` gain sqrt(3 / fan_in), ``xavier``
    gain sqrt(6 / (fan_in + fan_out)), ``lecun`` sqrt(3 / fan_in), which SELU always takes. In the released code
    convolutions always take ``default``.

    Examples
    --------
    >>> from torch import nn
    >>> group = UnitGroup(nn.Linear(6, 8), (nn.Linear(8, 3),), activation="relu")
    >>> bound(group, "kaiming"), bound(group, "xavier")
    (1.0..., 0.9258...)
    """
    units, *fan = weight_of(group.in_module).shape[group.lead :]
    fan_in = math.prod(fan)
    gain = GAINS.get(group.activation, math.sqrt(2))
    if initialization == "default" or (released and group.is_conv):
        return math.sqrt(1 / fan_in)
    if initialization == "lecun" or group.activation == "selu":
        return math.sqrt(3 / fan_in)
    if initialization == "xavier":
        return gain * math.sqrt(6 / (fan_in + units * math.prod(fan[1:])))
    return gain * math.sqrt(3 / fan_in)
