"""How a learner goes through the tasks of a stream, beside a fresh one, and what its network is like meanwhile."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from driftline.errors import ConfigError
from driftline.learners import Learner
from driftline.learners.base import joined
from driftline.metrics.plasticity import (
    effective_rank,
    hessian_product,
    singular_values,
    top_eigenvalue,
    weight_magnitude,
)
from driftline.metrics.plasticity.periodic import bare
from driftline.plasticity.units import Count, counted, is_dead, pooled
from driftline.plasticity.watch import watching
from driftline.stream import Stream
from driftline.stream.play import Playback, play

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
