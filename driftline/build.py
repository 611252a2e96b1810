"""Learners, adapters and metrics by name, as the command line and run records know them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import torch
from torch import nn

from driftline.adapters import Adapter, Source
from driftline.errors import ConfigError, unknown
from driftline.learners import (
    ClassBalancedReplay,
    GradientLearner,
    Learner,
    NearestClassMean,
    Replay,
    ReservoirReplay,
    SlidingReplay,
    StreamingLDA,
)
from driftline.metrics import BlindAccuracy, HeldOut, Metric, NearFutureAccuracy, OnlineAccuracy

T = TypeVar("T")

MEMORIES: dict[str, type[Replay]] = {
    "reservoir": ReservoirReplay,
    "class-balanced": ClassBalancedReplay,
    "sliding": SlidingReplay,
}


def sgd(
    model: nn.Module, classes: int, seed: int, lr: float = 0.05, momentum: float = 0.0, weight_decay: float = 0.0
) -> Learner:
    """Online stochastic gradient descent: one step per batch."""
    return GradientLearner(
        model, torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    )


def adam(model: nn.Module, classes: int, seed: int, lr: float = 0.001, weight_decay: float = 0.0) -> Learner:
    """Online Adam with decoupled weight decay: one step per batch."""
    return GradientLearner(model, torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay))


def er(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.05,
    capacity: int = 500,
    memory: str = "reservoir",
    ratio: int = 1,
    replay_batch: int | None = None,
    optimizer: Literal["sgd", "adam"] = "sgd",
) -> Learner:
    """Experience replay: each step trains on the batch and as many samples of a memory."""
    if memory not in MEMORIES:
        raise unknown("memory", memory, MEMORIES)
    if optimizer not in ("sgd", "adam"):
        raise unknown("optimizer", optimizer, ("sgd", "adam"))
    step: torch.optim.Optimizer = (
        torch.optim.SGD(model.parameters(), lr=lr)
        if optimizer == "sgd"
        else torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    )
    replay = MEMORIES[memory](capacity, seed=seed)
    return GradientLearner(model, step, replay=replay, replay_ratio=ratio, replay_batch=replay_batch)


def ncm(model: None, classes: int, seed: int) -> Learner:
    """Nearest class mean: predicts the class whose running mean is closest; no gradient."""
    return NearestClassMean(classes=classes)


def slda(
    model: None,
    classes: int,
    seed: int,
    shrinkage: float = 1e-4,
    covariance: Literal["streaming", "pooled"] = "streaming",
) -> Learner:
    """Streaming linear discriminant analysis: class means and a shared covariance; no gradient."""
    return StreamingLDA(classes=classes, shrinkage=shrinkage, covariance=covariance)


LEARNERS: dict[str, Callable[..., Learner]] = {"sgd": sgd, "adam": adam, "er": er, "ncm": ncm, "slda": slda}
ADAPTERS: dict[str, Callable[..., Adapter]] = {"source": Source}
METRICS: dict[str, Callable[..., Metric]] = {
    "online": OnlineAccuracy,
    "near-future": NearFutureAccuracy,
    "blind": BlindAccuracy,
    "held-out": HeldOut,
}


def needs_model(learner: str) -> bool:
    """Whether a named learner is built around a model."""
    return known(learner, LEARNERS, "learner") not in (ncm, slda)


def learner(name: str, model: nn.Module | None, classes: int, seed: int = 0, **parameters: object) -> Learner:
    """Build a learner by name.

    Parameters
    ----------
    name : str
        A key of :data:`LEARNERS`.
    model : nn.Module, optional
        What to train; None for those of which :func:`needs_model` is false.
    classes : int
        Number of classes of the stream.
    seed : int
        For what the learner draws.
    **parameters
        As the function of that name in this module takes them.

    Raises
    ------
    ConfigError
        For an unknown name or parameter, or a bad value.

    Examples
    --------
    >>> learner("slda", None, 10, shrinkage=1e-3)
    <driftline.learners.streaming_lda.StreamingLDA object at ...>
    >>> learner("sdg", None, 10)
    Traceback (most recent call last):
    driftline.errors.ConfigError: unknown learner 'sdg'; did you mean 'sgd'? There are: sgd, adam, er, ncm, slda
    """
    return call(known(name, LEARNERS, "learner"), f"learner {name}", parameters, model, classes, seed)


def adapter(name: str, model: nn.Module, **parameters: object) -> Adapter:
    """Build an adapter by name around a source model; errors as for :func:`learner`."""
    return call(known(name, ADAPTERS, "adapter"), f"adapter {name}", parameters, model)


def metric(name: str, **parameters: object) -> Metric:
    """Build a metric by name; errors as for :func:`learner`."""
    return call(known(name, METRICS, "metric"), f"metric {name}", parameters)


def lines(table: Mapping[str, Callable[..., object]]) -> dict[str, str]:
    """Return the first line of what each entry of a table says of itself."""
    return {name: (inspect.getdoc(entry) or "").partition("\n")[0] for name, entry in table.items()}


def known(name: str, table: Mapping[str, T], what: str) -> T:
    """Return an entry of a table, or raise with the nearest name."""
    if name not in table:
        raise unknown(what, name, table)
    return table[name]


def call(function: Callable[..., T], what: str, parameters: Mapping[str, object], *first: object) -> T:
    """Call a builder with checked parameters.

    Raises
    ------
    ConfigError
        When a parameter is unknown, or its value has another type than the builder states.
    """
    stated = dict(list(inspect.signature(function).parameters.items())[len(first) :])
    for name, value in parameters.items():
        if name not in stated:
            raise unknown(f"parameter of {what}", name, stated)
        default = stated[name].default
        fits = isinstance(value, type(default)) or (isinstance(default, float) and isinstance(value, int))
        if isinstance(default, (bool, int, float, str)) and (
            not fits or isinstance(value, bool) != isinstance(default, bool)
        ):
            raise ConfigError(f"{what}: {name}={value!r} should be a {type(default).__name__}, such as {default!r}")
    try:
        return function(*first, **parameters)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{what}: {error}") from error
