"""Shrinking and perturbing, as optimizers do it in their own step or around another's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from driftline.errors import unknown
from driftline.learners.draws import Draws
from driftline.learners.optimizers.fans import fan_ins
from driftline.learners.optimizers.noise import cut, flat_normal
from driftline.learners.optimizers.passes import Factors, add_, combine, is_on, scale_
from driftline.learners.replicas import Setting, check_setting

Form = Literal["scaled", "unscaled", "fresh", "boundary"]
FORMS: tuple[Form, ...] = ("scaled", "unscaled", "fresh", "boundary")
BOUNDARY_LANE = 1
"""Part of the address that keeps draws at boundaries apart from those of steps."""

Part = tuple[list[Tensor], Setting, Setting, Setting]
"""Parameters and their learning rate, sigma and decay."""


class Perturbing:
    """The four forms; an optimizer calls :meth:`shrink` before and :meth:`perturb` after its step."""

    form: Form
    replicas: int | None
    draws: Draws | None
    factor: Factors
    steps: int
    boundaries: int

    def shrink(self, part: Part) -> None:
        """Shrink before the step, in proportion to the learning rate."""
        params, lr, _, decay = part
        if self.form in ("scaled", "unscaled"):
            scale_(params, self.factor(combine(lambda lr, decay: 1 - lr * decay, lr, decay), params))

    def perturb(self, parts: Sequence[Part]) -> None:
        """Perturb after the step, with one draw over all parameters in their order."""
        if self.form == "boundary":
            return
        if self.form == "fresh":
            for params, _, _, decay in parts:
                scale_(params, self.factor(combine(lambda decay: 1 - decay, decay), params))
        scaled = self.form == "scaled"
        self._add([(p, combine(lambda lr, s: -lr * s if scaled else s, lr, s)) for p, lr, s, _ in parts], self.steps)

    def shrink_and_perturb(self) -> None:
        """Shrink all parameters by 1 - decay and add noise of standard deviation sigma, as between two tasks."""
        with torch.no_grad():
            parts = [part for part in self.all_parts() if part[0]]
            for params, _, _, decay in parts:
                scale_(params, self.factor(combine(lambda decay: 1 - decay, decay), params))
            self._add([(params, sigma) for params, _, sigma, _ in parts], self.boundaries, BOUNDARY_LANE)
        self.boundaries += 1

    def all_parts(self) -> list[Part]:
        """Return the parameters that can be trained, with or without a gradient."""
        raise NotImplementedError

    def _add(self, parts: Sequence[tuple[list[Tensor], Setting]], address: int, lane: int = 0) -> None:
        noisy = [(params, rate) for params, rate in parts if params and is_on(rate)]
        every = [p for params, _ in noisy for p in params]
        if not every or self.draws is None:
            return
        if self.form == "fresh" and lane == 0:
            drawn = self._initial(self.draws, address, every)
        else:
            drawn = cut(flat_normal(self.draws, address, every, self.replicas, lane), every, self.replicas)
        for params, rate in noisy:
            add_(params, drawn[: len(params)], self.factor(rate, params))
            drawn = drawn[len(params) :]

    def _initial(self, draws: Draws, address: int, params: Sequence[Tensor]) -> list[Tensor]:
        """Return weights and biases as torch's layers begin with: uniform within one over the root of the fan-in."""
        count = sum(p.numel() for p in params) // (self.replicas or 1)
        flat = draws.uniform(address, count, device=params[0].device, dtype=params[0].dtype)
        widths = [0.0 if fan is None else fan**-0.5 for fan in fan_ins(params, self.replicas)]
        return [(2 * u - 1) * width for u, width in zip(cut(flat, params, self.replicas), widths)]


def check_form(form: Form, decay: Setting, replicas: int | None) -> None:
    """Raise for a form that is not known, or a decay that does not fit it.

    Raises
    ------
    ConfigError
    """
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    check_setting("decay", decay, replicas, low=0, high=1 if form in ("fresh", "boundary") else None)
