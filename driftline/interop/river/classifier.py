"""A learner of driftline as a classifier of River, for River's pipelines, metrics, evaluators and checks."""

from __future__ import annotations

import io
import math
from collections.abc import Hashable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from river import base
from torch import Tensor

from driftline.errors import ConfigError, InputError
from driftline.interop.river.growth import MakeLearner, grow
from driftline.learners.base import Learner

if TYPE_CHECKING:
    import pandas as pd

Row = NDArray[np.float32]


class RiverClassifier(base.MiniBatchClassifier):
    """A learner that learns from dictionaries of numbers, whose features and classes may appear at any time.

    A feature has a column from the first sample on that is learned with it, a class a score from its first sample on;
    neither ever moves. Features that a sample does not have are 0, features that were never learned from are
    left out of a prediction. When a feature or a class is new, the learner is made anew with more of them and goes on
    where it was (:func:`driftline.interop.river.growth.grow`); room for features is doubled, so that this stays rare.

    Parameters
    ----------
    make_learner : callable
        ``make_learner(features, classes)`` returns a new :class:`driftline.learners.Learner` for inputs (B, features)
        and so many classes (at least 2). To be pickled it must be a function that pickle finds by its name.
    batch_size : int
        Rows that :meth:`learn_many` learns from at once. With 1 it does the same as :meth:`learn_one` row by row.
    seed : int, optional
        For what ``make_learner`` draws from torch's global generator. None: that generator as it is.

    Notes
    -----
    Probabilities are the softmax of the learner's scores over the classes seen so far, in float64.

    A pickle holds the learner's ``state_dict``, and the name of ``make_learner``, which makes the learner it is loaded
    into.

    Raises
    ------
    ConfigError
        When ``batch_size`` is below 1, or the learner cannot grow.
    InputError
        When a feature is not a number, NaN or Inf; nothing has been changed then.

    References
    ----------
    Montiel et al., "River: machine learning for streaming data in Python" (JMLR 2021).

    Examples
    --------
    >>> import torch, driftline
    >>> from river import datasets, evaluate, metrics, preprocessing
    >>> from driftline.interop.river import RiverClassifier
    >>> from driftline.learners import GradientLearner
    >>> def make_learner(features, classes):
    ...     model = driftline.models.mlp(features, classes, hidden=(32,))
    ...     return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))
    >>> model = preprocessing.StandardScaler() | RiverClassifier(make_learner)
    >>> evaluate.progressive_val_score(datasets.Phishing(), model, metrics.Accuracy()).get() > 0.85
    True
    """

    def __init__(self, make_learner: MakeLearner, batch_size: int = 1, seed: int | None = None) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: must be at least 1")
        self.make_learner, self.batch_size, self.seed = make_learner, batch_size, seed
        self._columns: dict[Hashable, int] = {}
        self._labels: dict[base.typing.ClfTarget, int] = {}
        self._learner: Learner | None = None
        self._targets: list[Tensor] = []
        self._room = 0, 0

    @property
    def learner(self) -> Learner | None:
        """The learner; None until the first sample. It is another one after each growth."""
        return self._learner

    @property
    def features(self) -> list[Hashable]:
        """Names of the features, in the order of their columns."""
        return list(self._columns)

    @property
    def classes(self) -> list[base.typing.ClfTarget]:
        """The classes, in the order of their scores."""
        return list(self._labels)

    def learn_one(self, x: dict[base.typing.FeatureName, Any], y: base.typing.ClfTarget) -> None:
        """Learn from one sample."""
        if y not in self._labels or not self._columns.keys() >= x.keys():
            self._meet([x], [y])
        self._learn(self._row(x)[None], self._targets[self._labels[y]])

    def predict_proba_one(
        self, x: dict[base.typing.FeatureName, Any], **kwargs: Any
    ) -> dict[base.typing.ClfTarget, float]:
        """Return the probability of each class seen so far; empty before the first."""
        if self._learner is None:
            return {}
        scores = self._score_one(self._learner, x)
        highest = max(scores)
        if highest == -math.inf:
            return dict.fromkeys(self._labels, 1 / len(scores))
        weights = [math.exp(score - highest) for score in scores]
        total = sum(weights)
        return {label: weight / total for label, weight in zip(self._labels, weights)}

    def predict_one(self, x: dict[base.typing.FeatureName, Any], **kwargs: Any) -> base.typing.ClfTarget | None:
        """Return the most probable class; None before the first."""
        if self._learner is None:
            return None
        scores = self._score_one(self._learner, x)
        return list(self._labels)[scores.index(max(scores))]

    def learn_many(self, X: pd.DataFrame, y: pd.Series) -> None:  # noqa: N803
        """Learn from the rows of a table, ``batch_size`` of them at once."""
        rows, labels = X.to_dict("records"), y.tolist()
        for start in range(0, len(rows), self.batch_size):
            part = slice(start, start + self.batch_size)
            self._meet(rows[part], labels[part])
            y_part = torch.cat([self._targets[self._labels[label]] for label in labels[part]])
            self._learn(np.stack([self._row(row) for row in rows[part]]), y_part)

    def predict_proba_many(self, X: pd.DataFrame) -> pd.DataFrame:  # noqa: N803
        """Return the probability of each class (columns) for each row of a table."""
        import pandas as pd

        if self._learner is None:
            return pd.DataFrame(index=X.index)
        x = np.zeros((len(X), self._room[0]), np.float32)
        known = [name for name in X.columns if name in self._columns]
        x[:, [self._columns[name] for name in known]] = X[known].to_numpy(np.float32)
        if not np.isfinite(x.sum()):
            raise InputError("predict_proba_many: NaN or Inf in X; fill or drop such rows first")
        scores = self._scores(self._learner, x)[:, : len(self._labels)].double()
        scores = scores.where((scores > -torch.inf).any(1, keepdim=True), torch.zeros_like(scores))
        return pd.DataFrame(scores.softmax(1).numpy(), index=X.index, columns=list(self._labels))

    @property
    def _multiclass(self) -> bool:
        return True

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        yield {"make_learner": _small_network}

    def _learn(self, x: Row, y: Tensor) -> None:
        assert self._learner is not None
        # Features and labels were checked on the way here.
        self._learner.trusted = True
        try:
            self._learner.learn(torch.from_numpy(x), y)
        finally:
            self._learner.trusted = False

    def _meet(self, rows: list[dict[Any, Any]], labels: list[base.typing.ClfTarget]) -> None:
        """Make room for features and classes that are new among these samples."""
        if all(label in self._labels for label in labels) and all(self._columns.keys() >= row.keys() for row in rows):
            return
        columns, known = dict(self._columns), dict(self._labels)
        for row in rows:
            self._check_new(row)
            for name in sorted(row.keys() - columns.keys(), key=_by_name):
                columns[name] = len(columns)
        for label in labels:
            known.setdefault(label, len(known))
        features, classes = self._room
        if len(columns) > features:
            features = max(len(columns), 2 * features)
        room = max(features, 1), max(len(known), classes, 2)
        if room != self._room:
            if self._learner is None:
                self._learner = self._make(*room)
                # Tries model and sizes once; from then on samples are trusted.
                self._learner.check(torch.zeros(1, room[0]), torch.zeros(1, dtype=torch.long))
            else:
                self._learner = grow(self._learner, self._make, self._room, room)
            self._room = room
        self._columns, self._labels, self._targets = columns, known, _targets(len(known))

    def _make(self, features: int, classes: int) -> Learner:
        if self.seed is None:
            return self.make_learner(features, classes)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            return self.make_learner(features, classes)

    def _row(self, x: Mapping[Any, Any]) -> Row:
        """Return a sample's values in the order of the columns."""
        columns = self._columns
        try:
            if len(x) == self._room[0] and columns.keys() == x.keys():
                row = np.array([x[name] for name in columns], np.float32)
            else:
                row = np.zeros(self._room[0], np.float32)
                for name, value in x.items():
                    if name in columns:
                        row[columns[name]] = value
        except (TypeError, ValueError):
            self._check_new(x)
            raise
        if not math.isfinite(sum(row.tolist())):
            for name, place in columns.items():
                if not math.isfinite(row[place]):
                    raise _no_number(name, x[name])
        return row

    @staticmethod
    def _check_new(x: Mapping[Any, Any]) -> None:
        for name, value in x.items():
            try:
                finite = math.isfinite(value)
            except TypeError:
                finite = False
            if not finite:
                raise _no_number(name, value)

    def _score_one(self, learner: Learner, x: Mapping[Any, Any]) -> list[float]:
        """Return the score of each class seen so far."""
        scores: list[float] = self._scores(learner, self._row(x)[None]).tolist()[0]
        return scores[: len(self._labels)]

    @staticmethod
    def _scores(learner: Learner, x: Row) -> Tensor:
        learner.trusted = True
        try:
            return learner.predict(torch.from_numpy(x))
        finally:
            learner.trusted = False

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        state["_learner"] = None
        del state["_targets"]
        if self._learner is not None:
            content = io.BytesIO()
            torch.save(self._learner.state_dict(), content)
            state["_learner"] = content.getvalue()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = state["_learner"]
        vars(self).update(state, _targets=_targets(len(state["_labels"])))
        if saved is not None:
            self._learner = self._make(*self._room)
            self._learner.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))
            self._learner.check(torch.zeros(1, self._room[0]), torch.zeros(1, dtype=torch.long))


def _targets(classes: int) -> list[Tensor]:
    """Return each class's index as labels (1,), so that a step need not make them."""
    return list(torch.arange(classes).split(1))  # type: ignore[no-untyped-call]


def _no_number(name: object, value: object) -> InputError:
    return InputError(
        f"feature {name!r} is {value!r}, not a finite number; encode or fill it in front of the classifier, such as "
        "with river.preprocessing.OneHotEncoder or StatImputer"
    )


def _by_name(name: Hashable) -> tuple[str, str]:
    """Order names of any types."""
    return type(name).__name__, str(name)


def _small_network(features: int, classes: int) -> Learner:
    """Return the learner that River's checks try by default."""
    from driftline.learners import GradientLearner
    from driftline.models import mlp

    model = mlp(features, classes, hidden=(16,))
    return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.05))
