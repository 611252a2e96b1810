"""Lays out a learner's layers and optimizer for C's training loop, as they are at a call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.learners.draws import Draws
from driftline.learners.optimizers.base import StreamOptimizer
from driftline.native import structures
from driftline.native.kernels import fits
from driftline.native.moving import Motion, read_optimizer, read_penalties, settings_of, targets_of
from driftline.native.network import Dense, UnsupportedError

Layers = ctypes.Array[structures.Layer]


class Layout:
    """Layers, optimizer and penalties of one learner.

    Parameters
    ----------
    model : nn.Module
        The model.
    layers : sequence of Dense
        Its layers.
    optimizer : Optimizer
        What moves their parameters.
    penalties : sequence
        What pulls them.
    replicas : int
        How many, 1 without replicas.

    Raises
    ------
    UnsupportedError
        For an optimizer or penalty that has no compiled form.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Dense],
        optimizer: Optimizer,
        penalties: Sequence[object],
        replicas: int,
    ) -> None:
        self.model, self.layers, self.optimizer, self.penalties = model, layers, optimizer, penalties
        self.replicas = replicas
        self.params = [p for layer in layers for p in layer.parameters()]
        self._settings: tuple[object, ...] | None = None
        self._read()
        if not fits(*targets_of(penalties, model).values()):
            raise UnsupportedError("the targets of L2Init are not in float32 on the CPU")

    def lay_out(self, kept: list[object]) -> tuple[Layers, structures.Optimizer]:
        """Return C's structures; what they refer to is added to ``kept``."""
        if settings_of(self.optimizer, self.penalties) != self._settings:
            self._read()
        motion, optimizer = self._motion, self.optimizer
        targets = targets_of(self.penalties, self.model)
        utility = motion.kind == "upgd"
        made: dict[int, structures.Parameter] = {}
        spans: list[structures.Span] = []
        place = 0
        for p in self.params:
            size = p.numel() // self.replicas
            each, drawn = ctypes.addressof(self._numbers[id(p)]), self._drawn[id(p)]
            target = targets.get(id(p))
            parameter = structures.Parameter(
                value=p.data_ptr(),
                trace=self._trace(p).data_ptr() if utility else None,
                initial=None if target is None else target.data_ptr(),
                each=each,
                size=size,
                place=place,
                drawn=drawn,
            )
            made[id(p)] = parameter
            if utility:
                _add_span(spans, parameter, p.shape[-1], optimizer.state[p]["step"], motion.flags["local"])
            place += size
        layers = (structures.Layer * len(self.layers))(*(_layer(layer, made) for layer in self.layers))
        all_spans = (structures.Span * len(spans))(*spans)
        kept += [layers, all_spans, self._numbers]
        described = structures.Optimizer(
            kind=structures.OPTIMIZERS.index(motion.kind),
            noise=structures.NOISES.index(motion.noise),
            step=getattr(optimizer, "steps", 0),
            draw=self._draw,
            spans=len(spans),
            span=ctypes.addressof(all_spans),
            **motion.flags,
        )
        if motion.noise != "quiet":
            draws = optimizer.draws  # type: ignore[attr-defined]
            assert isinstance(draws, Draws)
            keys = draws.keys.contiguous()
            described.keys = keys.data_ptr()
            kept.append(keys)
        return layers, described

    def count(self, steps: int) -> None:
        """Let the optimizer know how many steps were made."""
        if isinstance(self.optimizer, StreamOptimizer):
            self.optimizer.steps += steps
        if self._motion.kind == "upgd":
            for p in self.params:
                self.optimizer.state[p]["step"] += steps

    def _read(self) -> None:
        """Read the settings, and what follows from them alone."""
        motion: Motion = read_optimizer(self.optimizer, self.params, self.replicas)
        read_penalties(self.penalties, self.model, motion, self.replicas)
        self._motion, self._settings = motion, settings_of(self.optimizer, self.penalties)
        self._drawn, self._draw = {}, 0
        for p in (p for group in self.optimizer.param_groups for p in group["params"]):
            noisy = motion.each[id(p)].noisy
            self._drawn[id(p)] = self._draw if noisy else -1
            self._draw += p.numel() // self.replicas if noisy else 0
        arrays: dict[tuple[object, ...], Any] = {}
        self._numbers = {}
        for p in self.params:
            rows = tuple(motion.each[id(p)].rows())
            if rows not in arrays:
                arrays[rows] = (structures.Numbers * self.replicas)(*(structures.Numbers(*row) for row in rows))
            self._numbers[id(p)] = arrays[rows]

    def _trace(self, p: Tensor) -> Tensor:
        state = self.optimizer.state[p]
        state.setdefault("step", 0)
        if "utility" not in state:
            state["utility"] = torch.zeros_like(p)
        trace: Tensor = state["utility"]
        return trace


def _layer(layer: Dense, made: dict[int, structures.Parameter]) -> structures.Layer:
    module = layer.module
    return structures.Layer(
        inputs=module.in_features,
        outputs=module.out_features,
        activation=structures.ACTIVATIONS.index(layer.activation),
        slope=layer.slope,
        weight=made[id(module.weight)],
        bias=structures.Parameter() if module.bias is None else made[id(module.bias)],
    )


def _add_span(
    spans: list[structures.Span], parameter: structures.Parameter, unit: int, steps: int, local: bool
) -> None:
    """Let a parameter join the span before where both move alike, or begin a new one."""
    last = spans[-1] if spans and not local else None
    if last is not None and (last.each, last.steps) == (parameter.each, steps):
        follows = last.drawn + last.size == parameter.drawn if last.drawn >= 0 else parameter.drawn < 0
        if follows:
            last.size += parameter.size
            return
    spans.append(structures.Span(parameter.each, parameter.size, parameter.place, parameter.drawn, unit, steps))
