"""The laws that learners, adapters, scenarios and metrics keep, to be tried on classes of one's own.

Each suite raises :class:`LawBroken`, an AssertionError, so it works in any test framework and in none.
"""

from driftline.testing.adapters import ADAPTER_LAWS, check_adapter
from driftline.testing.data import blobs
from driftline.testing.laws import LawBroken
from driftline.testing.learners import LEARNER_LAWS, check_learner, check_strength_zero
from driftline.testing.measuring import Record
from driftline.testing.metrics import METRIC_LAWS, check_metric
from driftline.testing.scenarios import SCENARIO_LAWS, check_scenario

__all__ = [
    "ADAPTER_LAWS",
    "LEARNER_LAWS",
    "METRIC_LAWS",
    "SCENARIO_LAWS",
    "LawBroken",
    "Record",
    "blobs",
    "check_adapter",
    "check_learner",
    "check_metric",
    "check_scenario",
    "check_strength_zero",
]
