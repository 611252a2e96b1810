"""Adam's moments as a direction, for the optimizers that gate it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from driftline.learners.optimizers.base import Ready, StreamOptimizer
from driftline.learners.optimizers.passes import add_product_, blend_, combine, scale_


def adam_directions(optimizer: StreamOptimizer, part: Ready) -> list[Tensor]:
    """Update the moments and return m_hat / (sqrt(v_hat) + eps) for each parameter.

    Kingma & Ba, "Adam: A Method for Stochastic Optimization" (ICLR 2015).
    """
    first, second = part.tensors("exp_avg"), part.tensors("exp_avg_sq")
    beta1, beta2, eps = (part.group[name] for name in ("beta1", "beta2", "eps"))
    blend_(first, part.grads, optimizer.factor(combine(lambda b: 1 - b, beta1), first))
    scale_(second, optimizer.factor(beta2, second))
    add_product_(second, part.grads, part.grads, optimizer.factor(combine(lambda b: 1 - b, beta2), second))
    # m / c1 / (sqrt(v / c2) + eps), with the corrections c1 and c2 drawn into the divisor
    divisors = list(torch._foreach_sqrt(second))
    stretch = [combine(lambda b1, b2, t=t: (1 - b1**t) / math.sqrt(1 - b2**t), beta1, beta2) for t in part.counts]
    offset = [combine(lambda b1, e, t=t: e * (1 - b1**t), beta1, eps) for t in part.counts]
    scale_(divisors, optimizer.factor.each(stretch, divisors))
    torch._foreach_add_(divisors, optimizer.factor.each(offset, divisors))
    return list(torch._foreach_div(first, divisors))
