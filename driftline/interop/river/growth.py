"""A learner made larger: more features or classes, with all that it has learned kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from driftline.errors import ConfigError
from driftline.learners.base import Learner, State

MakeLearner = Callable[[int, int], Learner]
"""``make_learner(features, classes)``: a new learner for inputs (B, features) and so many classes."""


def grow(learner: Learner, make_learner: MakeLearner, before: tuple[int, int], after: tuple[int, int]) -> Learner:
    """Return a learner for more features or classes that goes on where this one is.

    Every tensor of the learner's state, the optimizer's and the memory's among them, keeps its values at the indices it
    had; what is new has the values of a new learner (zero where a new learner has no such tensor yet). How a part's
    tensors depend on the number of features and classes is not declared anywhere: it is seen from two new learners, a
    small and a large one, which learn one sample each to that end.

    Parameters
    ----------
    learner : Learner
        Made by ``make_learner(*before)``; not changed.
    make_learner : callable
        ``make_learner(features, classes)``.
    before, after : (int, int)
        Features and classes.

    Raises
    ------
    ConfigError
        When the state has a part that the two new learners do not have, or one that has shrunk.

    Examples
    --------
    >>> from driftline.learners import GradientLearner
    >>> def make(features, classes):
    ...     model = torch.nn.Linear(features, classes)
    ...     return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    >>> small = make(2, 2)
    >>> small.learn(torch.ones(4, 2), torch.tensor([0, 0, 1, 0]))
    >>> large = grow(small, make, (2, 2), (3, 4))
    >>> bool((large.predict(torch.tensor([[1.0, 1.0, 0.0]]))[:, :2] == small.predict(torch.ones(1, 2))).all())
    True
    """
    small, large = _met(make_learner, before), _met(make_learner, after)
    larger = make_learner(*after)
    state = _grown(learner.state_dict(), small, large, larger.state_dict(), type(learner).__name__)
    larger.load_state_dict(cast(State, state))
    return larger


def _met(make_learner: MakeLearner, size: tuple[int, int]) -> State:
    """Return the state of a new learner that has met a sample, so that no part of it is still to be made."""
    learner = make_learner(*size)
    learner.learn(torch.zeros(1, size[0]), torch.zeros(1, dtype=torch.long))
    return learner.state_dict()


def _grown(old: object, small: object, large: object, new: object, where: str) -> object:
    """Return ``old`` in the size of ``large``; ``new`` has the values for what is new, or None."""
    if isinstance(old, Tensor):
        if not (isinstance(small, Tensor) and isinstance(large, Tensor) and old.dim() == small.dim() == large.dim()):
            raise ConfigError(f"{where} is made in another form as the learner runs, so the learner cannot grow")
        shape = [o + after - before for o, before, after in zip(old.shape, small.shape, large.shape)]
        if shape == list(old.shape):
            return old
        grown = old.new_zeros(shape)
        if isinstance(new, Tensor) and list(new.shape) == shape:
            grown.copy_(new)
        grown[tuple(slice(n) for n in old.shape)] = old
        return grown
    if isinstance(old, Mapping):
        known = isinstance(small, Mapping) and isinstance(large, Mapping) and set(old) <= set(small) & set(large)
        if not known:
            raise ConfigError(f"{where} has entries that a new learner does not have, so the learner cannot grow")
        return {
            key: _grown(part, _of(small, key), _of(large, key), _of(new, key), f"{where}, {key}")
            for key, part in old.items()
        }
    if isinstance(old, (list, tuple)):
        parts = (_grown(o, _of(small, i), _of(large, i), _of(new, i), f"{where}, {i}") for i, o in enumerate(old))
        return type(old)(parts)
    return old if small == large else large


def _of(part: object, key: object) -> object:
    if isinstance(part, Mapping):
        return part.get(key)
    return part[cast(int, key)] if isinstance(part, Sequence) and cast(int, key) < len(part) else None
