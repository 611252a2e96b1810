"""A diagnosis in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from driftline.diagnosis.course import SIGNS, Course
from driftline.diagnosis.verdict import FEWEST_TASKS, Interval, Verdict
from driftline.metrics.plasticity import slope

if TYPE_CHECKING:
    from driftline.diagnosis.diagnosing import Trial


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
