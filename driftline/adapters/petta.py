"""PeTTA: a persistent teacher that senses its divergence from the source (Hoang et al., NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.adapters.augmentation import Augment
from driftline.adapters.choosing import MakeOptimizer, Parameters
from driftline.adapters.classifier import ClassifierTap
from driftline.adapters.losses import cross_entropy_to
from driftline.adapters.model import demand_finite, follow, frozen
from driftline.adapters.normalization import taking_in
from driftline.adapters.rmt import symmetric
from driftline.adapters.rotta import RoTTA
from driftline.adapters.settings import between
from driftline.errors import ConfigError
from driftline.stream.dataset import Dataset, as_input
from driftline.stream.seeds import derive_seed, generator


class PeTTA(RoTTA):
    """RoTTA's teacher and memory, held to the source the more, and moved the less, the further features have diverged.

    Parameters
    ----------
    model : nn.Module
        The source, with batch normalisation that keeps statistics, ending in a linear layer.
    source : Dataset or Tensor
        Source samples (N, *input), for the mean and the variance of each predicted class's features; labels are not
        used. A class that is predicted for fewer than two of them is left out of the divergence.
    lr : float
        Step size. Published: 1e-3 with Adam.
    optimizer : str or callable
        See :data:`driftline.adapters.choosing.MakeOptimizer`.
    anchor, regularisation : float
        Weights of the cross-entropy to the source model, and of the (negative) cosine similarity of parameters to the
        source's, which is also multiplied by the divergence. Published: 1 and 10 (1 for DomainNet126).
    alpha : float
        The part of the way to the student that the teacher goes at each update, times (1 - divergence); 0 to 1.
    feature_momentum : float
        Weight of the newest samples in the running mean of each class's features, 0 to 1.
    norm_momentum : float
        Weight of the memory in the running statistics at each update, 0 to 1.
    symmetric : bool
        Cross-entropies in both directions, of samples and views, as published for CIFAR; False: of the views to the
        teacher alone, as published for ImageNet-C and DomainNet126.
    capacity, update_every, lambda_t, lambda_u, augmentation, parameters, seed, inplace
        As :class:`driftline.adapters.RoTTA`'s.
    classifier : str, optional
        Name of the linear layer whose inputs are the features. Default: the last.

    Attributes
    ----------
    divergence : float
        At the last update, 0 (as the source) to 1.

    Raises
    ------
    ConfigError
        For a setting out of range, a model without batch normalisation, or no source samples.

    Notes
    -----
    Source: Hoang, Vo & Do, *Persistent test-time adaptation in recurring testing scenarios*, NeurIPS 2024. The
    divergence is 1 - exp(-d), d the mean over features and over the classes seen since the last update of
    (running mean - source mean)^2 / source variance. The released code updates at every batch, of 64; here it is every
    ``update_every`` samples, which is the same for such batches. Views are drawn for each sample. Statistics of the
    student take in the memory twice, plain and as views, and the source model's once, as in the released code.
    Single samples: made for them, as RoTTA.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    >>> adapter = PeTTA(model, torch.rand(100, 3, 8, 8), update_every=8)
    >>> adapter.adapt(torch.rand(10, 3, 8, 8)).shape, 0 <= adapter.divergence <= 1
    (torch.Size([10, 10]), True)
    """

    held = (*RoTTA.held, "anchor_model", "means", "pending", "counts", "divergence")

    def __init__(
        self,
        model: nn.Module,
        source: Dataset | Tensor,
        lr: float = 1e-3,
        optimizer: MakeOptimizer = "adam",
        anchor: float = 1.0,
        regularisation: float = 10.0,
        alpha: float = 0.001,
        feature_momentum: float = 0.05,
        norm_momentum: float = 0.05,
        symmetric: bool = True,
        capacity: int = 64,
        update_every: int = 64,
        lambda_t: float = 1.0,
        lambda_u: float = 1.0,
        augmentation: Augment | None = None,
        classifier: str | None = None,
        parameters: Parameters = "affine",
        seed: int = 0,
        inplace: bool = False,
    ) -> None:
        for name, value in (("anchor", anchor), ("regularisation", regularisation)):
            between(name, value, 0)
        between("feature_momentum", feature_momentum, 0, 1)
        x = source.x if isinstance(source, Dataset) else source
        if not len(x):
            raise ConfigError("source: no samples; the divergence is measured from their features")
        tap = ClassifierTap(model, classifier)
        self._source_means, self._source_variances = class_features(tap, x)
        self.classifier = classifier
        super().__init__(
            model, tap.layer.out_features, lr, optimizer, capacity, update_every, norm_momentum, alpha,
            lambda_t, lambda_u, augmentation, parameters, seed, inplace,
        )  # fmt: skip
        self.anchor, self.regularisation, self.symmetric = anchor, regularisation, symmetric
        self.alpha, self.feature_momentum, self.norm_momentum = alpha, feature_momentum, norm_momentum

    def prepare(self) -> None:
        """Set up the source model and the running features."""
        self._tap = ClassifierTap(self.teacher, self.classifier)
        self.anchor_model = frozen(self.model)
        self.means = self._source_means.clone()
        self.pending, self.counts = torch.zeros_like(self.means), self.means.new_zeros(len(self.means))
        self.divergence = 0.0

    def update(self, x: Tensor) -> Tensor:
        """Put samples into the memory, and learn from it at intervals; return the teacher's scores from before."""
        with torch.no_grad():
            self._features, scores = self._tap(x)
        demand_finite(scores, "the teacher's scores")
        self.remember_samples(x, scores)
        return scores

    def gathered(self, part: slice, labels: list[int]) -> None:
        """Add the features of samples to those seen since the last update."""
        where = torch.tensor(labels[part], device=self.pending.device)
        self.pending = self.pending.index_add(0, where, self._features[part])
        self.counts = self.counts.index_add(0, where, torch.ones_like(where, dtype=self.counts.dtype))

    def learn(self) -> None:
        """Step the student on the memory, held to the source; the teacher follows."""
        self.divergence = self.diverged()
        x, _, _, _ = self.memory.by_class()
        random = generator(derive_seed(self.seed, "views", self.seen), x.device)
        view = self._augment(x, random)
        with torch.no_grad(), taking_in(self.teacher, self.anchor_model):
            teacher, source = self.teacher(x), self.anchor_model(x)
        with taking_in(self.model):
            plain: Tensor = self.model(x)
        with taking_in(self.model):
            viewed: Tensor = self.model(view)
            if self.symmetric:
                loss = (symmetric(plain, teacher) + symmetric(viewed, teacher)).mean() / 2
            else:
                loss = cross_entropy_to(viewed, teacher).mean()
            loss = loss + self.anchor * cross_entropy_to(viewed, source).mean()
            self.step(loss - self.regularisation * self.divergence * self.likeness())
        follow(self.teacher, self.model, (1 - self.divergence) * self.alpha)

    def diverged(self) -> float:
        """Return the divergence of the classes seen since the last update, whose means then take in their features."""
        seen = self.counts > 0
        # A class without a source variance cannot be compared.
        known = seen & self._source_variances.isfinite().all(1)
        square = (self.means[known] - self._source_means[known]).square() / (self._source_variances[known] + 1e-6)
        distance = float(square.mean()) if bool(known.any()) else 0.0
        new = self.pending[seen] / self.counts[seen, None]
        self.means = self.means.index_copy(
            0, seen.nonzero().flatten(), torch.lerp(self.means[seen], new, self.feature_momentum)
        )
        self.pending, self.counts = torch.zeros_like(self.pending), torch.zeros_like(self.counts)
        return -torch.expm1(torch.tensor(-distance, dtype=torch.float64)).item()

    def likeness(self) -> Tensor:
        """Return the mean cosine similarity of the trained parameters to the source's."""
        pairs = zip(self.model.parameters(), self.anchor_model.parameters(), strict=True)
        return torch.stack(
            [F.cosine_similarity(p.flatten(), s.flatten(), dim=0) for p, s in pairs if p.requires_grad]
        ).mean()


def class_features(tap: ClassifierTap, x: Tensor, batch: int = 200) -> tuple[Tensor, Tensor]:
    """Return mean and variance (classes, F) of features by predicted class: of none, the mean 0 and variance NaN."""
    classes = tap.layer.out_features
    parts = [tap.features(part) for part in _inputs(x, batch, tap.layer.weight.device)]
    features, labels = torch.cat([f for f, _ in parts]), torch.cat([s for _, s in parts]).argmax(1)
    count = torch.bincount(labels, minlength=classes).to(features)[:, None]
    total = features.new_zeros(classes, features.shape[1])
    mean = total.index_add(0, labels, features) / count.clamp(min=1)
    square = total.index_add(0, labels, (features - mean[labels]).square())
    return mean, square / torch.where(count > 1, count - 1, torch.nan)


def _inputs(x: Tensor, batch: int, device: torch.device) -> Iterator[Tensor]:
    for part in torch.split(x, batch):
        yield as_input(part.to(device))
