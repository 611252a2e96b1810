"""One call that says whether a model is losing plasticity on a stream, what goes with it, and which remedy helps."""

from __future__ import annotations

import copy
import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from driftline.errors import ConfigError, InputError, unknown
from driftline.learners import GradientLearner, Learner
from driftline.learners.base import joined
from driftline.metrics.plasticity import (
    effective_rank,
    hessian_product,
    singular_values,
    slope,
    top_eigenvalue,
    weight_magnitude,
)
from driftline.metrics.plasticity.periodic import bare
from driftline.plasticity.units import Count, counted, is_dead, pooled
from driftline.plasticity.watch import watching
from driftline.remedies import REMEDIES
from driftline.stream import Stream
from driftline.stream.play import Playback, play
from driftline.stream.seeds import derive_seed
from driftline.verdict import FEWEST_TASKS, Interval, Verdict, interval, judge

Outcome = tuple[Tensor | None, Tensor | None]
"""Predictions of a step, and the truth."""

LOOK = 128
"""Samples at a task's end on which the network is looked at."""
CHUNK = 1000
SIGNS = {"dead units": "rises", "effective rank": "falls", "mean absolute weight": "rises", "sharpness": "rises"}
"""What is looked at, and which way is bad."""


@dataclass(frozen=True)
class Course:
    """How one learner went through the stream: one entry for each task.

    Attributes
    ----------
    scores : list of float
        Online accuracy within the task (numbers to predict: minus the squared error).
    looks : dict of str to list of float
        The network at the ends of tasks: the quantities of :data:`SIGNS`.
    """

    scores: list[float] = field(default_factory=list)
    looks: dict[str, list[float]] = field(default_factory=dict)


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
    and the two are compared; see :func:`driftline.verdict.judge` for the criterion. Then each remedy is tried from the
    same first weights.

    Parameters
    ----------
    learner : Learner or callable
        One that has not learned yet, which is left as it is, or a function that makes one, the same at each call.
    stream : Stream
        Segments are the tasks; at least four.
    batch_size : int
        Samples per step.
    remedies : sequence of str, optional
        Names in :data:`driftline.remedies.REMEDIES`. Default: all of them where plasticity is being lost, else none.
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


def follow(
    learner: Learner, stream: Stream, batch_size: int, wanted: set[int]
) -> tuple[Course, dict[int, float], list[float]]:
    """Play the stream once; return the learner's course, a fresh one's scores on the wanted tasks, and all guesses."""
    course, fresh, guesses = Course(), {}, []
    initial = copy.deepcopy(learner.state_dict()) if wanted else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="compile=True")
        task: list[Outcome] = []
        start = 0
        for step in _play(stream, learner, batch_size):
            task.append((step.prediction, step.batch.y))
            if not step.batch.ends_segment:
                continue
            number, stop = len(course.scores), step.batch.stop
            score, guess = _score(task)
            course.scores.append(score)
            guesses.append(guess)
            task = []
            for name, value in look(learner, stream, max(start, stop - LOOK), stop).items():
                course.looks.setdefault(name, []).append(value)
            if number in wanted:
                state = copy.deepcopy(learner.state_dict())
                learner.load_state_dict(copy.deepcopy(initial))
                again = _play(stream[start:stop], learner, batch_size)
                fresh[number], _ = _score([(step.prediction, step.batch.y) for step in again])
                learner.load_state_dict(state)
            start = stop
    return course, fresh, guesses


def _play(stream: Stream, learner: Learner, batch_size: int) -> Playback:
    return play(stream, learner, batch_size=batch_size, chunk=CHUNK if getattr(learner, "compile", False) else 1)


def _score(task: Sequence[Outcome]) -> tuple[float, float]:
    """Return the score of a task's predictions, and that of the best constant guess."""
    y = torch.cat([truth for _, truth in task if truth is not None])
    scores = joined([prediction for prediction, _ in task if prediction is not None], 0)
    if y.is_floating_point():
        truth = y.double().reshape(len(y), -1)
        error = (scores.double().reshape(len(y), -1) - truth).square().mean()
        return -float(error), -float(truth.var(0, correction=0).mean())
    return float((scores.argmax(-1) == y).double().mean()), float(torch.bincount(y.long()).max()) / len(y)


def look(learner: Learner, stream: Stream, start: int, stop: int) -> dict[str, float]:
    """Return what the network is like on some samples of the stream; what it does not have is left out."""
    network = learner.network()
    if network is None or not list(network.parameters()):
        return {}
    x, y = stream.read(start, stop)
    parameters = next(network.parameters())
    x, y = x.to(parameters.device), None if y is None else y.to(parameters.device)
    normalizer = getattr(learner, "normalizer", None)
    shown = x if normalizer is None else normalizer(x)
    found = {}
    with bare(network):
        dead: list[Count] = []
        try:
            with watching(network, lambda h, kind: dead.append(counted(is_dead(h)))) as glance, torch.no_grad():
                network(shown)
            found["dead units"] = float(pooled(dead))
            if glance.features is not None:
                found["effective rank"] = float(effective_rank(singular_values(glance.features)))
        except ConfigError:
            pass  # no activation modules, so no hidden units that could be seen
        found["mean absolute weight"] = float(weight_magnitude(network.parameters()))
        loss = getattr(learner, "loss", None)
        if loss is not None and y is not None:
            product, like = hessian_product(network, loss, shown, y if y.is_floating_point() else y.long())
            found["sharpness"] = float(top_eigenvalue(product, like, iterations=15))
    return found


def words(verdict: Verdict, course: Course, trials: Sequence[Trial], skipped: Mapping[str, str], classes: bool) -> str:
    """Say it in words."""
    return "\n".join([*_finding(verdict, course, classes), *_remedies(trials, skipped, classes)])


def _finding(verdict: Verdict, course: Course, classes: bool) -> list[str]:
    if verdict.tasks < FEWEST_TASKS:
        return [f"Cannot tell: {verdict.tasks} tasks are too few; it takes at least {FEWEST_TASKS}."]
    thing = "accuracy" if classes else "minus squared error"
    trend = f"{_amount(verdict.trend, classes)} from the second task to the last"
    late = f"{_amount(verdict.late, classes)} over the last third"
    gap = (
        f"{thing} within a task, against a fresh network on the same samples: {trend}; {late} ({verdict.tasks} tasks)."
    )
    if verdict.state == "cannot tell":
        if not verdict.margin > 0:
            return [f"Cannot tell: a fresh network learns no more on a task than a constant guess. {gap.capitalize()}"]
        return [f"Cannot tell: the stream is too short or too uneven for what it shows. {gap.capitalize()}"]
    moved = [_moved(name, values) for name, values in course.looks.items() if _harmful(name, values)]
    if verdict.state == "holding":
        also = f" Even so, {_listed(moved)}." if moved else ""
        return [f"Holding: it learns new tasks no worse than a fresh network.{also}", gap.capitalize()]
    if not moved:
        return ["Losing plasticity, and nothing that was looked at in the network says why.", gap.capitalize()]
    return [
        f"Losing plasticity, because {_listed(moved)}.",
        gap.capitalize(),
        "(What moved together with the loss; a cause is shown by a remedy that stops it and helps.)",
    ]


def _remedies(trials: Sequence[Trial], skipped: Mapping[str, str], classes: bool) -> list[str]:
    lines = []
    for trial in sorted(trials, key=lambda trial: -trial.gain.mean):
        answer = "helps" if trial.helped else ("harms" if trial.gain.high < 0 else "makes no sure difference")
        amount = _amount(trial.gain, classes)
        lines.append(f"{trial.name} {answer}: {amount} over the last half; with it: {trial.verdict.state}.")
    return lines + [f"{name} was not tried: {reason}" for name, reason in skipped.items()]


def _harmful(name: str, values: Sequence[float]) -> bool:
    """Whether a quantity moves the bad way over tasks, with 97.5 % confidence."""
    if not all(math.isfinite(value) for value in values):
        return False
    found = slope(values)
    return found.low > 0 if SIGNS[name] == "rises" else found.high < 0


def _moved(name: str, values: Sequence[float]) -> str:
    third = max(1, len(values) // 3)
    before, after = statistics.fmean(values[:third]), statistics.fmean(values[-third:])
    first, last = (f"{100 * v:.3g} %" if name == "dead units" else f"{v:.3g}" for v in (before, after))
    verb = SIGNS[name].removesuffix("s") if name == "dead units" else SIGNS[name]
    return f"{'' if name == 'dead units' else 'the '}{name} {verb} from {first} to {last}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _amount(found: Interval, classes: bool) -> str:
    if classes:
        mean, low, high = (100 * value for value in (found.mean, found.low, found.high))
        return f"{mean:+.1f} points ({low:+.1f} to {high:+.1f})"
    return f"{found.mean:+.3g} ({found.low:+.3g} to {found.high:+.3g})"
