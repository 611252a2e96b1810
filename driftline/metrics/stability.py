"""How far accuracy dips right after a task changes, from evaluations at (nearly) every iteration.

De Lange, van de Ven & Tuytelaars, "Continual evaluation for lifelong learning: identifying the stability gap",
ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from driftline.errors import ConfigError, DataError

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StabilityGap:
    """Stability-gap metrics as they stood after each of N evaluations of T tasks; NaN where not defined yet.

    Attributes
    ----------
    min_acc : array, shape (N, T)
        Lowest accuracy so far on a task while another one was being learned.
    min_acc_mean : array, shape (N,)
        Mean of ``min_acc`` over the tasks learned before the current one (the paper's min-ACC).
    wc_acc : array, shape (N,)
        Worst-case accuracy: the mean, over all tasks learned so far, of the current task's accuracy and the others'
        ``min_acc``.
    forgetting, plasticity : dict of int to array, shape (N, T)
        For each window W, the largest fall and rise between two of W successive evaluations of a task so far;
        never negative (the paper's windowed forgetting and plasticity of a single task).
    forgetting_mean, plasticity_mean : dict of int to array, shape (N,)
        Their means over the tasks learned so far (the paper's WF and WP).
    """

    min_acc: Array
    min_acc_mean: Array
    wc_acc: Array
    forgetting: dict[int, Array]
    plasticity: dict[int, Array]
    forgetting_mean: dict[int, Array]
    plasticity_mean: dict[int, Array]


def stability_gap(acc: ArrayLike, current_task: ArrayLike, windows: Sequence[int] = (10, 100)) -> StabilityGap:
    """Return min-ACC, WC-ACC and windowed forgetting and plasticity after every evaluation.

    Parameters
    ----------
    acc : array, shape (N, T)
        ``acc[n, t]``: accuracy on task t at evaluation n. Entries of tasks not learned yet are not read and may be NaN.
    current_task : array of int, shape (N,)
        The task being learned at evaluation n; a task counts from the first evaluation at which it is current.
    windows : sequence of int, each at least 2
        Window lengths, in evaluations.

    Raises
    ------
    DataError
        When the shapes disagree, a task does not exist, or the accuracy of a learned task is not finite.
    ConfigError
        When a window cannot hold two evaluations.

    Notes
    -----
    Conventions of the authors' code (mattdl/ContinualEvaluation): a window runs on across task changes and includes the
    evaluations while its task is being learned; all tasks weigh the same in ``wc_acc``. Unlike there, tasks may come
    in any order and return, and means are float64. A minimum is biased low by small or noisy probe sets.

    Examples
    --------
    >>> gap = stability_gap([[0.9, 0.1], [0.2, 0.6], [0.7, 0.8]], [0, 1, 1], windows=[2])
    >>> float(gap.min_acc_mean[-1]), float(gap.wc_acc[-1]), round(float(gap.forgetting_mean[2][-1]), 3)
    (0.2, 0.5, 0.35)
    """
    accuracy, task = _checked(acc, current_task)
    seen = _seen(task, accuracy.shape[1])
    current = task[:, None] == np.arange(accuracy.shape[1])
    for window in windows:
        if window < 2:
            raise ConfigError(f"stability_gap: a window of {window} holds no two evaluations; use at least 2")

    known = np.where(seen, accuracy, np.nan)
    min_acc: Array = np.fmin.accumulate(np.where(current, np.nan, known), axis=0)
    forgetting = {w: np.where(seen, _largest_fall(known, w), np.nan) for w in windows}
    plasticity = {w: np.where(seen, _largest_fall(-known, w), np.nan) for w in windows}
    return StabilityGap(
        min_acc=min_acc,
        min_acc_mean=_mean(min_acc, seen & ~current),
        wc_acc=_mean(np.where(current, known, min_acc), seen),
        forgetting=forgetting,
        plasticity=plasticity,
        forgetting_mean={w: _mean(values, seen) for w, values in forgetting.items()},
        plasticity_mean={w: _mean(values, seen) for w, values in plasticity.items()},
    )


def learning_curve_area(acc: ArrayLike, current_task: ArrayLike, beta: int = 10) -> Array:
    """Return the area under the first evaluations of each task (LCA; Chaudhry et al., A-GEM, ICLR 2019).

    Parameters
    ----------
    acc, current_task
        See :func:`stability_gap`.
    beta : int, at least 1
        How many evaluations of a task, from when it is first current, count. The paper's LCA_b with b = beta - 1.

    Returns
    -------
    array, shape (N,)
        After each evaluation, the mean over the tasks that have been current ``beta`` times of their mean accuracy
        at those times; NaN before there is one.

    Raises
    ------
    DataError
        As :func:`stability_gap`.
    ConfigError
        When ``beta`` is below 1.

    Examples
    --------
    >>> learning_curve_area([[0.0], [0.5], [1.0]], [0, 0, 0], beta=2).tolist()
    [nan, 0.25, 0.25]
    """
    if beta < 1:
        raise ConfigError(f"learning_curve_area: beta={beta} evaluations; use at least 1")
    accuracy, task = _checked(acc, current_task)
    area = np.full(accuracy.shape, np.nan)
    for t in range(accuracy.shape[1]):
        first = np.flatnonzero(task == t)[:beta]
        if len(first) == beta:
            area[first[-1] :, t] = accuracy[first, t].mean()
    return _mean(area, ~np.isnan(area))


def _largest_fall(values: Array, window: int) -> Array:
    """Largest ``values[i] - values[j]``, j - window < i <= j, over all j up to each row; NaN values are left out."""
    fall = np.zeros_like(values)
    for lag in range(1, min(window, len(values))):
        np.fmax(fall[lag:], values[:-lag] - values[lag:], out=fall[lag:])
    largest: Array = np.maximum.accumulate(fall, axis=0)
    return largest


def _seen(task: NDArray[np.int64], tasks: int) -> NDArray[np.bool_]:
    seen: NDArray[np.bool_] = np.logical_or.accumulate(task[:, None] == np.arange(tasks), axis=0)
    return seen


def _mean(values: Array, where: NDArray[np.bool_]) -> Array:
    """Mean of the chosen entries of each row; NaN for a row with none."""
    count = where.sum(1)
    total = np.where(where, values, 0.0).sum(1)
    mean: Array = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def _checked(acc: ArrayLike, current_task: ArrayLike) -> tuple[Array, NDArray[np.int64]]:
    accuracy, task = np.asarray(acc, dtype=np.float64), np.asarray(current_task)
    if accuracy.ndim != 2 or task.shape != accuracy.shape[:1] or accuracy.size == 0:
        raise DataError(
            "expected acc of shape (evaluations, tasks) and current_task of shape (evaluations,), "
            f"got {accuracy.shape} and {task.shape}"
        )
    tasks = accuracy.shape[1]
    if not np.issubdtype(task.dtype, np.integer) or task.min() < 0 or task.max() >= tasks:
        raise DataError(f"current_task: expected integers in 0..{tasks - 1} (acc has {tasks} columns), got {task}")
    bad = np.argwhere(_seen(task.astype(np.int64), tasks) & ~np.isfinite(accuracy))
    if len(bad):
        row, t = bad[0]
        raise DataError(
            f"acc[{row}, {t}] is {accuracy[row, t]}, though task {t} has been learned by then; "
            "evaluate every learned task each time, or leave that evaluation out"
        )
    return accuracy, task.astype(np.int64)
