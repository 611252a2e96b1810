"""Named errors: each message says what was found, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DriftlineError(Exception):
    """Base of every error driftline raises on purpose."""


class DataError(DriftlineError, ValueError):
    """Data that cannot be used: wrong shape, dtype or range, not finite, damaged or missing labels."""


class MissingDataError(DataError, FileNotFoundError):
    """A named dataset's files are not where they were looked for."""


class ChecksumError(DataError):
    """A file's content differs from what it was when it was written."""


class InputError(DataError):
    """A batch given to a learner, an adapter or a metric cannot be used; nothing has been changed."""


class SourceError(DriftlineError, RuntimeError):
    """A live source raised while the stream was being read."""


class ScenarioError(DriftlineError, ValueError):
    """A scenario that cannot be built from this dataset with these parameters."""


class ConfigError(DriftlineError, ValueError):
    """An unknown name or a bad value of an argument."""


class SignalError(DriftlineError, ArithmeticError):
    """A measured quantity that steers learning is NaN or infinite."""


class CheckpointError(DriftlineError, RuntimeError):
    """A checkpoint that is missing, damaged, or belongs to another run or model."""


class CheckpointVersionError(CheckpointError):
    """A checkpoint that another version of driftline wrote in a format of its own."""


class ExportError(DriftlineError, RuntimeError):
    """A model that cannot be exported, or whose exported file gives other scores; no file is left behind."""


class RecordError(DriftlineError, OSError):
    """The run record could not be written or read."""


def unknown(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a name that is not known, with the nearest one that is.

    Examples
    --------
    >>> str(unknown("model", "mpl", ["convnet", "mlp"]))
    "unknown model 'mpl'; did you mean 'mlp'? There are: convnet, mlp"
    """
    choices = list(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return ConfigError(f"unknown {what} {name!r}{hint} There are: {', '.join(choices) or 'none'}")
