"""CoTTA: a weight-averaged teacher, its averaged predictions, and stochastic restoring (Wang et al., CVPR 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.adapters.augmentation import Augment, Augmentation, check_images
from driftline.adapters.choosing import MakeOptimizer, Parameters, choose, make_optimizer
from driftline.adapters.losses import cross_entropy_to
from driftline.adapters.model import ModelAdapter, demand_finite, follow, frozen
from driftline.adapters.normalization import replace_batch_norm
from driftline.adapters.settings import at_least, between, one_of
from driftline.errors import ConfigError, InputError
from driftline.stream.modules import evaluate
from driftline.stream.seeds import derive_seed, generator


class CoTTA(ModelAdapter):
    """Learn from a slowly following teacher, whose predictions are averaged over views where the source is unsure.

    Parameters
    ----------
    model : nn.Module
        The source. Batch normalisations use the statistics of the batch from then on, in student, teacher and anchor.
    lr : float
        Step size. Published: 1e-3 with Adam for CIFAR (batches of 200); 0.01 with "nesterov" for ImageNet (64).
    optimizer : str or callable
        See :data:`driftline.adapters.choosing.MakeOptimizer`.
    threshold : float
        p_th: the views are averaged for a batch on which the anchor's mean confidence is below it. Published: 0.92 for
        CIFAR-10-C, 0.72 for CIFAR-100-C, 0.1 for ImageNet-C; for another model see :func:`confidence_threshold`.
    views : int
        Views that are averaged.
    momentum : float
        The part of the teacher that stays at each batch.
    restore : float
        The probability of each weight to return to the source at each batch: 0.01 for CIFAR, 0.001 for ImageNet.
    symmetric : bool
        Average the cross-entropies in both directions, as the released code for ImageNet; False: of the student to the
        teacher alone.
    augmentations : sequence of callables, optional
        ``augmentation(x, generator)``, taken in turns. Default: :class:`driftline.adapters.augmentation.Augmentation`,
        for images in [0, 1].
    variant : "paper" or "released"
        "released": all views are made and predicted for each batch, needed or not, and share one draw per batch.
    parameters : str, sequence of str, or callable
        What is trained and restored; see :data:`driftline.adapters.choosing.Parameters`.
    seed : int
        For the views and what is restored.
    inplace : bool
        Adapt the model itself.

    Raises
    ------
    ConfigError
        For a setting out of range, or a model without the chosen parameters.

    Notes
    -----
    Source: Wang, Fink, Van Gool & Dai, *Continual test-time domain adaptation*, CVPR 2022. One test of the threshold
    for a batch, and the logits of views are averaged, as in the released code. Restoring comes after the teacher has
    followed; all floating parameters that are trained are restored (the released code: those named weight or bias).
    Single samples: an image is normalised by itself, which is poor; wrap it in a ``SlidingWindow``.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    >>> adapter = CoTTA(model, views=4)
    >>> adapter.adapt(torch.rand(5, 3, 8, 8)).shape
    torch.Size([5, 10])
    """

    held = ("model", "teacher", "optimizer", "batches")

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        optimizer: MakeOptimizer = "adam",
        threshold: float = 0.92,
        views: int = 32,
        momentum: float = 0.999,
        restore: float = 0.01,
        symmetric: bool = False,
        augmentations: Sequence[Augment] | None = None,
        variant: Literal["paper", "released"] = "paper",
        parameters: Parameters = "all",
        seed: int = 0,
        inplace: bool = False,
    ) -> None:
        for name, value in (("threshold", threshold), ("momentum", momentum), ("restore", restore)):
            between(name, value, 0, 1)
        at_least("views", views, 1)
        one_of("variant", variant)
        if augmentations is not None and not augmentations:
            raise ConfigError("augmentations: an empty list; give at least one callable, or leave it out")
        super().__init__(model, inplace)
        self.lr, self.threshold, self.views, self.momentum = lr, threshold, views, momentum
        self.restore, self.symmetric, self.variant, self.seed = restore, symmetric, variant, seed
        self.parameters, self.augmentations = parameters, augmentations
        self._augment: Sequence[Augment] = augmentations or [Augmentation(per_sample=variant == "paper")]
        chosen = choose(self.model, parameters)
        self.model = replace_batch_norm(self.model)
        self.teacher = frozen(self.model)
        self.anchor = frozen(self.model)
        self.optimizer = make_optimizer(optimizer, [*chosen.values()], lr)
        self.batches = 0
        self.remember()

    def verify(self, x: Tensor) -> None:
        """Raise unless the default augmentation fits the samples."""
        if self.augmentations is None:
            check_images(x)
            if float(x.min()) < 0 or float(x.max()) > 1:
                raise InputError(
                    f"x is from {float(x.min()):.3g} to {float(x.max()):.3g}: the augmentation clips images to [0, 1]; "
                    "put the normalisation of inputs into the model, or give augmentations=[...]"
                )

    def update(self, x: Tensor) -> Tensor:
        """Step towards the teacher, let it follow, restore some weights; return the teacher's scores from before."""
        target = self.target(x)
        scores: Tensor = self.model(x)
        loss = cross_entropy_to(scores, target)
        if self.symmetric:
            loss = (loss + cross_entropy_to(target, scores)) / 2
        self.step(loss.mean())
        follow(self.teacher, self.model, 1 - self.momentum)
        if self.restore:
            self.return_to_source(self.restore_masks())
        self.batches += 1
        return target

    @torch.no_grad()
    def target(self, x: Tensor) -> Tensor:
        """Return the teacher's scores, averaged over views if the anchor is unsure of the batch.

        Raises
        ------
        InputError
            For NaN or Inf among the anchor's or the teacher's scores.
        """
        confidence = F.softmax(self.anchor(x), 1).amax(1).mean()
        demand_finite(confidence, "the source's confidence")
        unsure = bool(confidence < self.threshold)
        if unsure or self.variant == "released":
            random = generator(derive_seed(self.seed, "views", self.batches), x.device)
            averaged = self.averaged(x, random)
        plain: Tensor | None = self.teacher(x) if not unsure or self.variant == "released" else None
        target = averaged if unsure or plain is None else plain
        demand_finite(target, "the teacher's scores")
        return target

    def averaged(self, x: Tensor, random: torch.Generator) -> Tensor:
        """Return the teacher's scores averaged over the views, each normalised by itself."""
        makers = self._augment
        total: Tensor = self.teacher(makers[0](x, random))
        for number in range(1, self.views):
            total += self.teacher(makers[number % len(makers)](x, random))
        return total / self.views

    def restore_masks(self) -> list[Tensor]:
        """Draw which elements of the trained parameters return to the source at this batch."""
        random = generator(derive_seed(self.seed, "restore", self.batches), self.device)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        sizes = [p.numel() for p in trained]
        drawn = torch.rand(sum(sizes), generator=random, device=self.device) < self.restore
        return [mask.view_as(p) for mask, p in zip(torch.split(drawn, sizes), trained, strict=True)]

    @torch.no_grad()
    def return_to_source(self, masks: Sequence[Tensor]) -> None:
        """Set the masked elements of the trained parameters back to the source's."""
        trained = [
            (p, source)
            for p, source in zip(self.model.parameters(), self.anchor.parameters(), strict=True)
            if p.requires_grad
        ]
        for (parameter, source), mask in zip(trained, masks, strict=True):
            torch.where(mask, source, parameter, out=parameter.data)

    def predict(self, x: Tensor) -> Tensor:
        """Return the teacher's scores (B, classes) without views; changes nothing."""
        self.check(x)
        return evaluate(self.teacher, x)

    def as_module(self) -> nn.Module:
        """Return the teacher."""
        return self.teacher


def confidence_threshold(model: nn.Module, x: Tensor, batch: int = 200, quantile: float = 0.05) -> float:
    """Return CoTTA's p_th for a model: the 5 % quantile of its confidence on source samples, minus 0.05.

    Parameters
    ----------
    model : nn.Module
        The source.
    x : Tensor
        Source samples (N, *input), as the model takes them.
    batch : int
        Samples at a time.
    quantile : float
        0 to 1.

    Examples
    --------
    >>> round(confidence_threshold(nn.Linear(2, 2), torch.zeros(10, 2)), 2) >= 0.45
    True
    """
    between("quantile", quantile, 0, 1)
    scores = torch.cat([evaluate(model, part) for part in torch.split(x, batch)])
    # By sorting: torch.quantile refuses large inputs.
    confidence = F.softmax(scores, 1).amax(1).sort().values
    position = quantile * (len(confidence) - 1)
    low, high = confidence[math.floor(position)], confidence[math.ceil(position)]
    return max(0.0, float(torch.lerp(low, high, position - math.floor(position))) - 0.05)
