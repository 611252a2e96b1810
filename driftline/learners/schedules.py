"""Step sizes under shift: how large an update should be while what is to be learned moves.

Fahrbach, Javanmard, Mirrokni & Worah, "Learning Rate Schedules in the Presence of Distribution Shift" (ICML 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from driftline.errors import ConfigError


class StepSizes(LRScheduler):
    """Gives every parameter group of an optimizer the next of a sequence of step sizes, one after each update.

    Parameters
    ----------
    optimizer : Optimizer
        Any; its ``lr`` is set.
    rates : sequence of float
        Step size of each update, above 0; the last one stays.

    Raises
    ------
    ConfigError
        For a schedule with no steps, or a step size that is not a finite number of at least 0.

    Examples
    --------
    >>> import torch
    >>> from functools import partial
    >>> from driftline.learners import GradientLearner
    >>> model = torch.nn.Linear(4, 3)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    >>> learner = GradientLearner(model, optimizer, schedule=partial(StepSizes, rates=[0.1, 0.2]))
    >>> learner.learn(torch.eye(4)[:3], torch.arange(3))
    >>> optimizer.param_groups[0]["lr"]
    0.2
    """

    def __init__(self, optimizer: Optimizer, rates: Sequence[float]) -> None:
        self.rates = [float(rate) for rate in rates]
        if not self.rates:
            raise ConfigError("StepSizes: a schedule with no steps; give at least one step size")
        for step, rate in enumerate(self.rates):
            if not (math.isfinite(rate) and rate >= 0):
                raise ConfigError(f"StepSizes: step {step} has size {rate}; give finite numbers of at least 0")
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """Return the step size of the next update for each parameter group."""
        rate = self.rates[min(self.last_epoch, len(self.rates) - 1)]
        return [rate for _ in self.optimizer.param_groups]


def regression_step_sizes(
    shift: Sequence[float], noise: float, dimension: int, batch_size: int = 1, distance: float = 1.0
) -> list[float]:
    """Return the step sizes of SGD that minimise the expected regret of drifting linear regression.

    Parameters
    ----------
    shift : sequence of float
        How far the true coefficients move after each update (Euclidean norm); one for each step, at least 0.
    noise : float
        Standard deviation of the noise in the targets, at least 0.
    dimension : int
        Number of inputs, which are standard normal.
    batch_size : int
        Samples in an update, with one mean gradient of ``(prediction - y)^2 / 2``. For a loss without the half, such
        as ``mse_loss``, halve the step sizes.
    distance : float
        Distance of the first model from the first truth, at least 0.

    Returns
    -------
    list of float
        One step size for each step.

    Raises
    ------
    ConfigError
        For a schedule with no steps, or a number out of range.

    Notes
    -----
    With v the expected squared distance from the truth, an update with step size eta and a move by gamma in a random
    direction give, for inputs from N(0, I) in d dimensions and B samples with noise sigma,
    ``v' = v (1 - 2 eta + eta^2 (B + d + 1) / B) + eta^2 d sigma^2 / B + gamma^2``. The regret is the sum of v / 2.
    Since the smallest v' grows with v, minimising each v' minimises the sum:
    ``eta = v / (v (B + d + 1) / B + d sigma^2 / B)``. Without shift v falls like 1 / t, and so does eta; each move
    raises v, and eta with it. This is the paper's problem of linear regression, solved exactly in discrete time, where
    the paper goes through stochastic differential equations.

    Examples
    --------
    >>> still = regression_step_sizes([0.0] * 1000, noise=1.0, dimension=10)
    >>> moving = regression_step_sizes([0.1] * 1000, noise=1.0, dimension=10)
    >>> round(still[-1], 4), round(moving[-1], 4)
    (0.001, 0.0262)
    """
    _positive("dimension", dimension, 1)
    _positive("batch_size", batch_size, 1)
    _positive("noise", noise, 0)
    _positive("distance", distance, 0)
    _check(shift)
    error, rates = distance**2, []
    for moved in shift:
        curvature = error * (batch_size + dimension + 1) / batch_size
        variance = dimension * noise**2 / batch_size
        rate = error / (curvature + variance) if error else 0.0
        rates.append(rate)
        error = error * (1 - 2 * rate) + rate**2 * (curvature + variance) + moved**2
    return rates


def convex_step_sizes(
    shift: Sequence[float], gradient: float, diameter: float, largest: float = math.inf
) -> list[float]:
    """Return step sizes that minimise a bound on the regret of SGD for any convex loss.

    Parameters
    ----------
    shift : sequence of float
        How far the best parameters move after each update, at most; one for each step, at least 0.
    gradient : float
        Bound on the gradients' root mean square norm, noise included, above 0.
    diameter : float
        Bound on the distance between the parameters and the best ones, above 0.
    largest : float
        Step sizes are cut off here, such as where SGD would diverge; above 0.

    Returns
    -------
    list of float
        One step size for each step.

    Raises
    ------
    ConfigError
        For a schedule with no steps, or a number out of range.

    Notes
    -----
    With D the diameter, G the gradients' bound and gamma the moves, a constant step size eta over T steps has a regret
    of at most ``D^2 / (2 eta) + sum_t (D gamma_t + gamma_t^2 / 2) / eta + T eta G^2 / 2`` (from
    ``|theta - best|^2`` before and after a step). Its minimum for a shift that stays is
    ``eta = sqrt(D^2 / T + 2 D gamma + gamma^2) / G``, which is taken at each step with that step's gamma. The paper
    schedules convex losses by bounds as well; this one is derived here, and its constants need not be the paper's.

    Examples
    --------
    >>> [round(rate, 3) for rate in convex_step_sizes([0.0, 0.0, 0.1, 0.0], gradient=2.0, diameter=1.0)]
    [0.25, 0.25, 0.339, 0.25]
    """
    _check(shift)
    _positive("gradient", gradient, 0, strictly=True)
    _positive("diameter", diameter, 0, strictly=True)
    if not largest > 0:
        raise ConfigError(f"largest={largest}: must be above 0")
    squares = [diameter**2 / len(shift) + 2 * diameter * moved + moved**2 for moved in shift]
    return [min(math.sqrt(square) / gradient, largest) for square in squares]


def _check(shift: Sequence[float]) -> None:
    if not len(shift):
        raise ConfigError("shift=[]: a schedule with no steps; give the shift after each step")
    for moved in shift:
        _positive("shift", moved, 0)


def _positive(name: str, value: float, low: float, strictly: bool = False) -> None:
    if not math.isfinite(value) or value < low or (strictly and value == low):
        raise ConfigError(f"{name}={value}: must be a finite number {'above' if strictly else 'of at least'} {low}")
