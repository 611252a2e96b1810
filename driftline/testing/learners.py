"""The laws of learners, to be tried on any class that implements :class:`driftline.learners.Learner`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor

from driftline.errors import ConfigError
from driftline.learners.base import Learner
from driftline.stream.stream import Stream
from driftline.testing.data import blobs
from driftline.testing.laws import Law, copied, demand_close, demand_same, enforce, name_of, usable_devices
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
        Makes a new learner, the same one each time (it seeds what it draws).
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


LEARNER_LAWS: Mapping[str, Law[Case[Learner]]] = {
    **shared_laws(),
    "observe is predict, then learn": observe_is_predict_then_learn,
    "bad input is refused and changes nothing": bad_batches_are_refused,
    "the state of another one is refused": foreign_states_are_refused,
}
"""The laws of learners, by name."""
