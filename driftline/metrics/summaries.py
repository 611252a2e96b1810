"""What accuracies recorded during a run amount to: accuracy, forgetting, transfer, periodic evaluation.

Task matrices follow Lopez-Paz & Ranzato (GEM, NeurIPS 2017) and Chaudhry et al. (ECCV 2018), periodic records
i-Blurry (Koh et al., ICLR 2022) and Si-Blurry (Moon et al., ICCV 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from driftline.errors import CheckpointError, ConfigError, DataError, InputError

Array = NDArray[np.float64]
ForgettingVariant = Literal["chaudhry", "facil", "mammoth", "avalanche"]
TransferVariant = Literal["gem-paper", "gem-code", "mammoth", "diaz-rodriguez"]
ScheduleVariant = Literal["paper", "released"]


def average_accuracy(matrix: ArrayLike) -> float:
    """Return the mean accuracy over all T tasks after the last one was learned (Lopez-Paz & Ranzato, 2017).

    Parameters
    ----------
    matrix : array, shape (T, T)
        R of the literature: ``matrix[i, j]`` is the accuracy on task j after task i was learned. Entries above
        the diagonal (tasks not learned yet) may be NaN; a NaN among those a summary reads makes it NaN.

    Raises
    ------
    DataError
        When ``matrix`` is empty or not square; so do all functions here that take one.

    Examples
    --------
    >>> average_accuracy([[0.9, float("nan")], [0.5, 0.75]])
    0.625
    """
    return float(_square(matrix)[-1].mean())


def average_incremental_accuracy(matrix: ArrayLike) -> float:
    """Return the mean over i of the mean accuracy on tasks 0..i after task i (Rebuffi et al., iCaRL, 2017).

    Parameters
    ----------
    matrix : array, shape (T, T)
        See :func:`average_accuracy`.

    Examples
    --------
    >>> average_incremental_accuracy([[0.9, float("nan")], [0.5, 0.75]])
    0.7625
    """
    r = _square(matrix)
    return float(np.mean([row[: i + 1].mean() for i, row in enumerate(r)]))


def forgetting(matrix: ArrayLike, variant: ForgettingVariant = "chaudhry") -> float:
    """Return the accuracy lost on the first T-1 tasks by the end of the last, averaged over them.

    Libraries compute different numbers under this name, so save the variant beside the value.

    Parameters
    ----------
    matrix : array, shape (T, T)
        See :func:`average_accuracy`.
    variant : str
        What "before" means for task j:

        - ``"chaudhry"``: the best of ``R[j:T-1, j]``, from when j was learned, the last row left out; may be
          negative. ``"facil"`` is the same number.
        - ``"mammoth"``: the best of the whole column, the last row and rows before j was learned included
          (NaN there counts as 0); never negative.
        - ``"avalanche"``: ``R[j, j]``, not the best; the negative of :func:`backward_transfer`.

    Returns
    -------
    float
        In units of the accuracies; NaN when T = 1.

    Raises
    ------
    ConfigError
        On an unknown variant.

    Examples
    --------
    >>> matrix = [[0.50, 0.00, 0.00], [0.75, 0.50, 0.00], [0.25, 0.75, 1.00]]
    >>> forgetting(matrix), forgetting(matrix, "mammoth"), forgetting(matrix, "avalanche")
    (0.125, 0.25, 0.0)
    """
    _check(variant, ForgettingVariant, "forgetting")
    r = _square(matrix)
    tasks = len(r)
    if variant == "mammoth":
        seen = np.tril(np.ones_like(r, dtype=bool))
        before = np.where(~seen & np.isnan(r), 0.0, r).max(0)[:-1]
    elif variant == "avalanche":
        before = r.diagonal()[:-1]
    else:
        before = np.array([r[j : tasks - 1, j].max() for j in range(tasks - 1)])
    return _mean(before - r[-1, :-1])


def backward_transfer(matrix: ArrayLike, variant: TransferVariant = "gem-paper") -> float:
    """Return how learning later tasks changed the accuracy on earlier ones (Lopez-Paz & Ranzato, 2017).

    Parameters
    ----------
    matrix : array, shape (T, T)
        See :func:`average_accuracy`.
    variant : str
        - ``"gem-paper"``: the sum of ``R[T-1, j] - R[j, j]`` over j < T-1, divided by T-1. ``"mammoth"`` is the
          same number.
        - ``"gem-code"``: the same sum divided by T, as GEM's published code does.
        - ``"diaz-rodriguez"``: the mean of ``R[i, j] - R[j, j]`` over all pairs i > j (Diaz-Rodriguez et al., 2018).

    Returns
    -------
    float
        Negative when earlier tasks were forgotten; NaN when T = 1 (where GEM's code gives 0).

    Raises
    ------
    ConfigError
        On an unknown variant.

    Examples
    --------
    >>> matrix = [[1.0, 0.0], [0.5, 1.0]]
    >>> backward_transfer(matrix), backward_transfer(matrix, "gem-code")
    (-0.5, -0.25)
    """
    _check(variant, TransferVariant, "backward_transfer")
    r = _square(matrix)
    change = r - r.diagonal()
    if variant == "diaz-rodriguez":
        return _mean(change[np.tril_indices(len(r), -1)])
    return _transfer(change[-1, :-1], variant)


def forward_transfer(
    matrix: ArrayLike, baseline: ArrayLike | None = None, variant: TransferVariant = "gem-paper"
) -> float:
    """Return how well a task is solved just before it is learned, above chance (Lopez-Paz & Ranzato, 2017).

    Parameters
    ----------
    matrix : array, shape (T, T)
        See :func:`average_accuracy`. The entries just above the diagonal are needed: where they were not
        evaluated (NaN), the result is NaN.
    baseline : array, shape (T,), optional
        Accuracy of the untrained model on each task. ``"diaz-rodriguez"`` does not use it, the others need it.
    variant : str
        - ``"gem-paper"``: the sum of ``R[j-1, j] - baseline[j]`` over j > 0, divided by T-1. ``"mammoth"`` is
          the same number.
        - ``"gem-code"``: the same sum divided by T.
        - ``"diaz-rodriguez"``: the mean of all entries above the diagonal.

    Returns
    -------
    float
        NaN when T = 1 (where GEM's code gives 0).

    Raises
    ------
    ConfigError
        On an unknown variant, or a baseline missing where one is needed.
    DataError
        When ``baseline`` has not one entry per task.

    Examples
    --------
    >>> forward_transfer([[1.0, 0.375], [0.5, 1.0]], baseline=[0.125, 0.125])
    0.25
    """
    _check(variant, TransferVariant, "forward_transfer")
    r = _square(matrix)
    if variant == "diaz-rodriguez":
        return _mean(r[np.triu_indices(len(r), 1)])
    if baseline is None:
        raise ConfigError(
            f"forward_transfer: variant {variant!r} compares with an untrained model; give its accuracy on each "
            "task as baseline=, or use variant='diaz-rodriguez', which has no baseline"
        )
    start = np.asarray(baseline, dtype=np.float64)
    if start.shape != (len(r),):
        raise DataError(f"baseline: expected one accuracy per task, shape ({len(r)},), got {start.shape}")
    return _transfer(r.diagonal(1) - start[1:], variant)


def a_auc(accuracies: ArrayLike) -> float:
    """Return the area under the accuracy curve: the plain mean of the periodic evaluations (Koh et al., 2022).

    Parameters
    ----------
    accuracies : array, shape (evaluations,)
        Accuracy on the classes seen so far, at equal distances in the stream; evaluations at ends of tasks are
        not among them.

    Returns
    -------
    float
        NaN when nothing was evaluated; so do the other summaries of records.

    Examples
    --------
    >>> a_auc([0.5, 0.75, 1.0])
    0.75
    """
    return _mean(_record(accuracies, 1, "accuracies"))


def a_avg(task_acc: ArrayLike) -> float:
    """Return the mean of the accuracies at the ends of the tasks (Koh et al., 2022).

    Parameters
    ----------
    task_acc : array, shape (T,)
        Accuracy on the classes seen so far, after each task.

    Examples
    --------
    >>> a_avg([1.0, 0.5])
    0.75
    """
    return _mean(_record(task_acc, 1, "task_acc"))


def a_last(task_acc: ArrayLike) -> float:
    """Return the accuracy at the end of the last task (Koh et al., 2022).

    Parameters
    ----------
    task_acc : array, shape (T,)
        Accuracy on the classes seen so far, after each task.

    Examples
    --------
    >>> a_last([1.0, 0.5])
    0.5
    """
    return _mean(_record(task_acc, 1, "task_acc")[-1:])


def f_last(class_acc: ArrayLike) -> float:
    """Return the accuracy lost per class by the end of the last task (Koh et al., 2022; Moon et al., 2023).

    The mean, over the classes ever above zero at the end of an earlier task, of the best of those accuracies
    minus the one after the last task. May be negative.

    Parameters
    ----------
    class_acc : array, shape (T, classes)
        Accuracy on each class after each task; 0 or NaN where a class was not known yet.

    Examples
    --------
    >>> f_last([[0.75, 0.0], [0.25, 1.0]])
    0.5
    """
    record = _record(class_acc, 2, "class_acc")
    if len(record) < 2:
        return float("nan")
    best = np.nan_to_num(record[:-1], nan=0.0).max(0)
    known = best > 0
    return _mean(best[known] - record[-1, known])


class EvaluationSchedule:
    """Says after which batches a periodic evaluation is due.

    Parameters
    ----------
    every : int, at least 1
        Period in samples.
    variant : str
        ``"paper"``: at the first batch end at or past each multiple of ``every``, once even when a batch passes
        several; with single samples these are i-Blurry's exact multiples. ``"released"``: as Si-Blurry's code,
        only when *more* samples than the threshold were seen, which then grows by ``every``, so that a batch
        larger than the period leaves the threshold behind for good.

    Raises
    ------
    ConfigError
        When ``every`` is below 1 or the variant unknown.

    Examples
    --------
    >>> schedule = EvaluationSchedule(every=10)
    >>> [seen for seen in range(4, 40, 4) if schedule.due(seen)]
    [12, 20, 32]
    """

    def __init__(self, every: int, variant: ScheduleVariant = "paper") -> None:
        _check(variant, ScheduleVariant, "EvaluationSchedule")
        if every < 1:
            raise ConfigError(f"EvaluationSchedule: every={every} samples; give a period of at least 1")
        self.every = every
        self.variant = variant
        self._next = every

    def due(self, samples_seen: int) -> bool:
        """Whether to evaluate now; ask exactly once after every batch.

        Parameters
        ----------
        samples_seen : int
            Samples seen since the start of the stream, this batch included.

        Raises
        ------
        InputError
            When ``samples_seen`` is negative.
        """
        if samples_seen < 0:
            raise InputError(f"due: samples_seen={samples_seen}; count the samples from the stream's start")
        if self.variant == "released":
            due = samples_seen > self._next
            self._next += self.every if due else 0
            return due
        due = samples_seen >= self._next
        if due:
            self._next = (samples_seen // self.every + 1) * self.every
        return due

    def state_dict(self) -> dict[str, int]:
        """Return the state; JSON values."""
        return {"every": self.every, "next": self._next}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from ``state``.

        Raises
        ------
        CheckpointError
            When the state belongs to a schedule with another period.
        """
        if state["every"] != self.every:
            raise CheckpointError(
                f"EvaluationSchedule: the state was saved with every={state['every']}, not {self.every}; "
                "build it with the saved period"
            )
        self._next = int(state["next"])


def _square(matrix: ArrayLike) -> Array:
    r = np.asarray(matrix, dtype=np.float64)
    if r.ndim != 2 or r.shape[0] != r.shape[1] or r.size == 0:
        raise DataError(f"accuracy matrix: expected shape (tasks, tasks) with at least one task, got {r.shape}")
    return r


def _record(values: ArrayLike, dimensions: int, where: str) -> Array:
    record = np.asarray(values, dtype=np.float64)
    if record.ndim != dimensions:
        raise DataError(f"{where}: expected {dimensions} dimension(s), got shape {record.shape}")
    return record


def _transfer(differences: Array, variant: TransferVariant) -> float:
    mean = _mean(differences)
    earlier = len(differences)
    return mean * earlier / (earlier + 1) if variant == "gem-code" else mean


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else float("nan")


def _check(variant: str, known: object, where: str) -> None:
    if variant not in get_args(known):
        raise ConfigError(f"{where}: unknown variant {variant!r}; choose one of {', '.join(get_args(known))}")
