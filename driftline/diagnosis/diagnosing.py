"""One call that says whether a model is losing plasticity on a stream, what goes with it, and which remedy helps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from driftline.diagnosis.course import Course, follow
from driftline.diagnosis.remedies import REMEDIES
from driftline.diagnosis.verdict import Interval, Verdict, interval, judge
from driftline.diagnosis.words import words
from driftline.errors import ConfigError, InputError, unknown
from driftline.learners import GradientLearner, Learner
from driftline.stream import Stream
from driftline.stream.seeds import derive_seed


@dataclass(frozen=True)
class Trial:
    """A remedy on the same stream with the same seed: what it did, and how far ahead over the last half."""

    name: str
    course: Course
    verdict: Verdict
    gain: Interval

    @property
    def helped(self) -> bool:
        """Whether it was ahead beyond doubt: an interval above 0, corrected for how many remedies were tried."""
        return self.gain.low > 0


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found; its text by ``print``.

    Attributes
    ----------
    verdict : Verdict
        With ``state`` "losing plasticity", "holding" or "cannot tell".
    course : Course
        The learner's own scores and looks.
    fresh, guess : list of float
        Scores of the learner as it was at first, on the same tasks, and of the best constant guess.
    compared : list of int
        Tasks (from 0) on which the fresh one was tried.
    trials : list of Trial
        The remedies.
    skipped : dict of str to str
        Remedies that do not fit the learner, and why.
    text : str
        All of it in words.
    """

    verdict: Verdict
    course: Course
    fresh: list[float]
    guess: list[float]
    compared: list[int]
    trials: list[Trial]
    skipped: dict[str, str]
    text: str

    def __str__(self) -> str:
        return self.text

    def figure(self, path: str | Path) -> Path:
        """Draw scores and looks over tasks to a file (PNG, SVG, ...); needs the 'report' extra."""
        from driftline.report.diagnosis import draw

        return draw(self, Path(path))


def diagnose(
    learner: Learner | Callable[[], Learner],
    stream: Stream,
    *,
    batch_size: int = 1,
    remedies: Sequence[str] | None = None,
    comparisons: int = 40,
    seed: int = 0,
) -> Diagnosis:
    """Say whether a learner is losing plasticity on a stream of tasks, what goes with it, and which remedy helps.

    The learner plays the stream once. At each task (segment) a copy of it as it was at first learns the same samples,
    and the two are compared; see :func:`driftline.diagnosis.judge` for the criterion. Then each remedy is tried from
    the same first weights.

    Parameters
    ----------
    learner : Learner or callable
        One that has not learned yet, which is left as it is, or a function that makes one, the same at each call.
    stream : Stream
        Segments are the tasks; at least four.
    batch_size : int
        Samples per step.
    remedies : sequence of str, optional
        Names in :data:`driftline.diagnosis.REMEDIES`. Default: all of them where plasticity is being lost, else none.
    comparisons : int
        At most so many tasks, evenly spread, are also given to a fresh network.
    seed : int
        Of what remedies and dropout draw.

    Returns
    -------
    Diagnosis

    Raises
    ------
    InputError
        For a live stream, or one whose truth is not known.
    ConfigError
        For an unknown remedy, a number below 1, or remedies for a learner that is no ``GradientLearner``.

    Examples
    --------
    >>> import driftline
    >>> from driftline.learners import GradientLearner
    >>> stream = driftline.scenarios.permuted_inputs(driftline.load("digits"), tasks=3, samples=100)
    >>> network = driftline.models.mlp((1, 8, 8), classes=10, hidden=(16,))
    >>> learner = GradientLearner(network, torch.optim.SGD(network.parameters(), lr=0.05))
    >>> print(driftline.diagnose(learner, stream, batch_size=10))
    Cannot tell: 3 tasks are too few; it takes at least 4.
    """
    for name, number in (("batch_size", batch_size), ("comparisons", comparisons)):
        if number < 1:
            raise ConfigError(f"{name}={number}: must be at least 1")
    for remedy in remedies or ():
        if remedy not in REMEDIES:
            raise unknown("remedy", remedy, REMEDIES)
    if not isinstance(stream, Stream):
        raise InputError(f"diagnose compares tasks, and {stream.name!r} is live and has no segments")
    if any(r.truth is None for s in stream.segments for r in s.recipes):
        raise InputError(f"diagnose needs the truth, and parts of {stream.name!r} have none")
    make: Callable[[], Learner] = (lambda: copy.deepcopy(learner)) if isinstance(learner, Learner) else learner
    first = make()
    if remedies and not isinstance(first, GradientLearner):
        raise ConfigError(f"remedies are parts of a GradientLearner, and this is a {type(first).__name__}")
    count = len(stream.infos())
    wanted = {round(i * (count - 1) / max(1, min(comparisons, count) - 1)) for i in range(min(comparisons, count))}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "diagnose"))
        course, fresh, guess = follow(first, stream, batch_size, wanted)
        compared = sorted(fresh)
        at_first, constant = [fresh[i] for i in compared], [guess[i] for i in compared]
        verdict = judge([course.scores[i] for i in compared], at_first, constant)
        tried: Sequence[str] = remedies if remedies is not None else ()
        if remedies is None and verdict.state == "losing plasticity" and isinstance(first, GradientLearner):
            tried = list(REMEDIES)
        trials, skipped = [], {}
        for name in tried:
            made = make()
            assert isinstance(made, GradientLearner)
            try:
                changed = REMEDIES[name](made, seed)
            except ConfigError as error:
                skipped[name] = str(error)
                continue
            other, _, _ = follow(changed, stream, batch_size, set())
            ahead = [b - a for a, b in zip(course.scores, other.scores)]
            gain = interval(ahead[len(ahead) // 2 :], 1 - 0.05 / len(tried))
            theirs = judge([other.scores[i] for i in compared], at_first, constant)
            trials.append(Trial(name, other, theirs, gain))
    text = words(verdict, course, trials, skipped, bool(stream.classes))
    return Diagnosis(verdict, course, at_first, constant, compared, trials, skipped, text)
