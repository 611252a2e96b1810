"""Learners, adapters, metrics and live sources by name, as the command line and run records know them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import nn

from driftline import methods, penalised
from driftline.adapters import (
    EATA,
    ETA,
    LAME,
    MECTA,
    NOTE,
    RMT,
    ROID,
    SAR,
    T3A,
    AdaNPC,
    Adapter,
    BatchNormAdapter,
    CoTTA,
    DeYO,
    DynamicEvaluation,
    PeTTA,
    RDumb,
    RoTTA,
    Source,
    Tent,
)
from driftline.errors import ConfigError, MissingDataError, unknown
from driftline.learners import Learner
from driftline.metrics import (
    AdaptationCost,
    BlindAccuracy,
    Calibration,
    CriticError,
    DomainError,
    HeldOut,
    Metric,
    NearFutureAccuracy,
    OnlineAccuracy,
    OnlineError,
    Plasticity,
    ProbePlasticity,
    Rollbacks,
    Sharpness,
    SourceError,
    Trainability,
)
from driftline.stream.sources.named import SOURCES, NamedSource

T = TypeVar("T")

LEARNERS: dict[str, Callable[..., Learner]] = {
    "sgd": methods.sgd,
    "adam": methods.adam,
    "optimizer": methods.optimizer,
    "er": methods.er,
    "adaptive-er": methods.adaptive_er,
    "cbp": methods.cbp,
    "redo": methods.redo,
    "snr": methods.snr,
    "regrama": methods.regrama,
    "layer-reset": methods.layer_reset,
    "upgd": methods.upgd,
    "shrink-and-perturb": methods.shrink_and_perturb,
    "perturbed": methods.perturbed,
    "obgd": methods.obgd,
    "weight-clipping": methods.weight_clipping,
    "tag": methods.tag,
    "sparse": methods.sparse,
    "l2": penalised.l2,
    "l2-init": penalised.l2_init,
    "spectral": penalised.spectral,
    "wasserstein": penalised.wasserstein,
    "online-ewc": penalised.online_ewc,
    "si": penalised.si,
    "mas": penalised.mas,
    "rwalk": penalised.rwalk,
    "orthogonal": penalised.orthogonal,
    "l2-er": penalised.l2_er,
    "center-loss": penalised.center_loss,
    "normalize-and-project": penalised.normalize_and_project,
    "ncm": methods.ncm,
    "slda": methods.slda,
}
WITHOUT_MODEL = ("ncm", "slda")
ADAPTERS: dict[str, Callable[..., Adapter]] = {
    "source": Source,
    "batch-norm": BatchNormAdapter,
    "tent": Tent,
    "eta": ETA,
    "eata": EATA,
    "rdumb": RDumb,
    "sar": SAR,
    "deyo": DeYO,
    "roid": ROID,
    "cotta": CoTTA,
    "rotta": RoTTA,
    "note": NOTE,
    "petta": PeTTA,
    "mecta": MECTA,
    "rmt": RMT,
    "lame": LAME,
    "t3a": T3A,
    "adanpc": AdaNPC,
    "dynamic-evaluation": DynamicEvaluation,
}
METRICS: dict[str, Callable[..., Metric]] = {
    "online": OnlineAccuracy,
    "online-error": OnlineError,
    "critic-error": CriticError,
    "near-future": NearFutureAccuracy,
    "blind": BlindAccuracy,
    "held-out": HeldOut,
    "plasticity": Plasticity,
    "trainability": Trainability,
    "probe-plasticity": ProbePlasticity,
    "sharpness": Sharpness,
    "domain-error": DomainError,
    "calibration": Calibration,
    "source-error": SourceError,
    "cost": AdaptationCost,
    "rollbacks": Rollbacks,
}


def needs_model(learner: str) -> bool:
    """Whether a named learner is built around a model."""
    known(learner, LEARNERS, "learner")
    return learner not in WITHOUT_MODEL


def learner(name: str, model: nn.Module | None, classes: int, seed: int = 0, **parameters: object) -> Learner:
    """Build a learner by name.

    Parameters
    ----------
    name : str
        A key of :data:`LEARNERS`.
    model : nn.Module, optional
        What to train; None for those of which :func:`needs_model` is false.
    classes : int
        Number of classes of the stream; 0: there are numbers to predict.
    seed : int
        For what the learner draws.
    **parameters
        As the function of that name in :mod:`driftline.methods` or :mod:`driftline.penalised` takes them.

    Raises
    ------
    ConfigError
        For an unknown name or parameter, a bad value, or a learner of classes where there are none.

    Examples
    --------
    >>> learner("slda", None, 10, shrinkage=1e-3)
    <driftline.learners.streaming_lda.StreamingLDA object at ...>
    >>> learner("sdg", None, 10)
    Traceback (most recent call last):
    driftline.errors.ConfigError: unknown learner 'sdg'; did you mean 'sgd'? There are: sgd, adam, optimizer, er, ...
    """
    if not classes and not needs_model(name):
        raise ConfigError(f"learner {name} predicts classes, and this stream has none; use sgd or another that trains")
    return call(known(name, LEARNERS, "learner"), f"learner {name}", parameters, model, classes, seed)


def adapter(name: str, model: nn.Module, **parameters: object) -> Adapter:
    """Build an adapter by name around a source model; errors as for :func:`learner`."""
    return call(known(name, ADAPTERS, "adapter"), f"adapter {name}", parameters, model)


def metric(name: str, **parameters: object) -> Metric:
    """Build a metric by name; errors as for :func:`learner`."""
    return call(known(name, METRICS, "metric"), f"metric {name}", parameters)


def is_source(address: str) -> bool:
    """Whether a name is that of a live source, such as ``csv:readings.csv`` or ``kafka://host:9092/topic``."""
    return address.partition(":")[0] in SOURCES or "://" in address


def source(address: str, **parameters: object) -> NamedSource:
    """Return a live source by name; nothing is read of it but the names of a table's columns.

    Parameters
    ----------
    address : str
        ``csv:path``, ``jsonl:-``, ``kafka://host:port/topic`` or another of :data:`SOURCES`, a colon and the place.
    **parameters
        As the function of that name in :mod:`driftline.stream.sources.named` takes them.

    Raises
    ------
    ConfigError
        For an unknown kind, place or parameter, or a bad value.
    MissingDataError
        When there is no such file or folder.
    SourceError
        When a table cannot be read.

    Examples
    --------
    >>> source("jsonl:-", features="height,width", label="kind", classes="cat,dog").shape
    (2,)
    >>> source("cvs:readings.csv")
    Traceback (most recent call last):
    driftline.errors.ConfigError: unknown source 'cvs'; did you mean 'csv'? There are: kafka, jsonl, csv, ...
    """
    kind, _, place = address.partition(":")
    make = known(kind, SOURCES, "source")
    place = place.removeprefix("//")
    if not place:
        raise ConfigError(f"{address}: says no place; give such as {lines(SOURCES)[kind].partition(' - ')[0]}")
    return call(make, f"source {kind}", parameters, place)


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
        if value is None and "None" in str(stated[name].annotation):
            continue
        fits = isinstance(value, type(default)) or (isinstance(default, float) and isinstance(value, int))
        if isinstance(default, (bool, int, float, str)) and (
            not fits or isinstance(value, bool) != isinstance(default, bool)
        ):
            raise ConfigError(f"{what}: {name}={value!r} should be a {type(default).__name__}, such as {default!r}")
    try:
        return function(*first, **parameters)
    except (TypeError, ValueError) as error:
        if isinstance(error, (ConfigError, MissingDataError)):
            raise
        raise ConfigError(f"{what}: {error}") from error
