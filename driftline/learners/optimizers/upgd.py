"""Utility-based perturbed gradient descent: useful weights move less, the others move and are perturbed more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from driftline.errors import ConfigError, InputError, unknown
from driftline.learners.optimizers.adaptive import adam_directions
from driftline.learners.optimizers.base import Parameters, Ready, StreamOptimizer
from driftline.learners.optimizers.features import units_of
from driftline.learners.optimizers.fused import fused_step
from driftline.learners.optimizers.noise import NoisePool, cut, flat_normal
from driftline.learners.optimizers.passes import Factor, add_, combine, is_on, scale_
from driftline.learners.optimizers.utility import gated_step_, global_scale, local_scale, openness, trace_
from driftline.learners.replicas import Seeds, Setting

Variant = Literal["paper", "released", "readme"]


class Curvature(Protocol):
    """Gives second derivatives of the loss, such as :class:`driftline.learners.optimizers.HesScale`."""

    def take(self) -> Mapping[Tensor, Tensor]:
        """Return the diagonal for each parameter since the last call, and forget it."""


class UPGD(StreamOptimizer):
    """Utility-based perturbed gradient descent, with every variant of the paper in one class.

    The utility of a weight is what the loss would gain if it were set to 0, to first order -g w or to second
    order S w^2 / 2 - g w with a diagonal Hessian S, averaged over time. A sigmoid of the scaled utility is the
    weight's protection: it moves by lr (g + sigma n) (1 - protection). A step of UPGD is about half of one of SGD,
    since a utility of zero is protected by 1/2.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or parameter groups.
    lr : float or sequence of float
        Step size, at least 0.
    sigma : float or sequence of float
        Standard deviation of the noise, which is also scaled by ``lr``; 0 draws nothing.
    beta_utility : float or sequence of float
        Decay of the utility trace per step, in [0, 1).
    weight_decay : float or sequence of float
        Decoupled: weights shrink by 1 - lr weight_decay per step (UPGD-W).
    order : {1, 2}
        Order of the utility; 2 needs ``curvature``.
    scope : {"weight", "feature"}
        Whether a weight or a hidden unit has a utility. A unit's utility protects its incoming weights and bias;
        parameters of no unit (the output layer's) take plain gradient steps without noise.
    scaling : {"global", "local"}
        Utilities are divided by the largest of the network, or by the norm over each unit's incoming weights (over
        each layer's units with ``scope="feature"``).
    protecting : bool
        Whether utility gates the gradient too, or only the noise.
    moments : bool
        Step along Adam's direction in place of the gradient (AdaUPGD).
    beta1, beta2, eps : float or sequence of float
        Adam's decay rates and offset, with ``moments``.
    noise : {"fresh", "pool"}
        A new draw each step, or 64 draws in turn: 64 numbers kept for each parameter, but no random numbers to
        make.
    variant : {"paper", "released", "readme"}
        Which source is followed where they differ, see Notes.
    features : iterable, optional
        The hidden units for ``scope="feature"``: for each layer ``(in_weight, in_bias or None, out_weight)``, the
        last also a list of weights, or the unit groups of
        :func:`driftline.learners.renewers.unit_groups.find_unit_groups`.
    curvature : Curvature, optional
        Where the diagonal Hessian comes from for ``order=2``: ``HesScale(model)``.
    fused : bool
        Use the kernel in C for float32 weights on the CPU where it applies; the same to rounding.
    seed : int or sequence of int
        Of the noise; one for each replica.
    replicas : int, optional
        Number of runs in lockstep.

    Raises
    ------
    ConfigError
        For settings out of range or that do not fit together.

    Notes
    -----
    Elsayed & Mahmood, "Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning" (ICLR
    2024). ``"paper"`` divides bias-corrected utilities by their maximum, so protection is at most 0.731.
    ``"released"`` (the experiments' code) divides by the signed maximum of the uncorrected trace, so early gates
    saturate, and with ``moments`` doubles the step; ``"readme"`` (the code's front page) doubles it always.

    When no utility is positive, ``"paper"`` protects every weight by 1/2; so do all variants for gradients that
    are all zero, where the released code makes NaN. A gradient that is not finite spoils its own weight, as in SGD,
    and may leave the others protected by 1/2.

    A feature's utility is that of a gate of ones behind its activation, whose gradient equals the sum of w g over
    the outgoing weights. That is exact where nothing but pooling and flattening lies between.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(4, 3)
    >>> optimizer = UPGD(model.parameters(), lr=0.1, sigma=0.001)
    >>> x, y = torch.eye(4)[:3], torch.arange(3)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     torch.nn.functional.cross_entropy(model(x), y).backward()
    ...     optimizer.step()
    >>> model(x).argmax(1).tolist()
    [0, 1, 2]
    """

    purpose: ClassVar[str] = "upgd"
    of_units: ClassVar[tuple[str, ...]] = ("unit_utility",)
    bounds: ClassVar[Mapping[str, tuple[float | None, float | None]]] = {
        "lr": (0, None),
        "sigma": (0, None),
        "beta_utility": (0, 1 - 1e-12),
        "weight_decay": (0, None),
        "beta1": (0, 1 - 1e-12),
        "beta2": (0, 1 - 1e-12),
        "eps": (0, None),
    }

    def __init__(
        self,
        params: Parameters,
        lr: Setting = 0.01,
        sigma: Setting = 0.001,
        beta_utility: Setting = 0.999,
        weight_decay: Setting = 0.0,
        *,
        order: Literal[1, 2] = 1,
        scope: Literal["weight", "feature"] = "weight",
        scaling: Literal["global", "local"] = "global",
        protecting: bool = True,
        moments: bool = False,
        beta1: Setting = 0.9,
        beta2: Setting = 0.999,
        eps: Setting = 1e-5,
        noise: Literal["fresh", "pool"] = "fresh",
        variant: Variant = "paper",
        features: Iterable[Any] | None = None,
        curvature: Curvature | None = None,
        fused: bool = False,
        seed: Seeds = 0,
        replicas: int | None = None,
    ) -> None:
        for name, value, known in (
            ("scope", scope, ("weight", "feature")),
            ("scaling", scaling, ("global", "local")),
            ("noise", noise, ("fresh", "pool")),
            ("variant", variant, ("paper", "released", "readme")),
        ):
            if value not in known:
                raise unknown(name, value, known)
        if order not in (1, 2):
            raise ConfigError(f"order={order}: must be 1 or 2")
        if order == 2 and curvature is None:
            raise ConfigError("order=2 needs second derivatives: give curvature=HesScale(model)")
        if scope == "feature" and features is None:
            raise ConfigError('scope="feature" needs to know the units: give features=')
        self.order, self.scope, self.scaling, self.protecting = order, scope, scaling, protecting
        self.moments, self.noise, self.variant, self.fused = moments, noise, variant, fused
        self.features = None if features is None else list(features)
        self.curvature = curvature
        self.stretch = 2.0 if variant == "readme" or (variant == "released" and moments) else 1.0
        self._pool = NoisePool()
        self._units = [] if self.features is None else units_of(self.features, replicas)
        settings = {"lr": lr, "sigma": sigma, "beta_utility": beta_utility, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "beta1": beta1, "beta2": beta2, "eps": eps}, replicas, seed)

    def update(self, ready: list[Ready]) -> None:
        """Trace the utilities, scale them to gates, and make the gated step."""
        curvatures = self._curvatures(ready)
        if self.fused and fused_step(self, ready):
            return
        for part in ready:
            part.tick()
        by_scope = self._unit_gates if self.scope == "feature" else self._weight_gates
        gates = by_scope(ready, curvatures)
        noise = self._noise(ready, gates)
        for part in ready:
            directions = dict(zip(part.params, self.directions(part)))
            gated = [p for p in part.params if p in gates]
            if gated:
                self._gated_step(part, gated, directions, gates, noise)
            if plain := [p for p in part.params if p not in gates]:
                keep, rate = self._rates(part, plain)
                scale_(plain, keep)
                add_(plain, [directions[p] for p in plain], rate)

    def _curvatures(self, ready: list[Ready]) -> Mapping[Tensor, Tensor] | None:
        if self.order == 1 or self.curvature is None:
            return None
        found = self.curvature.take()
        missing = sum(p not in found for part in ready for p in part.params)
        if missing:
            raise InputError(
                f"UPGD: {missing} parameters have a gradient but no second derivative; "
                "they must belong to the model that the curvature was made for, and be of its last backward pass"
            )
        return found

    def _weight_gates(self, ready: list[Ready], curvatures: Mapping[Tensor, Tensor] | None) -> dict[Tensor, Tensor]:
        traces, corrections = [], []
        for part in ready:
            own, beta = part.tensors("utility"), part.group["beta_utility"]
            second = None if curvatures is None else [curvatures[p] for p in part.params]
            keep, minus_take = self.factor(beta, own), self.factor(combine(lambda b: b - 1, beta), own)
            trace_(own, part.params, part.grads, keep, minus_take, second)
            traces += own
            corrections += [combine(lambda b, t=t: 1 - b**t, beta) for t in part.counts]
        gates = self._opened(traces, corrections)
        return dict(zip((p for part in ready for p in part.params), gates))

    def _unit_gates(self, ready: list[Ready], curvatures: Mapping[Tensor, Tensor] | None) -> dict[Tensor, Tensor]:
        parts = {p: part for part in ready for p in part.params}
        units = [u for u in self._units if u.in_weight in parts and all(w in parts for w in u.out_weights)]
        if not units:
            return {}
        traces, corrections = [], []
        for u in units:
            # With the bias, which has as many entries, the trace is forgotten when a unit is renewed.
            owner = u.in_bias if u.in_bias is not None and u.in_bias in parts else u.in_weight
            state, beta = self.state[owner], parts[owner].group["beta_utility"]
            now = u.utility(curvatures)
            trace = state.setdefault("unit_utility", torch.zeros_like(now))
            scale_([trace], self.factor(beta, [trace]))
            add_([trace], [now], self.factor(combine(lambda b: 1 - b, beta), [trace]))
            state["unit_step"] = t = state.get("unit_step", 0) + 1
            traces.append(trace)
            corrections.append(combine(lambda b, t=t: 1 - b**t, beta))
        gates: dict[Tensor, Tensor] = {}
        for u, gate in zip(units, self._opened(traces, corrections)):
            gates |= {p: gate.view(*gate.shape, *(1 for _ in p.shape[gate.dim() :])) for p in u.gated() if p in parts}
        return gates

    def _opened(self, traces: list[Tensor], corrections: list[Setting]) -> list[Tensor]:
        rule = global_scale if self.scaling == "global" else local_scale
        return openness(traces, rule(traces, corrections, self.replicas, self.variant != "paper"))

    def directions(self, part: Ready) -> list[Tensor]:
        """Return the gradients, or with moments Adam's direction (without its step size)."""
        return adam_directions(self, part) if self.moments else part.grads

    def _noise(self, ready: list[Ready], gates: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Return the step's noise for the parameters that are perturbed."""
        perturbed = [p for part in ready if is_on(part.group["sigma"]) for p in part.params if p in gates]
        if not perturbed or self.draws is None:
            return {}
        return dict(zip(perturbed, cut(self.flat_noise(perturbed), perturbed, self.replicas)))

    def flat_noise(self, perturbed: list[Tensor]) -> Tensor:
        """Return one draw for all of these in their order, (n,) or (R, n)."""
        make = flat_normal if self.noise == "fresh" else self._pool.flat
        assert self.draws is not None
        return make(self.draws, self.steps, perturbed, self.replicas)

    def _rates(self, part: Ready, params: list[Tensor]) -> tuple[Factor, Factor]:
        """Return what parameters and directions are multiplied by."""
        lr, decay = part.group["lr"], part.group["weight_decay"]
        keep, rate = combine(lambda lr, decay: 1 - lr * decay, lr, decay), combine(lambda lr: -self.stretch * lr, lr)
        return self.factor(keep, params), self.factor(rate, params)

    def _gated_step(
        self,
        part: Ready,
        params: list[Tensor],
        directions: Mapping[Tensor, Tensor],
        gates: Mapping[Tensor, Tensor],
        noise: Mapping[Tensor, Tensor],
    ) -> None:
        keep, rate = self._rates(part, params)
        lr, sigma = part.group["lr"], part.group["sigma"]
        gated_step_(
            params,
            [directions[p] for p in params],
            [gates[p] for p in params],
            [noise[p] for p in params] if params[0] in noise else None,
            keep=keep,
            rate=rate,
            sigma=self.factor(sigma, params),
            noise_rate=self.factor(combine(lambda lr, sigma: -self.stretch * lr * sigma, lr, sigma), params),
            protecting=self.protecting,
        )
