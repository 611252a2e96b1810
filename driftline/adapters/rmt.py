"""RMT: robust mean teacher, with symmetric losses, source prototypes and replay (Döbler et al., CVPR 2023)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.adapters.augmentation import Augment, Augmentation, check_images
from driftline.adapters.choosing import MakeOptimizer, choose, make_optimizer
from driftline.adapters.classifier import ClassifierTap
from driftline.adapters.losses import cross_entropy_to
from driftline.adapters.model import ModelAdapter, demand_finite, follow, frozen
from driftline.adapters.normalization import replace_batch_norm
from driftline.adapters.settings import above, between
from driftline.errors import ConfigError
from driftline.stream.dataset import Dataset
from driftline.stream.modules import evaluate
from driftline.stream.seeds import derive_seed, generator


class RMT(ModelAdapter):
    """Learn from a teacher by a symmetric loss, keep features near the source's class means, and replay source samples.

    Parameters
    ----------
    model : nn.Module
        The source, ending in a linear layer. Batch normalisations use the statistics of the batch from then on.
    source : Dataset or (Tensor, Tensor), optional
        Labelled source samples (N, *input) and (N,), for prototypes, warm-up and replay. None: neither, and ``replay``
        and ``contrast`` must be 0.
    lr : float
        Step size. Published: 1e-3 with Adam for CIFAR, 0.01 with "nesterov" for ImageNet.
    optimizer : str or callable
        See :data:`driftline.adapters.choosing.MakeOptimizer`.
    momentum : float
        The part of the teacher that stays at each step, 0 to 1.
    contrast, replay : float
        Weights of the contrastive loss and of the source samples' cross-entropy; the symmetric loss's is 1. A
        ``replay`` of 0 needs no source samples after the prototypes are known.
    temperature : float
        Of the contrastive loss, positive.
    projection : int
        Width of the contrastive loss's projections.
    batch : int
        Source samples at a time.
    warmup : int
        Steps on source samples before the first batch, in which ``lr`` rises. Published: 50 000 samples.
    augmentation : callable, optional
        ``augmentation(x, generator)``. Default: CoTTA's, for images in [0, 1].
    classifier : str, optional
        Name of the linear layer whose inputs are the features. Default: the last.
    seed : int
        For the projector's first weights and the views.
    inplace : bool
        Adapt the model itself.

    Raises
    ------
    ConfigError
        For a setting out of range, or one that needs source samples without any.

    Notes
    -----
    Source: Döbler, Marsden & Yang, *Robust mean teacher for continual and gradual test-time adaptation*, CVPR 2023, as
    the authors' code does it; prototypes are class means of features under batch statistics. Source batches come in the
    given order, starting over at the end; the code shuffles: shuffle the samples.
    Single samples: an image is normalised by itself, which is poor; wrap it in a ``SlidingWindow``.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    >>> adapter = RMT(model, (torch.rand(40, 3, 8, 8), torch.arange(40) % 10), batch=20)
    >>> adapter.adapt(torch.rand(5, 3, 8, 8)).shape
    torch.Size([5, 10])
    """

    held = ("model", "teacher", "projector", "optimizer", "steps")

    def __init__(
        self,
        model: nn.Module,
        source: Dataset | tuple[Tensor, Tensor] | None = None,
        lr: float = 1e-3,
        optimizer: MakeOptimizer = "adam",
        momentum: float = 0.999,
        contrast: float | None = None,
        replay: float | None = None,
        temperature: float = 0.1,
        projection: int = 128,
        batch: int = 200,
        warmup: int = 0,
        augmentation: Augment | None = None,
        classifier: str | None = None,
        seed: int = 0,
        inplace: bool = False,
    ) -> None:
        given = float(source is not None)
        self.contrast = given if contrast is None else contrast
        self.replay = given if replay is None else replay
        between("momentum", momentum, 0, 1)
        for name, value in (("contrast", self.contrast), ("replay", self.replay), ("warmup", warmup)):
            between(name, value, 0)
            if value and source is None:
                raise ConfigError(f"{name}={value}: needs source samples; give source=, or set it to 0")
        for name, value in (("temperature", temperature), ("projection", projection), ("batch", batch)):
            above(name, value, 0)
        super().__init__(model, inplace)
        self.lr, self.momentum, self.temperature, self.projection = lr, momentum, temperature, projection
        self.batch, self.warmup, self.classifier, self.seed = batch, warmup, classifier, seed
        self.augmentation = augmentation
        self._augment: Augment = augmentation or Augmentation()
        self._tap = ClassifierTap(self.model, classifier)
        chosen = choose(self.model, "all")
        self.model = self._tap.model = replace_batch_norm(self.model)
        self.teacher = frozen(self.model)
        weight = self._tap.layer.weight
        self.projector = projector(weight.shape[1], projection, seed).to(weight)
        self.optimizer = make_optimizer(optimizer, [*chosen.values(), *self.projector.parameters()], lr)
        self.steps = 0
        if source is not None:
            x, y = (source.x, source.y) if isinstance(source, Dataset) else source
            if y is None or not len(x) or len(x) != len(y):
                raise ConfigError("source: samples and as many labels are needed")
            self._source_x, self._source_y = x.to(weight.device), y.to(weight.device)
            self._prototypes = self.prototypes()
            self.warm_up()
        self.remember()

    def verify(self, x: Tensor) -> None:
        """Raise unless the default augmentation fits the samples and the classifier is the model's."""
        self._tap.verify(x)
        if self.augmentation is None:
            check_images(x)

    def update(self, x: Tensor) -> Tensor:
        """Step down the losses; return the sum of student's and teacher's scores from before."""
        random = generator(derive_seed(self.seed, "views", self.steps), x.device)
        view = self._augment(x, random)
        features, scores = self._tap(x)
        view_features, view_scores = self._tap(view)
        with torch.no_grad():
            teacher: Tensor = self.teacher(x)
        demand_finite(teacher, "the teacher's scores")
        loss = (symmetric(scores, teacher) + symmetric(view_scores, teacher)).mean() / 2
        if self.contrast:
            loss = loss + self.contrast * self.contrastive(features, view_features)
        if self.replay:
            source_x, source_y = self.source_batch()
            loss = loss + self.replay * F.cross_entropy(self.model(source_x), source_y)
        self.step(loss)
        follow(self.teacher, self.model, 1 - self.momentum)
        self.steps += 1
        return scores.detach() + teacher

    def contrastive(self, features: Tensor, view_features: Tensor) -> Tensor:
        """Return the loss that draws a sample, its view and its nearest prototype together, and all others apart."""
        unit = F.normalize(features.detach(), dim=1) @ F.normalize(self._prototypes, dim=1).T
        nearest = self._prototypes[unit.argmax(1)]
        count = len(features)
        z = F.normalize(self.projector(torch.cat([nearest, features, view_features])), dim=1)
        similar = z @ z.T / self.temperature
        itself = torch.eye(3 * count, dtype=torch.bool, device=z.device)
        logs = similar - similar.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
        same = torch.eye(count, dtype=torch.bool, device=z.device).repeat(3, 3) & ~itself
        return -logs[same].mean()

    def source_batch(self) -> tuple[Tensor, Tensor]:
        """Return the next source samples and labels."""
        start = self.steps * self.batch % (-(-len(self._source_x) // self.batch) * self.batch)
        part = slice(start, start + self.batch)
        x = self._source_x[part]
        return x.float() / 255 if x.dtype == torch.uint8 else x, self._source_y[part]

    @torch.no_grad()
    def prototypes(self) -> Tensor:
        """Return the mean features of each class's source samples (classes, F); of a class without any: 0."""
        classes = self._tap.layer.out_features
        total = self._tap.layer.weight.new_zeros(classes, self._tap.layer.in_features)
        count = total.new_zeros(classes)
        for x, y in zip(torch.split(self._source_x, self.batch), torch.split(self._source_y, self.batch), strict=True):
            features, _ = self._tap.features(x.float() / 255 if x.dtype == torch.uint8 else x)
            total.index_add_(0, y, features)
            count.index_add_(0, y, torch.ones_like(y, dtype=count.dtype))
        return total / count.clamp(min=1)[:, None]

    def warm_up(self) -> None:
        """Step towards the teacher on source samples, with a step size that rises to ``lr``."""
        rates = [cast(float, group["lr"]) for group in self.optimizer.param_groups]
        with torch.enable_grad():
            for number in range(self.warmup):
                for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * (number + 1) / self.warmup
                x, _ = self.source_batch()
                with torch.no_grad():
                    teacher: Tensor = self.teacher(x)
                self.step(symmetric(self.model(x), teacher).mean())
                follow(self.teacher, self.model, 1 - self.momentum)
                self.steps += 1

    def predict(self, x: Tensor) -> Tensor:
        """Return the sum of student's and teacher's scores (B, classes); changes nothing."""
        self.check(x)
        return evaluate(self.model, x) + evaluate(self.teacher, x)


def symmetric(scores: Tensor, target: Tensor) -> Tensor:
    """Return the mean of the cross-entropies in both directions, (B,), in nats."""
    return (cross_entropy_to(scores, target) + cross_entropy_to(target, scores)) / 2


def projector(features: int, width: int, seed: int) -> nn.Sequential:
    """Return two linear layers with a ReLU between them, whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "projector"))
        return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width))
