"""RoTTA: a balanced memory and robust statistics for correlated streams (Yuan, Xie & Li, CVPR 2023)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from driftline.adapters.augmentation import Augment, Augmentation, check_images
from driftline.adapters.choosing import MakeOptimizer, Parameters, choose, make_optimizer
from driftline.adapters.losses import cross_entropy_to
from driftline.adapters.memory import BalancedMemory, rounds
from driftline.adapters.model import ModelAdapter, demand_finite, follow, frozen
from driftline.adapters.normalization import FollowingNorm, replace_batch_norm, taking_in
from driftline.adapters.settings import at_least, between
from driftline.errors import ConfigError
from driftline.stream.modules import evaluate
from driftline.stream.seeds import derive_seed, generator


class RobustNorm(FollowingNorm):
    """Normalises by running statistics; in training mode with the batch taken in first, and gradients through it."""

    def __init__(self, source: _BatchNorm, alpha: float) -> None:
        super().__init__(source)
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised samples (B, C, ...)."""
        mean, var = self.stored()
        if not self.training:
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        batch_mean, batch_var = self.moments(x)
        mean, var = torch.lerp(mean, batch_mean, self.alpha), torch.lerp(var, batch_var, self.alpha)
        self.due = (mean.detach(), var.detach())
        return self.by(x, mean, var)


class RoTTA(ModelAdapter):
    """Learn from a teacher on a memory that is balanced over classes, with slowly following statistics.

    Parameters
    ----------
    model : nn.Module
        The source, with batch normalisation that keeps statistics.
    classes : int, optional
        Number of classes. Default: outputs of the model's last linear layer.
    lr : float
        Step size. Published: 1e-3 with Adam.
    optimizer : str or callable
        See :data:`driftline.adapters.choosing.MakeOptimizer`.
    capacity : int
        Samples in memory.
    update_every : int
        Samples from one update to the next.
    alpha : float
        Weight of the memory in the running statistics at each update, 0 to 1.
    nu : float
        The part of the way to the student that the teacher goes at each update, 0 to 1.
    lambda_t, lambda_u : float
        Weights of age and uncertainty in the memory.
    augmentation : callable, optional
        ``augmentation(x, generator)`` makes the student's view. Default: CoTTA's, for images in [0, 1].
    parameters : str, sequence of str, or callable
        What is trained; see :data:`driftline.adapters.choosing.Parameters`.
    seed : int
        For the views.
    inplace : bool
        Adapt the model itself.

    Raises
    ------
    ConfigError
        For a setting out of range, or a model without batch normalisation.

    Notes
    -----
    Source: Yuan, Xie & Li, *Robust test-time adaptation in dynamic scenarios*, CVPR 2023, as the released code does it:
    updates happen inside a batch, after which its other samples keep the predictions from before, and weights of age
    start at a half. The released code shares one draw of the augmentation; here each sample has its own.
    Single samples: made for them, since scores come from running statistics, and updates from the memory.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    >>> adapter = RoTTA(model, update_every=8)
    >>> adapter.adapt(torch.rand(10, 3, 8, 8)).shape, adapter.memory.size > 0
    (torch.Size([10, 10]), True)
    """

    held: ClassVar[tuple[str, ...]] = ("model", "teacher", "optimizer", "memory", "seen")

    def __init__(
        self,
        model: nn.Module,
        classes: int | None = None,
        lr: float = 1e-3,
        optimizer: MakeOptimizer = "adam",
        capacity: int = 64,
        update_every: int = 64,
        alpha: float = 0.05,
        nu: float = 0.001,
        lambda_t: float = 1.0,
        lambda_u: float = 1.0,
        augmentation: Augment | None = None,
        parameters: Parameters = "affine",
        seed: int = 0,
        inplace: bool = False,
    ) -> None:
        for name, value in (("alpha", alpha), ("nu", nu)):
            between(name, value, 0, 1)
        for name, value in (("lambda_t", lambda_t), ("lambda_u", lambda_u)):
            between(name, value, 0)
        at_least("update_every", update_every, 1)
        super().__init__(model, inplace)
        self.lr, self.capacity, self.update_every, self.alpha, self.nu = lr, capacity, update_every, alpha, nu
        self.lambda_t, self.lambda_u, self.parameters, self.seed = lambda_t, lambda_u, parameters, seed
        self.augmentation = augmentation
        self._augment: Augment = augmentation or Augmentation()
        self.classes = outputs(self.model) if classes is None else classes
        self.memory = BalancedMemory(capacity, self.classes, lambda_t, lambda_u)
        self.model = replace_batch_norm(self.model, lambda layer: RobustNorm(layer, alpha), required=True)
        chosen = choose(self.model, parameters)
        self.teacher = frozen(self.model)
        self.optimizer = make_optimizer(optimizer, [*chosen.values()], lr)
        self.seen = 0
        self.prepare()
        self.remember()

    def prepare(self) -> None:
        """Set up what a method that builds on this one holds besides, before the source is remembered."""

    def verify(self, x: Tensor) -> None:
        """Raise unless the default augmentation fits the samples, and the memory the model's classes."""
        if self.augmentation is None:
            check_images(x)
        if self.num_classes != self.classes:
            raise ConfigError(f"classes={self.classes}: the model gives scores of {self.num_classes}")

    def changes_on(self, samples: int) -> int:
        """Return twice the updates that fall into a batch: each comes after changes of the memory."""
        return 2 * ((self.seen + samples) // self.update_every - self.seen // self.update_every)

    def update(self, x: Tensor) -> Tensor:
        """Put samples into the memory, and learn from it at intervals; return the teacher's scores from before."""
        with torch.no_grad():
            scores: Tensor = self.teacher(x)
        demand_finite(scores, "the teacher's scores")
        self.remember_samples(x, scores)
        return scores

    def remember_samples(self, x: Tensor, scores: Tensor) -> None:
        """Put samples into the memory by their scores, one after another, and learn when it is time."""
        p = F.softmax(scores, 1)
        labels = p.argmax(1).tolist()
        # The released code's logarithm; its small constant decides which of two sure samples stays.
        uncertainties = (-(p * torch.log(p + 1e-6)).sum(1)).tolist()
        for part, full in rounds(self.seen, len(x), self.update_every):
            for number in range(part.start, part.stop):
                self.memory.add(x[number], labels[number], uncertainties[number])
            self.seen += part.stop - part.start
            self.gathered(part, labels)
            if full:
                self.learn()

    def gathered(self, part: slice, labels: list[int]) -> None:
        """Hear of samples that have been put into the memory, and their predicted classes."""

    def learn(self) -> None:
        """Step the student towards the teacher on the memory; the teacher follows."""
        x, _, _, age = self.memory.by_class()
        random = generator(derive_seed(self.seed, "views", self.seen), x.device)
        with taking_in(self.model, self.teacher):
            student: Tensor = self.model(self._augment(x, random))
            with torch.no_grad():
                teacher: Tensor = self.teacher(x)
            self.step((cross_entropy_to(student, teacher) * self.weights(age).to(x.device)).mean())
        follow(self.teacher, self.model, self.nu)

    def weights(self, age: Tensor) -> Tensor:
        """Return the weights of items by their ages: e^-a / (1 + e^-a) of a = age / capacity."""
        # In single precision whatever the model's, as published.
        young = torch.exp(-age.float() / self.capacity)
        return young / (1 + young)

    def predict(self, x: Tensor) -> Tensor:
        """Return the teacher's scores (B, classes); changes nothing."""
        self.check(x)
        return evaluate(self.teacher, x)

    def as_module(self) -> nn.Module:
        """Return the teacher."""
        return self.teacher


def outputs(model: nn.Module) -> int:
    """Return the number of outputs of a model's last linear layer.

    Raises
    ------
    ConfigError
        When there is none.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError(
            f"{type(model).__name__} has no nn.Linear that says how many classes there are; give classes="
        )
    return linear[-1].out_features
