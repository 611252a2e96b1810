"""LAME: the predictions of a batch are smoothed over similar samples; no parameter changes (Boudiaf et al., 2022)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.adapters.classifier import ClassifierTap
from driftline.adapters.model import ModelAdapter, demand_finite
from driftline.adapters.settings import at_least, between, one_of

Affinity = Literal["knn", "rbf", "linear"]


class LAME(ModelAdapter):
    """Give similar samples of a batch similar predictions, as near to the source model's as that allows.

    Parameters
    ----------
    model : nn.Module
        The source, which is used as it is, with its own statistics.
    affinity : "knn", "rbf" or "linear"
        How alike two samples are, by their features of length 1. "knn": 1 for the ``neighbours`` nearest, else 0.
        "rbf": exp(-d^2 / 2 s^2), s the batch's mean distance to the ``neighbours``-th nearest, the sample itself
        being the first. "linear": the cosine.
    neighbours : int
        At least 1. Published: 5.
    symmetric : bool
        Use (W + W') / 2 in place of the affinities W.
    steps : int
        At most so many steps, at least 1.
    tolerance : float
        Stop when the objective changes by this share of itself or less; 0 or more.
    classifier : str, optional
        Name of the linear layer whose input is the features. Default: the last.
    inplace : bool
        Use the model itself, not a copy; it is not changed.

    Raises
    ------
    ConfigError
        For a model without a linear layer, or a setting out of range.

    Notes
    -----
    Source: Boudiaf, Mueller, Ben Ayed & Bertinetto, *Parameter-free online test-time adaptation*, CVPR 2022. Scores
    are logarithms of the assignments. Nothing is carried from batch to batch, so ``predict`` and ``adapt`` are the
    same. With "knn" a sample is never its own neighbour; the released code could choose it when a batch holds the
    same sample twice. It helps where the labels of a batch are correlated, and hurts where they are not.
    Single samples: with "knn" the source's prediction; otherwise that, sharpened by itself. Safe, but no adaptation;
    a ``SlidingWindow`` gives them neighbours.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> scores = LAME(model, affinity="knn", neighbours=1).adapt(torch.randn(6, 2))
    >>> torch.allclose(scores.exp().sum(1), torch.ones(6))
    True
    """

    def __init__(
        self,
        model: nn.Module,
        affinity: Affinity = "rbf",
        neighbours: int = 5,
        symmetric: bool = False,
        steps: int = 100,
        tolerance: float = 1e-8,
        classifier: str | None = None,
        inplace: bool = False,
    ) -> None:
        one_of("affinity", affinity, ("knn", "rbf", "linear"))
        at_least("neighbours", neighbours, 1)
        at_least("steps", steps, 1)
        between("tolerance", tolerance, 0)
        super().__init__(model, inplace)
        self.affinity, self.neighbours, self.symmetric = affinity, neighbours, symmetric
        self.steps, self.tolerance, self.classifier = steps, tolerance, classifier
        self.tap = ClassifierTap(self.model, classifier)
        self.remember()

    def verify(self, x: Tensor) -> None:
        """Raise unless the classifier gives the model's scores."""
        self.tap.verify(x)

    def update(self, x: Tensor) -> Tensor:
        """Return the logarithms of the batch's assignments."""
        return self.predict(x)

    def predict(self, x: Tensor) -> Tensor:
        """Return the logarithms (B, classes) of the batch's assignments; changes nothing."""
        self.check(x)
        features, scores = self.tap.features(x)
        demand_finite(scores, "scores")
        kernel = self.similarity(F.normalize(features, dim=1))
        return assign(F.softmax(scores, 1), kernel, self.steps, self.tolerance)

    def similarity(self, features: Tensor) -> Tensor:
        """Return the affinities (B, B) of features (B, F) of length 1."""
        if self.affinity == "linear":
            kernel = features @ features.T
        else:
            # Not by the scalar product, whose rounding would show between near samples.
            distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
            kernel = self._nearest(distance) if self.affinity == "knn" else self._gaussian(distance)
        return (kernel + kernel.T) / 2 if self.symmetric else kernel

    def _nearest(self, distance: Tensor) -> Tensor:
        alone = distance.clone().fill_diagonal_(-1.0)
        index = alone.topk(min(self.neighbours + 1, len(distance)), largest=False).indices[:, 1:]
        return torch.zeros_like(distance).scatter_(1, index, 1.0)

    def _gaussian(self, distance: Tensor) -> Tensor:
        width = distance.topk(min(self.neighbours, len(distance)), largest=False).values[:, -1].mean()
        # Of a single sample, or of equal ones, the width is 0.
        return torch.exp(-(distance**2) / (2 * width**2).clamp(min=torch.finfo(distance.dtype).tiny))


def assign(probabilities: Tensor, kernel: Tensor, steps: int = 100, tolerance: float = 1e-8) -> Tensor:
    """Return the logarithms (B, C) of LAME's assignments for probabilities (B, C) and affinities (B, B).

    Each step minimises a bound on the objective: the cross-entropy to the model's predictions, less the affinities of
    samples that are assigned alike.
    """
    unary = -torch.log(probabilities + 1e-10)
    logs = F.log_softmax(-unary, 1)
    before = float("inf")
    for step in range(steps):
        pairwise = kernel @ logs.exp()
        logs = F.log_softmax(pairwise - unary, 1)
        found = logs.exp()
        energy = float((unary * found - pairwise * found + found * found.clamp(min=1e-20).log()).sum())
        if step > 1 and abs(energy - before) <= tolerance * abs(before):
            break
        before = energy
    return logs
