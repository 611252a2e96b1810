"""Is plasticity being lost? The criterion of :func:`driftline.diagnose`, from scores on tasks alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from driftline.errors import DataError
from driftline.metrics.plasticity import Slope, slope

State = Literal["losing plasticity", "holding", "cannot tell"]

FEWEST_TASKS = 4
"""One on which both networks are the same, and three to draw a line through."""
MARGIN = 0.05
"""What counts: this share of what a fresh network gains on a task over a constant guess."""


@dataclass(frozen=True)
class Interval:
    """An estimate, and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """What scores on tasks say.

    Attributes
    ----------
    state : {"losing plasticity", "holding", "cannot tell"}
        The answer.
    trend : Interval
        Change of the gap to a fresh network from the second task to the last, by least squares.
    late : Interval
        Mean gap over the last third of the tasks (at least three): below 0 is worse than a fresh network.
    margin : float
        The smallest change that counts, in units of the score.
    tasks : int
        How many were compared.
    """

    state: State
    trend: Interval
    late: Interval
    margin: float
    tasks: int


def judge(scores: Sequence[float], fresh: Sequence[float], guess: Sequence[float]) -> Verdict:
    """Say whether a learner's scores fall behind those of a fresh network on the same tasks.

    Parameters
    ----------
    scores : sequence of float
        The learner's score on each task while it learned it; more is better.
    fresh : sequence of float
        The score of the learner as it was at first, on the same samples.
    guess : sequence of float
        The score of the best constant guess.

    Returns
    -------
    Verdict

    Raises
    ------
    DataError
        When they are not as many.

    Notes
    -----
    The gap of a task is its score minus the fresh network's, which takes out how hard each task is. The first task, on
    which both are the same, is left out. With a margin of 5 % of what the fresh network gains over a constant guess, on
    average over tasks:

    - losing plasticity: the gaps' trend over tasks, or their mean over the last third, is below 0 with 97.5 %
      confidence each (so that both together err in at most 5 %), and its estimate is below minus the margin.
    - holding: not losing, and the mean gap over the last third is above minus the margin with 97.5 % confidence: the
      learner still learns as well as a fresh network.
    - cannot tell: anything else; so are fewer than four tasks, and tasks on which a fresh network learns nothing.

    The intervals are Student's t and take the gaps of tasks as independent.

    Examples
    --------
    >>> still = [0.8, 0.81, 0.79, 0.8, 0.8, 0.81]
    >>> judge([0.8, 0.8, 0.75, 0.72, 0.68, 0.66], still, [0.1] * 6).state
    'losing plasticity'
    >>> judge([0.8, 0.82, 0.8, 0.81, 0.81, 0.82], still, [0.1] * 6).state
    'holding'
    >>> judge([0.8, 0.9, 0.6], still[:3], [0.1] * 3).state
    'cannot tell'
    """
    if not len(scores) == len(fresh) == len(guess):
        raise DataError(f"{len(scores)} scores, {len(fresh)} of a fresh network, {len(guess)} guesses; give one each")
    gaps = [own - other for own, other in zip(scores, fresh)][1:]
    gain = statistics.fmean(f - g for f, g in zip(fresh, guess)) if fresh else math.nan
    margin = MARGIN * gain
    line = slope(gaps)
    span = len(gaps) - 1
    trend = Interval(*(span * part for part in line)) if span > 0 else Interval(*Slope(*[math.nan] * 3))
    late = interval(gaps[-max(3, len(gaps) // 3) :])
    state: State = "cannot tell"
    if len(scores) >= FEWEST_TASKS and gain > 0:
        if any(found.high < 0 and found.mean < -margin for found in (trend, late)):
            state = "losing plasticity"
        elif late.low > -margin:
            state = "holding"
    return Verdict(state, trend, late, margin, len(scores))


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean and its confidence interval (Student's t); NaN ends for fewer than two values.

    Examples
    --------
    >>> found = interval([1.0, 2.0, 3.0])
    >>> round(found.low, 2), found.mean, round(found.high, 2)
    (-0.48, 2.0, 4.48)
    """
    if not values:
        return Interval(math.nan, math.nan, math.nan)
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    from scipy.stats import t  # type: ignore[import-untyped]

    quantile = float(t.ppf((1 + confidence) / 2, len(values) - 1))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)
