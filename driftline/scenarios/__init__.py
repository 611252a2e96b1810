"""Scenarios: streams with a story, each written in the language users write their own in."""

from __future__ import annotations

import inspect

from driftline.errors import unknown
from driftline.scenarios import corruptions
from driftline.scenarios.class_incremental import class_incremental, class_tasks
from driftline.scenarios.continual_tta import continual_tta, gradual_tta, mixed_tta, recurring_tta
from driftline.scenarios.correlated import correlate, shift_labels
from driftline.scenarios.corruption_walk import corruption_walk, measure_accuracy
from driftline.scenarios.domain_incremental import domain_incremental, domain_tasks
from driftline.scenarios.drifting_regression import drifting_regression
from driftline.scenarios.gradual import fade, gradual
from driftline.scenarios.i_blurry import i_blurry
from driftline.scenarios.iid import iid
from driftline.scenarios.imbalanced import imbalanced
from driftline.scenarios.natural_shift import by_writer, dataset_shift
from driftline.scenarios.own import load_own
from driftline.scenarios.permuted_inputs import permuted_inputs
from driftline.scenarios.permuted_labels import permuted_labels
from driftline.scenarios.policy_evaluation import policy_evaluation
from driftline.scenarios.random_labels import random_labels
from driftline.scenarios.recurring import recurring
from driftline.scenarios.si_blurry import si_blurry
from driftline.scenarios.slowly_changing_regression import slowly_changing_regression
from driftline.stream.scenario import Scenario

SCENARIOS: dict[str, Scenario[...]] = {
    "iid": iid,
    "class_incremental": class_incremental,
    "domain_incremental": domain_incremental,
    "si_blurry": si_blurry,
    "i_blurry": i_blurry,
    "gradual": gradual,
    "recurring": recurring,
    "imbalanced": imbalanced,
    "permuted_inputs": permuted_inputs,
    "permuted_labels": permuted_labels,
    "random_labels": random_labels,
    "slowly_changing_regression": slowly_changing_regression,
    "policy_evaluation": policy_evaluation,
    "drifting_regression": drifting_regression,
    "continual_tta": continual_tta,
    "mixed_tta": mixed_tta,
    "gradual_tta": gradual_tta,
    "recurring_tta": recurring_tta,
    "corruption_walk": corruption_walk,
    "dataset_shift": dataset_shift,
    "by_writer": by_writer,
}


def names() -> dict[str, str]:
    """Return the scenarios, each with one line that says what it is.

    Examples
    --------
    >>> names()["iid"]
    'All samples once, shuffled: no drift at all.'
    """
    return {name: (inspect.getdoc(entry) or "").partition("\n")[0] for name, entry in SCENARIOS.items()}


def get(name: str) -> Scenario[...]:
    """Return a scenario by name, or one of the user's own.

    Parameters
    ----------
    name : str
        A key of :func:`names`; ``"path/to/file.py:function"``; or ``"module:function"``.

    Raises
    ------
    ConfigError
        For an unknown name, with the nearest one; a file or module that is not there or does not import; or
        something in it that is not a scenario.

    Examples
    --------
    >>> get("iid")
    <scenario iid()>
    >>> get("si_blury")
    Traceback (most recent call last):
    driftline.errors.ConfigError: unknown scenario 'si_blury'; did you mean 'si_blurry'? There are: iid, ...
    """
    if ":" in name:
        return load_own(name)
    if name not in SCENARIOS:
        raise unknown("scenario", name, SCENARIOS)
    return SCENARIOS[name]


__all__ = [
    "SCENARIOS",
    "by_writer",
    "class_incremental",
    "class_tasks",
    "continual_tta",
    "correlate",
    "corruption_walk",
    "corruptions",
    "dataset_shift",
    "domain_incremental",
    "domain_tasks",
    "drifting_regression",
    "fade",
    "get",
    "gradual",
    "gradual_tta",
    "i_blurry",
    "iid",
    "imbalanced",
    "measure_accuracy",
    "mixed_tta",
    "names",
    "permuted_inputs",
    "permuted_labels",
    "policy_evaluation",
    "random_labels",
    "recurring",
    "recurring_tta",
    "shift_labels",
    "si_blurry",
    "slowly_changing_regression",
]
