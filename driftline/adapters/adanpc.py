"""AdaNPC: nearest neighbours in a memory of features, which grows by the test samples (Zhang et al., ICML 2023)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.adapters.classifier import ClassifierTap
from driftline.adapters.feature_memory import Eviction, FeatureMemory
from driftline.adapters.model import ModelAdapter, demand_finite
from driftline.adapters.settings import Variant, above, at_least, between, one_of
from driftline.errors import ConfigError
from driftline.stream.dataset import Dataset, as_input


class AdaNPC(ModelAdapter):
    """Predict by the vote of the nearest features in memory, and remember samples with the label they were given.

    Parameters
    ----------
    model : nn.Module
        The source, whose features are used as they are.
    source : Dataset or (Tensor, Tensor)
        Labelled source samples (N, *input) and their classes (N,), of which the memory is made.
    k : int
        Neighbours that vote, at least 1 (all, where the memory holds fewer). Published: 100; grid 1 to 200.
    temperature : float
        A neighbour's weight is softmax(cosine / temperature); above 0. Published: 0.1; grid 0.01 to 0.5.
    beta : float
        A sample is remembered when its confidence is at least this. Published: 0.1; grid 0, 0.25, 0.75, 1.1 (never).
    eps_ball : float, optional
        Let all vote whose cosine is at least this, where there is one above it; the k nearest otherwise.
    variant : "paper" or "released"
        "paper": the confidence is the largest vote, between 1 / C and 1. "released": that of the softmax of the votes,
        between 1 / C and e / (e + C - 1), which is 0.23 for 10 classes; the ball is used only if every sample of the
        batch has a neighbour in it; and the memory holds a random first row of class 0, not normalised.
    capacity : int, optional
        Places for test samples, beside the source's, which stay. None: no limit, as published.
    eviction : "oldest", "reservoir" or "balanced"
        Which test sample makes room, see :class:`driftline.adapters.feature_memory.FeatureMemory`.
    classifier : str, optional
        Name of the linear layer whose input is the features. Default: the last.
    seed : int
        For "reservoir" and the random row.
    inplace : bool
        Use the model itself, not a copy; it is not changed.

    Attributes
    ----------
    memory : FeatureMemory

    Raises
    ------
    ConfigError
        For a model without a linear layer, source samples it cannot use, or a setting out of range.

    Notes
    -----
    Source: Zhang, Wang, Zhang, Zhang, Jin, Zhang, Tan & Wang, *AdaNPC: exploring non-parametric classifier for
    test-time adaptation*, ICML 2023. Scores are logarithms of the votes, to each of which 1e-5 is added. A batch is
    predicted first and remembered then. The released code copies the whole memory at each batch. AdaNPC-BN, which also
    trains a normalisation of the features, is not included.
    Single samples: work as they are, since each is classified by the source's features.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> adapter = AdaNPC(model, (torch.randn(30, 4), torch.arange(30) % 3), k=5, capacity=20)
    >>> adapter.adapt(torch.randn(50, 4)).shape, adapter.memory.size
    (torch.Size([50, 3]), 50)
    """

    held = ("model", "memory")

    def __init__(
        self,
        model: nn.Module,
        source: Dataset | tuple[Tensor, Tensor],
        k: int = 100,
        temperature: float = 0.1,
        beta: float = 0.1,
        eps_ball: float | None = None,
        variant: Variant = "paper",
        capacity: int | None = None,
        eviction: Eviction = "oldest",
        classifier: str | None = None,
        seed: int = 0,
        inplace: bool = False,
    ) -> None:
        at_least("k", k, 1)
        above("temperature", temperature, 0)
        between("beta", beta, 0)
        if eps_ball is not None:
            between("eps_ball", eps_ball, -1)
        one_of("variant", variant)
        super().__init__(model, inplace)
        self.k, self.temperature, self.beta, self.eps_ball, self.variant = k, temperature, beta, eps_ball, variant
        self.capacity, self.eviction, self.classifier, self.seed = capacity, eviction, classifier, seed
        self.tap = ClassifierTap(self.model, classifier)
        features, labels = self._source_memory(source)
        self.memory = FeatureMemory(features, labels, self.tap.layer.out_features, capacity, eviction, seed)
        self.remember()

    def _source_memory(self, source: Dataset | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = (source.x, source.y) if isinstance(source, Dataset) else source
        classes = self.tap.layer.out_features
        if y is None or y.is_floating_point() or len(x) != len(y) or len(x) == 0:
            raise ConfigError("source: AdaNPC's memory needs samples and as many labels; give (x, y) or a Dataset")
        if int(y.min()) < 0 or int(y.max()) >= classes:
            raise ConfigError(f"source: its labels must be 0..{classes - 1}, one of the model's classes")
        weight = self.tap.layer.weight
        batches = [self.tap.features(as_input(part).to(weight.device))[0] for part in torch.split(x, 256)]
        features = F.normalize(torch.cat(batches), dim=1)
        if not bool(torch.isfinite(features).all()):
            raise ConfigError("source: the model gives NaN or Inf for its samples")
        y = y.long().to(features.device)
        if self.variant == "paper":
            return features, y
        row = torch.randn(1, features.shape[1], generator=torch.Generator().manual_seed(self.seed))
        return torch.cat((row.to(features), features)), torch.cat((y.new_zeros(1), y))

    def verify(self, x: Tensor) -> None:
        """Raise unless the classifier gives the model's scores."""
        self.tap.verify(x)

    def update(self, x: Tensor) -> Tensor:
        """Let the memory vote on the batch, then remember the confident samples."""
        with torch.no_grad():
            features = self._features(x)
            votes = self._vote(features)
            confidence, label = (votes if self.variant == "paper" else F.softmax(votes, 1)).max(1)
            sure = confidence >= self.beta
            self.memory.add(features[sure], label[sure])
            return votes.log()

    def predict(self, x: Tensor) -> Tensor:
        """Return the logarithms (B, classes) of the memory's votes; changes nothing."""
        self.check(x)
        with torch.no_grad():
            return self._vote(self._features(x)).log()

    def _features(self, x: Tensor) -> Tensor:
        features, _ = self.tap.features(x)
        demand_finite(features, "features")
        return F.normalize(features, dim=1)

    def _vote(self, features: Tensor) -> Tensor:
        size = self.memory.size
        similarity = features @ self.memory.features[:size].T  # (B, size)
        labels = self.memory.labels[:size]
        near, index = similarity.topk(min(self.k, size), dim=1)
        votes = self._share(near, labels[index])
        if self.eps_ball is not None:
            inside = near[:, :1] > self.eps_ball
            if self.variant == "released":
                inside = inside.all().expand_as(inside)
            ball = similarity.masked_fill(similarity < self.eps_ball, -torch.inf)
            # A row without anyone inside would be all -Inf; its nearest vote instead.
            ball = torch.where(inside, ball, similarity)
            votes = torch.where(inside, self._share(ball, labels.expand_as(ball)), votes)
        return (votes + 1e-5).clamp(max=1.0)

    def _share(self, similarity: Tensor, labels: Tensor) -> Tensor:
        """Return the classes' shares (B, C) of the neighbours' weights, both (B, n)."""
        weights = F.softmax(similarity / self.temperature, 1)
        return weights.new_zeros(len(weights), self.memory.classes).scatter_add_(1, labels, weights)

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When it belongs to another model, adapter or kind of memory; nothing has been changed then.
        """
        memory = state.get("memory")
        if isinstance(memory, Mapping):
            self.memory.check_state(memory)
        super().load_state_dict(state)
