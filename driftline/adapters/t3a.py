"""T3A: a classifier of prototypes that confident test samples move (Iwasawa & Matsuo, NeurIPS 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.adapters.classifier import ClassifierTap
from driftline.adapters.losses import entropy
from driftline.adapters.model import ModelAdapter, copied, demand_finite
from driftline.adapters.settings import Variant, at_least, one_of
from driftline.errors import ConfigError


class T3A(ModelAdapter):
    """Classify by the mean of each class's supports: the classifier's weights, and the surest test samples so far.

    Parameters
    ----------
    model : nn.Module
        The source, whose features are used as they are.
    filter_k : int
        Supports kept per class, those of the lowest entropy; at least 1, or -1: all. Published: one of 1, 5, 20, 50,
        100 and -1, chosen on source data.
    variant : "paper" or "released"
        They differ for -1 alone: the released code then drops the support of the highest entropy of each class at
        every batch.
    classifier : str, optional
        Name of the linear layer that gives the scores. Default: the last.
    inplace : bool
        Use the model itself, not a copy; it is not changed.

    Attributes
    ----------
    supports : Tensor
        (classes, places, F), of length 1.
    entropy : Tensor
        (classes, places), in nats; infinite where there is no support.

    Raises
    ------
    ConfigError
        For a model without a linear layer, or a setting out of range.

    Notes
    -----
    Source: Iwasawa & Matsuo, *Test-time classifier adjustment module for model-agnostic domain generalization*,
    NeurIPS 2021. As released: a batch's samples join the supports before they are predicted, their labels and entropies
    are the source classifier's, and the scores have no bias. ``predict`` uses the supports there are; its samples do
    not join. With ``filter_k=-1`` memory grows with the stream, by doubling.
    Single samples: work as they are, since each is classified by the source's features.

    Examples
    --------
    >>> adapter = T3A(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), filter_k=5)
    >>> adapter.adapt(torch.randn(50, 4)).shape, int(adapter.entropy.isfinite().sum(1).max())
    (torch.Size([50, 3]), 5)
    """

    held = ("model", "supports", "entropy")

    def __init__(
        self,
        model: nn.Module,
        filter_k: int = 20,
        variant: Variant = "paper",
        classifier: str | None = None,
        inplace: bool = False,
    ) -> None:
        if filter_k != -1:
            try:
                at_least("filter_k", filter_k, 1)
            except ConfigError as error:
                raise ConfigError(f"{error}, or -1 for all") from None
        one_of("variant", variant)
        super().__init__(model, inplace)
        self.filter_k, self.variant, self.classifier = filter_k, variant, classifier
        self.tap = ClassifierTap(self.model, classifier)
        weight = self.tap.layer.weight.detach()
        places = 16 if filter_k == -1 else filter_k
        self.supports = weight.new_zeros(len(weight), places, weight.shape[1])
        self.entropy = weight.new_full((len(weight), places), torch.inf)
        with torch.no_grad():
            # A row of weights is a support of the class it is itself classified as, not always its own.
            self._join(weight, self.tap.layer(weight), drop=False)
        self.remember()

    def verify(self, x: Tensor) -> None:
        """Raise unless the classifier gives the model's scores."""
        self.tap.verify(x)

    def update(self, x: Tensor) -> Tensor:
        """Let the batch join the supports, then classify it by them."""
        features, scores = self.tap.features(x)
        demand_finite(scores, "scores")
        with torch.no_grad():
            self._join(features, scores)
            return self._classify(features)

    def predict(self, x: Tensor) -> Tensor:
        """Return scores (B, classes) by the supports as they are; changes nothing."""
        self.check(x)
        features, scores = self.tap.features(x)
        demand_finite(scores, "scores")
        with torch.no_grad():
            return self._classify(features)

    def as_module(self) -> nn.Module:
        """Return a copy of the model whose classifier has the prototypes for weights, and no bias."""
        prototypes = self._prototypes()
        layer = nn.Linear(prototypes.shape[1], len(prototypes), bias=False)
        layer.weight = nn.Parameter(prototypes, requires_grad=False)
        model = copied(self.model)
        *parents, name = self.tap.name.split(".")
        if not name:
            return layer
        setattr(model.get_submodule(".".join(parents)), name, layer)
        return model

    def _prototypes(self) -> Tensor:
        """Return the classes' mean supports (classes, F), of length 1."""
        sums = torch.einsum("ckf,ck->cf", self.supports, self.entropy.isfinite().to(self.supports.dtype))
        return F.normalize(sums, dim=1)

    def _classify(self, features: Tensor) -> Tensor:
        return features @ self._prototypes().T

    def _join(self, features: Tensor, scores: Tensor, drop: bool = True) -> None:
        """Keep the supports of lowest entropy in each class, of the present ones and these."""
        classes, places = self.entropy.shape
        label, unsure = scores.argmax(1), entropy(scores)
        member = label == torch.arange(classes, device=label.device)[:, None]  # (C, B)
        candidates = torch.cat((self.entropy, torch.where(member, unsure, torch.inf)), 1)  # (C, places + B)
        limit = candidates.isfinite().sum(1, keepdim=True)
        if drop and self.filter_k != -1:
            limit = limit.clamp(max=self.filter_k)
        elif drop and self.variant == "released":
            limit = limit - 1
        kept = candidates.argsort(dim=1, stable=True).argsort(dim=1) < limit
        self.entropy = torch.where(kept[:, :places], self.entropy, torch.inf)
        self._grow(int(kept.sum(1).max()))
        new = kept[:, places:].any(0)
        label = label[new]
        # The n-th newcomer of a class takes the n-th free place of the class.
        number = (F.one_hot(label, classes).cumsum(0) - 1).gather(1, label[:, None]).squeeze(1)
        free = self.entropy.isfinite().to(torch.uint8).argsort(dim=1, stable=True)
        place = free[label, number]
        self.supports[label, place] = F.normalize(features[new], dim=1)
        self.entropy[label, place] = unsure[new]

    def _grow(self, needed: int) -> None:
        """Make room for so many supports per class; doubling makes that cheap in the long run."""
        places = self.entropy.shape[1]
        if needed > places:
            more = max(needed, 2 * places) - places
            self.supports = F.pad(self.supports, (0, 0, 0, more))
            self.entropy = F.pad(self.entropy, (0, more), value=torch.inf)
