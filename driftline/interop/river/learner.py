"""A model of River, with its preprocessing, played by driftline's runtime."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from river import base
from torch import Tensor

from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.interop.river import pickles
from driftline.learners.base import Learner, State


class RiverLearner(Learner):
    """A classifier or regressor of River as a learner: sample by sample, on the CPU.

    Parameters
    ----------
    model : river.base.Classifier or river.base.Regressor
        A model or a pipeline that ends in one; changed in place.
    classes : int or sequence
        How many classes there are, or what the model is given as their labels; class k of the stream is the k-th. Leave
        out for a regressor.
    features : sequence of str, optional
        The names that the model is given with a sample's values. Default: 0, 1, 2, ...
    allow : collection of type
        Classes that are not River's and that a checkpoint may hold, such as a transformer of your own. Loading a
        checkpoint runs their code.

    Notes
    -----
    Scores are the logarithms of River's probabilities, so -Inf for a class that River does not name, and in all places
    when it has no answer (before the first sample). Where several classes are the most probable, the score of the one
    that River predicts is the next larger number. For a regressor they are its predictions (B, 1).

    Values reach River as the numbers that the stream has. River's own are float64, and a stream of float32 rounds them;
    :func:`driftline.interop.river.stream` does not.

    A checkpoint holds the model as bytes from pickle, River's only format. They are read by an unpickler that knows
    what is River's, numpy arrays and plain values only (:mod:`driftline.interop.river.pickles`): no code other than
    theirs is called by it, and River's has not been audited for that, so load what you trust. The bytes of equal models
    may differ, since they tell which of their parts are one object; what the models answer does not. River does not
    promise that another version reads them, so a checkpoint from another version is refused.

    Raises
    ------
    ConfigError
        When the model is neither classifier nor regressor, or classes are missing; from :meth:`state_dict`, when the
        model holds an object that a checkpoint may not hold.

    References
    ----------
    Montiel et al., "River: machine learning for streaming data in Python" (JMLR 2021).

    Examples
    --------
    >>> import driftline
    >>> from river import linear_model, preprocessing
    >>> from driftline.interop.river import RiverLearner
    >>> learner = RiverLearner(preprocessing.StandardScaler() | linear_model.LogisticRegression(), classes=2)
    >>> stream = driftline.scenarios.iid(driftline.load("phishing"))
    >>> driftline.run(stream, learner).results["online_accuracy"] > 0.85
    True
    """

    def __init__(
        self,
        model: base.Classifier | base.Regressor,
        classes: int | Sequence[base.typing.ClfTarget] | None = None,
        features: Sequence[Hashable] | None = None,
        allow: Collection[type] = (),
    ) -> None:
        # River's isinstance looks at the last step of a pipeline.
        classifies = isinstance(model, base.Classifier)
        if not classifies and not isinstance(model, base.Regressor):
            raise ConfigError(f"{type(model).__name__} is neither a classifier nor a regressor of River")
        if classifies and classes is None:
            raise ConfigError(
                f"{type(model).__name__} classifies: say how many classes there are, or name their labels"
            )
        if not classifies and classes is not None:
            raise ConfigError(f"{type(model).__name__} predicts numbers; leave out classes")
        self.model = model
        self.labels = None if classes is None else list(range(classes)) if isinstance(classes, int) else list(classes)
        self.features, self.allow = None if features is None else list(features), tuple(allow)
        self.num_classes = None if self.labels is None else len(self.labels)
        self._places = {label: place for place, label in enumerate(self.labels or ())}
        if len(self._places) != len(self.labels or ()):
            raise ConfigError(f"classes={classes!r}: two of the labels are the same")
        if self.features is not None:
            self.input_shape = (len(self.features),)

    def predict(self, x: Tensor) -> Tensor:
        """Return scores (B, classes), or predictions (B, 1) of a regressor, in float64."""
        self.check(x)
        return self._answers(self._rows(x)).to(x.device)

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Learn from the samples one after the other."""
        self.check(x, y)
        targets = y.flatten().tolist()
        for row, target in zip(self._rows(x), targets):
            self.model.learn_one(row, target if self.labels is None else self.labels[target])
        self.input_shape = tuple(x.shape[1:])

    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        """Predict, then learn."""
        self.check(x, y)
        return super().observe(x, y)

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Raise if a batch cannot be used, before any state changes."""
        if self.trusted:
            return
        super().check(x, y)
        if x.dim() != 2:
            raise InputError(f"RiverLearner, x: samples of shape {tuple(x.shape[1:])}; flatten them for River")
        if y is not None and (y.is_floating_point() != (self.labels is None) or y[0].numel() != 1):
            wanted = "class indices" if self.labels is not None else "one floating target for each sample"
            raise InputError(f"RiverLearner, y: expected {wanted}, got shape {tuple(y.shape)} and {y.dtype}")

    def describe(self) -> dict[str, object]:
        """Return the model with its parameters, as River prints it."""
        parameters = {
            "model": repr(self.model),
            "classes": None if self.labels is None else [str(label) for label in self.labels],
            "features": None if self.features is None else [str(name) for name in self.features],
            "river": pickles.VERSION,
        }
        return {"name": type(self).__name__, "parameters": parameters}

    def state_dict(self) -> State:
        """Return the model as bytes (a tensor), with River's version."""
        content = pickles.save(self.model, self.allow)
        return {
            "model": torch.frombuffer(bytearray(content), dtype=torch.uint8),
            "kind": type(self.model).__name__,
            "river": pickles.VERSION,
            "input_shape": None if self.input_shape is None else list(self.input_shape),
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When it belongs to another model or version of River, or holds what a checkpoint may not hold.
        """
        wanted = {"model", "kind", "river", "input_shape"}
        if set(state) != wanted:
            raise CheckpointError(f"the state has parts {sorted(state)}, this learner {sorted(wanted)}")
        if state["kind"] != type(self.model).__name__:
            raise CheckpointError(f"saved with a {state['kind']}, but this learner has a {type(self.model).__name__}")
        content = cast(Tensor, state["model"]).cpu().numpy().tobytes()
        model = pickles.load(content, str(state["river"]), self.allow)
        if type(model) is not type(self.model):
            raise CheckpointError(f"the state holds a {type(model).__name__}, not a {type(self.model).__name__}")
        self.model = cast(Any, model)
        shape = cast("list[int] | None", state["input_shape"])
        self.input_shape = None if shape is None else tuple(shape)

    def _rows(self, x: Tensor) -> list[dict[Hashable, float]]:
        names = range(x.shape[1]) if self.features is None else self.features
        return [dict(zip(names, row)) for row in x.tolist()]

    def _answers(self, rows: list[dict[Hashable, float]]) -> Tensor:
        if self.labels is None:
            return torch.tensor([[float(cast(Any, self.model).predict_one(row))] for row in rows], dtype=torch.float64)
        scores = np.full((len(rows), len(self.labels)), -math.inf)
        for row, place in zip(rows, scores):
            self._answer(row, place)
        return torch.from_numpy(scores)

    def _answer(self, row: dict[Hashable, float], scores: Any) -> None:
        """Write the logarithm of each label's probability."""
        model = cast(base.Classifier, self.model)
        try:
            answer = model.predict_proba_one(row)
        except NotImplementedError:
            label = model.predict_one(row)
            answer = {} if label is None else {label: 1.0}
        known = {self._places[label]: p for label, p in answer.items() if p > 0 and label in self._places}
        for place, probability in known.items():
            scores[place] = math.log(probability)
        if known:
            first = max(known, key=known.__getitem__)
            if first != scores.argmax():
                scores[first] = np.nextafter(scores[first], math.inf)
