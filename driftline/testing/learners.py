"""The laws of learners, to be tried on any class that implements :class:`driftline.learners.Learner`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from driftline.errors import ConfigError
from driftline.learners import in_lockstep
from driftline.learners.base import Learner
from driftline.stream.seeds import derive_seed
from driftline.stream.stream import Stream
from driftline.testing.data import blobs
from driftline.testing.laws import (
    PLAY_SEED,
    Law,
    copied,
    demand,
    demand_close,
    demand_same,
    enforce,
    name_of,
    seed_torch,
    usable_devices,
)
from driftline.testing.players import FEW, Case, materialise, shared_laws
from driftline.testing.refusals import (
    Attempt,
    bad_input_is_refused,
    bad_labels,
    bad_samples,
    foreign_states_are_refused,
)


def check_learner(
    make_learner: Callable[[], Learner],
    stream: Stream | None = None,
    *,
    steps: int = 2000,
    devices: Sequence[str] | None = None,
    laws: Collection[str] | None = None,
) -> None:
    """Try the laws of learners on a class; needs no test framework.

    Parameters
    ----------
    make_learner : callable
        Makes a new learner, the same one each time (it seeds what it draws). One that takes a ``seed`` is asked for
        learners of different seeds by the law on replicas.
    stream : Stream, optional
        What to learn from: the first 640 samples, over and over. Default: :func:`driftline.testing.blobs`,
        samples of 4 values in 3 classes.
    steps : int
        Length of the stream on which memory must be flat, in batches of 10; whatever fills up (a replay memory)
        must be full after 0.6 of them.
    devices : sequence of str, optional
        Where to try the laws. Default: the CPU, and CUDA where there is one.
    laws : collection of str, optional
        Names of the laws to try, of :data:`LEARNER_LAWS`. Default: all.

    Raises
    ------
    LawBroken
        Names the laws that do not hold, and what was found.
    ConfigError
        When the stream has no labels, or there is no such law or device.

    Examples
    --------
    >>> import torch
    >>> from driftline.learners import GradientLearner
    >>> from driftline.testing import check_learner
    >>> def sgd():
    ...     torch.default_generator.manual_seed(0)
    ...     model = torch.nn.Linear(4, 3)
    ...     return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))
    >>> check_learner(sgd, steps=200)
    """
    stream = blobs() if stream is None else stream
    for device in usable_devices(devices):
        x, y = materialise(stream, device)
        if y is None:
            raise ConfigError(f"check_learner: {stream.name} has no labels to learn from")
        case = Case(make_learner, observe, x, y, stream.classes, device, steps)
        enforce(name_of(make_learner, device), LEARNER_LAWS, case, laws)


def observe(learner: Learner, x: Tensor, y: Tensor) -> Tensor:
    """Meet a batch."""
    return learner.observe(x, y)


def check_strength_zero(
    make_zero: Callable[[], Learner], make_base: Callable[[], Learner], stream: Stream | None = None
) -> None:
    """Try the law of parts: at strength zero a part is bit-identical to not having it.

    Parameters
    ----------
    make_zero : callable
        Makes a learner whose part does nothing by its settings.
    make_base : callable
        Makes the same learner without the part.
    stream : Stream, optional
        What to learn from. Default: :func:`driftline.testing.blobs`.

    Raises
    ------
    LawBroken

    Examples
    --------
    >>> import torch
    >>> from driftline import models
    >>> from driftline.learners import GradientLearner
    >>> from driftline.learners.penalties import L2
    >>> def make(penalties=()):
    ...     model = models.mlp(4, 3, (8,))
    ...     return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1), penalties=penalties)
    >>> check_strength_zero(lambda: make([L2(0.0)]), make)
    """
    stream = blobs() if stream is None else stream
    for device in usable_devices(None):
        x, y = materialise(stream, device)
        if y is None:
            raise ConfigError(f"check_strength_zero: {stream.name} has no labels to learn from")
        case = Case(make_base, observe, x, y, stream.classes, device, 0)

        def law(case: Case[Learner]) -> None:
            base = case.fresh()
            zero = replace(case, build=make_zero).fresh()
            for number in range(4 * FEW):
                expected, scores = base.observe(*case.batch(number)), zero.observe(*case.batch(number))
                demand_same(expected, scores, f"without the part, then with it at zero, at step {number}", "scores")
            own, other = base.network(), zero.network()
            if own is not None and other is not None:
                given, found = (dict(network.named_parameters()) for network in (own, other))
                demand_same(given, found, "without the part, then with it at zero", "parameters")

        enforce(name_of(make_zero, device), {"strength zero is not having it": law}, case, None)


def observe_is_predict_then_learn(case: Case[Learner]) -> None:
    """Sharing the forward pass may round scores differently, but what is learned is the same bit for bit."""
    batches = case.batches(2 * FEW)
    observer = case.fresh()
    expected = [(observer.observe(x, y).clone(), copied(observer.state_dict())) for x, y in batches]
    stepper = case.fresh()
    for i, (x, y) in enumerate(batches):
        observed, state = expected[i]
        demand_close(stepper.predict(x), observed, f"scores of predict, then of observe, at step {i}")
        stepper.learn(x, y)
        demand_same(stepper.state_dict(), state, f"after predict and learn, then after observe, at step {i}")


def bad_batches_are_refused(case: Case[Learner]) -> None:
    """NaN, Inf, wrong shapes, dtypes, lengths and labels raise InputError before any state changes."""

    def attempts(learner: Learner, known: bool) -> Iterator[Attempt]:
        x, y = case.batch(FEW)
        for what, bad in bad_samples(x, known).items():
            fitting = y[: len(bad)] if bad.dim() == x.dim() else y[:1].expand(len(bad), *y.shape[1:])
            yield f"predict({what})", partial(learner.predict, bad)
            yield f"learn({what})", partial(learner.learn, bad, fitting)
            yield f"observe({what})", partial(learner.observe, bad, fitting)
        for what, wrong in bad_labels(y, case.classes, learner.num_classes).items():
            yield f"learn({what})", partial(learner.learn, x, wrong)
            yield f"observe({what})", partial(learner.observe, x, wrong)

    bad_input_is_refused(case, attempts)


def replicas_are_single_runs(case: Case[Learner]) -> None:
    """Replica i of learners in lockstep gives what learner i gives alone, up to rounding; each has its own samples."""
    seeds = (0, 1, 2)
    takes_seed = "seed" in inspect.signature(case.build).parameters
    make = cast("Callable[[int], Learner]", case.build if takes_seed else lambda seed: case.build())
    steps = [[case.batch(2 * number + 5 * i) for i in range(len(seeds))] for number in range(2 * FEW)]
    expected = []
    for i, seed in enumerate(seeds):
        seed_torch(PLAY_SEED - 1, case.device)
        alone = make(seed).to(case.device)
        seed_torch(derive_seed(seed, "run"), case.device)
        expected.append([alone.observe(*batches[i]) for batches in steps] + [alone.predict(steps[0][i][0])])
    seed_torch(PLAY_SEED - 1, case.device)
    learners = [make(seed) for seed in seeds]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        whole = in_lockstep(learners, seeds).to(case.device)
    for number, batches in enumerate(steps):
        scores = whole.observe(*(torch.stack(part) for part in zip(*batches)))
        for i in range(len(seeds)):
            known = expected[i][number].shape[-1]
            demand(bool((scores[i, :, known:] == -torch.inf).all()), f"replica {i} scores classes it has not met")
            demand_close(
                expected[i][number], scores[i, :, :known], f"replica {i} and the single run at step {number}", 1e-3
            )
    scores = whole.predict(torch.stack([x for x, _ in steps[0]]))
    for i in range(len(seeds)):
        known = expected[i][-1].shape[-1]
        demand_close(expected[i][-1], scores[i, :, :known], f"replica {i} and the single run, asked afterwards", 1e-3)
        shown = whole.replica(i).predict(steps[0][i][0])
        demand_close(expected[i][-1], shown, f"the view of replica {i} and the single run, asked afterwards", 1e-3)


LEARNER_LAWS: Mapping[str, Law[Case[Learner]]] = {
    **shared_laws(),
    "observe is predict, then learn": observe_is_predict_then_learn,
    "bad input is refused and changes nothing": bad_batches_are_refused,
    "the state of another one is refused": foreign_states_are_refused,
    "replicas are single runs": replicas_are_single_runs,
}
"""The laws of learners, by name."""
