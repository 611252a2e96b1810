"""Reads off optimizers and penalties how each parameter of each replica moves, as numbers for C's training loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.learners.draws import Draws
from driftline.learners.lockstep.optimizer import RatePerReplica
from driftline.learners.optimizers import UPGD, PerturbedSGD, ShrinkAndPerturb
from driftline.learners.optimizers.base import StreamOptimizer
from driftline.learners.optimizers.fans import fan_ins
from driftline.learners.optimizers.passes import is_on
from driftline.learners.penalties import L2, L2Init
from driftline.learners.replicas import Setting
from driftline.native.network import UnsupportedError

HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


@dataclass
class Movement:
    """What one parameter is moved with; lists have one number for each replica.

    Parameters
    ----------
    keep, rate, noise : list of float
        w <- keep w + rate g + noise n by descent; UPGD's noise is its sigma.
    pull, pull_initial : list of float
        g <- g + pull w - pull_initial w0, before.
    beta : list of float
        Of UPGD's trace.
    noisy : bool
        Whether the parameter takes part in the draw of noise.
    """

    keep: list[float]
    rate: list[float]
    noise: list[float]
    pull: list[float]
    pull_initial: list[float]
    beta: list[float] = field(default_factory=list)
    noisy: bool = False

    def rows(self) -> list[tuple[float, ...]]:
        """Return the numbers of each replica in the order of C's ``numbers``."""
        beta = self.beta or [0.0] * len(self.keep)
        return list(zip(self.pull, self.pull_initial, self.keep, self.rate, self.noise, beta))


@dataclass
class Motion:
    """How an optimizer moves all its parameters.

    Parameters
    ----------
    kind, noise : str
        Names in :mod:`driftline.native.structures`.
    each : dict
        By parameter's id, in the optimizer's order.
    flags : dict
        UPGD's ``local``, ``released`` and ``protecting``.
    """

    kind: str
    noise: str
    each: dict[int, Movement]
    flags: dict[str, bool] = field(default_factory=dict)


def read_optimizer(optimizer: Optimizer, params: Sequence[Tensor], replicas: int) -> Motion:
    """Return how an optimizer moves these parameters now.

    Raises
    ------
    UnsupportedError
        For an optimizer, or a setting of it, that has no compiled form.
    """
    kind, name = type(optimizer), type(optimizer).__name__
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if {id(p) for p in held} != {id(p) for p in params}:
        raise UnsupportedError(f"{name} does not hold exactly the model's parameters")
    if any(getattr(optimizer, hooks, None) for hooks in HOOKS):
        raise UnsupportedError(f"a hook on {name} wants to see every step")
    if kind is torch.optim.SGD:
        return _sgd(optimizer, None, replicas)
    if kind is RatePerReplica and type(optimizer.optimizer) is torch.optim.SGD:  # type: ignore[attr-defined]
        return _sgd(optimizer, optimizer.lr, replicas)  # type: ignore[attr-defined]
    if kind in (ShrinkAndPerturb, PerturbedSGD):
        return _shrink_and_perturb(optimizer, replicas)  # type: ignore[arg-type]
    if kind is UPGD:
        return _upgd(optimizer, replicas)  # type: ignore[arg-type]
    raise UnsupportedError(f"{name} has no compiled form; SGD, PerturbedSGD, ShrinkAndPerturb and UPGD have")


def _sgd(optimizer: Optimizer, lr: Setting | None, replicas: int) -> Motion:
    each = {}
    for group in optimizer.param_groups:
        for setting in ("momentum", "nesterov", "maximize", "differentiable"):
            if group.get(setting):
                raise UnsupportedError(f"SGD with {setting}={group[setting]} has no compiled form")
        rate = _each(lr if lr is not None else float(group["lr"]), replicas)
        decay = _each(float(group["weight_decay"]), replicas)
        for p in group["params"]:
            each[id(p)] = _movement(keep=[1.0] * replicas, rate=[-r for r in rate], pull=decay)
    return Motion("descent", "quiet", each)


def _shrink_and_perturb(optimizer: ShrinkAndPerturb, replicas: int) -> Motion:
    form = optimizer.form
    each: dict[int, Movement] = {}
    noisy: list[Tensor] = []
    for group in optimizer.param_groups:
        lr, sigma, decay = (_each(group[name], replicas) for name in ("lr", "sigma", "decay"))
        rate, noise = [-r for r in lr], list(sigma)
        keep = [1.0] * replicas
        if form in ("scaled", "unscaled"):
            keep = [1 - r * d for r, d in zip(lr, decay)]
        if form == "scaled":
            noise = [-r * s for r, s in zip(lr, sigma)]
        if form == "fresh":
            keep = [1 - d for d in decay]
            rate = [r * k for r, k in zip(rate, keep)]
        perturbs = form != "boundary" and is_on(noise) and optimizer.draws is not None
        for p in group["params"]:
            each[id(p)] = _movement(keep, rate, noise=noise if perturbs else None)
        noisy += group["params"] if perturbs else []
    if form == "fresh":
        for p, fan_in in zip(noisy, fan_ins(noisy, optimizer.replicas)):
            width = 0.0 if fan_in is None else fan_in**-0.5
            each[id(p)].noise = [s * width for s in each[id(p)].noise]
    kind = ("uniform" if form == "fresh" else "normal") if noisy else "quiet"
    _check_draws(optimizer, noisy)
    return Motion("descent", kind, each)


def _upgd(optimizer: UPGD, replicas: int) -> Motion:
    for name, wanted in (("order", 1), ("scope", "weight"), ("moments", False), ("noise", "fresh")):
        if (found := getattr(optimizer, name)) != wanted:
            raise UnsupportedError(f"UPGD with {name}={found!r} has no compiled form")
    each: dict[int, Movement] = {}
    noisy: list[Tensor] = []
    for group in optimizer.param_groups:
        names = ("lr", "sigma", "beta_utility", "weight_decay")
        lr, sigma, beta, decay = (_each(group[name], replicas) for name in names)
        perturbs = is_on(sigma) and optimizer.draws is not None
        keep, rate = [1 - r * d for r, d in zip(lr, decay)], [-optimizer.stretch * r for r in lr]
        for p in group["params"]:
            each[id(p)] = _movement(keep, rate, noise=sigma if perturbs else None, beta=beta)
        noisy += group["params"] if perturbs else []
    flags = {
        "local": optimizer.scaling == "local",
        "released": optimizer.variant != "paper",
        "protecting": optimizer.protecting,
    }
    _check_draws(optimizer, noisy)
    return Motion("upgd", "normal" if noisy else "quiet", each, flags)


def read_penalties(penalties: Sequence[object], model: nn.Module, motion: Motion, replicas: int) -> None:
    """Add what penalties pull with to a motion.

    Raises
    ------
    UnsupportedError
        For a penalty that has no compiled form.
    """
    for penalty in penalties:
        if type(penalty) not in (L2, L2Init):
            name = getattr(penalty, "__name__", type(penalty).__name__)
            raise UnsupportedError(f"the penalty {name} has no compiled form; L2 and L2Init have")
        assert isinstance(penalty, L2 | L2Init)
        if penalty.after_step:
            raise UnsupportedError(f"a decoupled {type(penalty).__name__} has no compiled form")
        if penalty.off:
            continue
        pull = [2.0 * s for s in _each(penalty.strength, replicas)]
        for p in penalty.named_parameters(model).values():
            moved = motion.each[id(p)]
            moved.pull = [a + b for a, b in zip(moved.pull, pull)]
            if type(penalty) is L2Init:
                if any(moved.pull_initial):
                    raise UnsupportedError("two penalties L2Init have no compiled form")
                moved.pull_initial = pull


def targets_of(penalties: Sequence[object], model: nn.Module) -> dict[int, Tensor]:
    """Return what parameters are pulled to, by their ids."""
    found: dict[int, Tensor] = {}
    for penalty in penalties:
        if isinstance(penalty, L2Init) and not penalty.off:
            targets = penalty.targets(model, training=True)
            found |= {id(p): targets[name] for name, p in penalty.named_parameters(model).items()}
    return found


def settings_of(optimizer: Optimizer, penalties: Sequence[object]) -> tuple[object, ...]:
    """Return everything that a motion is read from and that may change between two calls."""
    groups = [tuple((k, _plain(v)) for k, v in g.items() if k != "params") for g in optimizer.param_groups]
    return (*groups, _plain(getattr(optimizer, "lr", None)), *(_plain(p.strength) for p in penalties))  # type: ignore[attr-defined]


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return float(value)
    return tuple(value) if isinstance(value, list) else value


def _movement(
    keep: list[float],
    rate: list[float],
    noise: list[float] | None = None,
    pull: list[float] | None = None,
    beta: list[float] | None = None,
) -> Movement:
    nothing = [0.0] * len(keep)
    return Movement(keep, rate, noise or nothing, pull or nothing, nothing, beta or nothing, noise is not None)


def _each(value: Setting, replicas: int) -> list[float]:
    return [float(v) for v in value] if isinstance(value, Sequence) else [float(value)] * replicas


def _check_draws(optimizer: StreamOptimizer, noisy: Sequence[Tensor]) -> None:
    if noisy and type(optimizer.draws) is not Draws:
        raise UnsupportedError(f"the draws of {type(optimizer).__name__} were replaced")
