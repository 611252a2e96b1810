"""Whether a model is losing plasticity on a stream: the criterion, the remedies, and one call for all of it."""

from driftline.diagnosis.diagnosing import Diagnosis, Trial, diagnose
from driftline.diagnosis.remedies import REMEDIES
from driftline.diagnosis.verdict import Interval, Verdict, judge

__all__ = ["REMEDIES", "Diagnosis", "Interval", "Trial", "Verdict", "diagnose", "judge"]
