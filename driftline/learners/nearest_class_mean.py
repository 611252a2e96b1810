"""Nearest class mean: running class means of raw inputs or frozen features, and no gradient.

Mensink, Verbeek, Perronnin, Csurka, "Distance-based image classification: generalizing to new classes at near-zero
cost" (PAMI 2013).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, cast

import torch
from torch import Tensor, nn

from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.learners.base import Learner, State
from driftline.stream.modules import check_same_model, evaluate, probe


class NearestClassMean(Learner):
    """Scores each class by the negative squared distance to the mean of its samples so far.

    Parameters
    ----------
    features : nn.Module, optional
        Maps (B, *input) to features (B, F) or (B, ...), which are flattened; used frozen, in evaluation mode, and
        never changed. None: the inputs themselves, flattened.
    classes : int, optional
        Number of scores, at least 1. None: as many as the largest label so far asks for (one score before the first
        label), so that each batch's labels are read back from the device.

    Notes
    -----
    Sums and counts are kept in float64, so that the order of samples and how they are cut into batches change
    scores by rounding only. Scores come in the features' dtype, at least float32. A class without samples scores
    ``-inf``; before any sample is learned all scores are 0. Where classes tie, ``argmax`` takes the smallest.

    Raises
    ------
    ConfigError
        When ``classes`` is below 1.

    Examples
    --------
    >>> import torch
    >>> from driftline.learners import NearestClassMean
    >>> learner = NearestClassMean(classes=3)
    >>> learner.learn(torch.tensor([[0.0, 0.0], [0.0, 2.0], [4.0, 1.0]]), torch.tensor([0, 0, 1]))
    >>> learner.predict(torch.tensor([[1.0, 1.0]]))
    tensor([[-1., -9., -inf]])
    """

    def __init__(self, features: nn.Module | None = None, classes: int | None = None) -> None:
        if classes is not None and classes < 1:
            raise ConfigError(f"classes={classes}: must be at least 1, or None to grow with the labels")
        self.features, self.classes = features, classes
        self.num_classes = classes
        self._probed: tuple[torch.Size, torch.dtype] | None = None
        self._sums = torch.zeros(classes or 0, 0, dtype=torch.float64)  # (C, F); F is known from the first batch on
        self._counts = torch.zeros(classes or 0, dtype=torch.float64)

    def predict(self, x: Tensor) -> Tensor:
        """Return scores (B, classes); changes no state."""
        self.check(x)
        return self._score(self._features(x))

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Add samples to the means of their classes."""
        self.check(x, y)
        self._take_in(x, self._features(x), y)

    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        """Predict, then learn from the same features."""
        self.check(x, y)
        z = self._features(x)
        scores = self._score(z)
        self._take_in(x, z, y)
        return scores

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Raise if a batch cannot be used; the first of its kind is also tried on the feature extractor."""
        if self.trusted:
            return
        super().check(x, y)
        if y is not None and y.is_floating_point():
            raise InputError(f"{type(self).__name__}, y: class indices must be integers, got {y.dtype}; use y.long()")
        kind = (x.shape[1:], x.dtype)
        if self.features is not None and kind != self._probed:
            probe(self.features, x)
            self._probed = kind

    def network(self) -> nn.Module | None:
        """Return the feature extractor, if there is one."""
        return self.features

    def to(self, device: torch.device | str) -> Self:
        """Move statistics and feature extractor to ``device``."""
        if self.features is not None:
            self.features.to(device)
        self._sums, self._counts = self._sums.to(device), self._counts.to(device)
        return self

    def describe(self) -> dict[str, object]:
        """Return name and parameters for the record (JSON values)."""
        features = None if self.features is None else type(self.features).__name__
        return {"name": type(self).__name__, "parameters": {"features": features, "classes": self.classes}}

    def state_dict(self) -> State:
        """Return sums and counts of each class, and the feature extractor's state."""
        return {
            "classes": self.classes,
            "input_shape": None if self.input_shape is None else list(self.input_shape),
            "sums": self._sums,
            "counts": self._counts,
            "features": None if self.features is None else self.features.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict` of a learner built the same way."""
        own = self.state_dict()
        if set(state) != set(own):
            raise CheckpointError(f"the state has parts {sorted(state)}, this learner {sorted(own)}")
        if state["classes"] != self.classes:
            raise CheckpointError(f"saved with classes={state['classes']}, but this learner has classes={self.classes}")
        saved = cast("Mapping[str, Tensor] | None", state["features"])
        if (saved is None) != (self.features is None):
            raise CheckpointError("only one of state and learner has a feature extractor; build it as it was saved")
        if self.features is not None and saved is not None:
            check_same_model(self.features, saved)
            self.features.load_state_dict(saved)
        shape = cast("list[int] | None", state["input_shape"])
        self.input_shape = None if shape is None else tuple(shape)
        device = self._sums.device
        self._sums = cast(Tensor, state["sums"]).to(device)
        self._counts = cast(Tensor, state["counts"]).to(device)

    def _features(self, x: Tensor) -> Tensor:
        return (x.detach() if self.features is None else evaluate(self.features, x)).flatten(1)

    def _score(self, z: Tensor) -> Tensor:
        dtype = torch.promote_types(z.dtype, torch.float32) if z.is_floating_point() else torch.float32
        if not self._sums.shape[1]:
            return z.new_zeros(len(z), self.classes or 1, dtype=dtype)
        return self._scores(z.double()).masked_fill(self._counts == 0, -torch.inf).to(dtype)

    def _take_in(self, x: Tensor, z: Tensor, y: Tensor) -> None:
        if not self._sums.shape[1]:
            self._begin(z.double())
            self.input_shape = tuple(x.shape[1:])
        if self.classes is None:
            self._grow(int(y.max()) + 1)
        # Adding through a matrix product has one order of summation on CUDA; index_add has not.
        member = y.unsqueeze(1) == torch.arange(len(self._counts), device=y.device)
        self._learn(z.double(), member.double())

    def _begin(self, z: Tensor) -> None:
        """Make room for statistics of features like these."""
        self._counts = self._counts.to(z.device)
        self._sums = z.new_zeros(len(self._counts), z.shape[1])

    def _grow(self, classes: int) -> None:
        """Make room for at least so many classes."""
        new = max(0, classes - len(self._counts))
        if new:
            self._sums = torch.cat((self._sums, self._sums.new_zeros(new, self._sums.shape[1])))
            self._counts = torch.cat((self._counts, self._counts.new_zeros(new)))

    def _means(self) -> Tensor:
        """Return the means (C, F); zeros for a class without samples."""
        return self._sums / self._counts.clamp(min=1).unsqueeze(1)

    def _learn(self, z: Tensor, member: Tensor) -> None:
        """Take in features (B, F) and one-hot labels (B, C), both float64."""
        # Not in place: a state_dict taken earlier keeps its values.
        self._sums = torch.addmm(self._sums, member.T, z)
        self._counts = self._counts + member.sum(0)

    def _scores(self, z: Tensor) -> Tensor:
        means = self._means()
        squared = z.square().sum(1, keepdim=True) - 2 * (z @ means.T) + means.square().sum(1)
        return -squared.clamp(min=0)
