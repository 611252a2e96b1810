"""ROID: weight ensembling, diversity weighting and prior correction (Marsden, Döbler & Yang, WACV 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.adapters.augmentation import Augment, Augmentation
from driftline.adapters.choosing import MakeOptimizer, Parameters, choose, make_optimizer
from driftline.adapters.losses import cross_entropy_to, entropy
from driftline.adapters.model import ModelAdapter, demand_finite, values_of
from driftline.adapters.normalization import replace_batch_norm
from driftline.adapters.settings import Variant, between, one_of
from driftline.stream.seeds import derive_seed, generator

CLIP = 0.99
"""Probabilities above this give no gradient to the likelihood ratio, which would grow without bound."""


class ROID(ModelAdapter):
    """Step down a loss of certain and diverse samples, stay near the source, and correct for the batch's classes.

    Parameters
    ----------
    model : nn.Module
        The source. Batch normalisations use the statistics of the batch from then on; other normalisations stay.
    lr : float
        Step size. Published: 1e-3 with Adam for CIFAR-10-C (batches of 200), 2.5e-4 with SGD for ImageNet-C (64).
    optimizer : str or callable
        See :data:`driftline.adapters.choosing.MakeOptimizer`.
    weighting : bool
        Weigh samples by certainty and diversity, and leave those of less than mean diversity out.
    temperature : float
        Of the weights exp(diversity * certainty / temperature), above 0. Published: 1/3.
    momentum_probs : float
        Share that the moving average of predictions keeps at each batch, 0 to 1.
    momentum_source : float
        Share that the trained parameters keep at each batch, 0 to 1; the rest is the source's. Published: 0.99.
    consistency : bool
        Let the predictions of augmented samples agree with those of the samples.
    augment : callable, optional
        ``augment(x, generator)`` returns random views of samples (B, *input), drawn from a generator on their device.
        Default: :class:`driftline.adapters.augmentation.Augmentation`, for images in [0, 1].
    prior_correction : bool
        Favour the classes that the batch is predicted to hold most of, in ``adapt`` and ``predict``.
    parameters : str, sequence of str, or callable
        What is trained, see :data:`driftline.adapters.choosing.Parameters`.
    seed : int
        Views are drawn by draws that this and the number of the batch say.
    variant : "paper" or "released"
        What the prior of the batch multiplies: probabilities, as Bayes' rule has it, or ("released", as in the authors'
        code) logits, also the negative ones, whose order it then turns around.
    inplace : bool
        Adapt the model itself.

    Attributes
    ----------
    average : Tensor or None
        (C,) moving average of the predicted probabilities; None, for a uniform one, before the first batch.
    batches : int
        Batches met.

    Raises
    ------
    ConfigError
        For a model without the chosen parameters, or a setting out of range.
    InputError
        From ``adapt``, for samples that the default augmentation cannot use.

    Notes
    -----
    Source: Marsden, Döbler & Yang, *Universal test-time adaptation through weight ensembling, diversity weighting, and
    prior correction*, WACV 2024. As in the authors' code gradients flow through both sides of the consistency loss, and
    the second pass is normalised by the samples that were kept, without the rest. The source's parameters stay on the
    device. Where all samples of a batch are alike, which in the code gives NaN, each has weight 1; and losses are
    divided by the number of samples in this batch, not by that of a full one.
    Single samples: alike by definition, so all are used with weight 1, and the prior corrects next to nothing. With
    batch normalisation an image is normalised by itself, which is poor; wrap it in a ``SlidingWindow``.

    Examples
    --------
    >>> source = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    >>> def shaken(x, draws):
    ...     return x + 0.1 * torch.randn(x.shape, generator=draws, device=x.device)
    >>> adapter = ROID(source, lr=0.01, augment=shaken)
    >>> x = torch.randn(50, 4)
    >>> before = entropy(source(x)).mean()
    >>> for _ in range(20):
    ...     scores = adapter.adapt(x)
    >>> bool(entropy(adapter.predict(x)).mean() < before)
    True
    """

    held = ("model", "optimizer", "average", "batches")

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        optimizer: MakeOptimizer = "adam",
        weighting: bool = True,
        temperature: float = 1 / 3,
        momentum_probs: float = 0.9,
        momentum_source: float = 0.99,
        consistency: bool = True,
        augment: Augment | None = None,
        prior_correction: bool = True,
        parameters: Parameters = "affine",
        seed: int = 0,
        variant: Variant = "paper",
        inplace: bool = False,
    ) -> None:
        between("temperature", temperature, 1e-6)
        between("momentum_probs", momentum_probs, 0, 1)
        between("momentum_source", momentum_source, 0, 1)
        one_of("variant", variant)
        super().__init__(model, inplace)
        self.lr, self.weighting, self.temperature = lr, weighting, temperature
        self.momentum_probs, self.momentum_source = momentum_probs, momentum_source
        self.consistency, self.augment = consistency, Augmentation() if augment is None else augment
        self.prior_correction, self.parameters, self.seed, self.variant = prior_correction, parameters, seed, variant
        self.chosen = tuple(choose(self.model, parameters).values())
        self.model = replace_batch_norm(self.model)
        self.source = values_of(self.chosen)
        self.optimizer = make_optimizer(optimizer, self.chosen, lr)
        self.average: Tensor | None = None
        self.batches = 0
        self.remember()

    def update(self, x: Tensor) -> Tensor:
        """Step down the weighted losses and towards the source; return the corrected scores from before."""
        scores: Tensor = self.model(x)
        demand_finite(scores.detach(), "the model's scores for this batch")
        average = self.average_of(scores)
        weights, kept = self.weights(scores.detach(), average)

        loss = (weights * likelihood_ratio(scores[kept])).sum() / len(x)
        if self.consistency:
            draws = generator(derive_seed(self.seed, "ROID", self.batches), x.device)
            views = self.model(self.augment(x[kept], draws))
            loss = loss + (weights * symmetric_cross_entropy(views, scores[kept])).sum() / len(x)
        self.step(loss)

        with torch.no_grad():
            torch._foreach_lerp_(self.chosen, tuple(self.source), 1 - self.momentum_source)
            self.average = torch.lerp(scores.softmax(1).mean(0), average, self.momentum_probs)
        self.batches += 1
        return self.corrected(scores.detach())

    def predict(self, x: Tensor) -> Tensor:
        """Return the scores (B, C) of the model as it is now, corrected for the classes of this batch."""
        return self.corrected(super().predict(x))

    def average_of(self, scores: Tensor) -> Tensor:
        """Return the moving average of predictions (C,), which starts as uniform."""
        return torch.full_like(scores[0].detach(), 1 / scores.shape[1]) if self.average is None else self.average

    def weights(self, scores: Tensor, average: Tensor) -> tuple[Tensor, Tensor]:
        """Return which samples are kept, (B,) bool, after their weights (kept,)."""
        if not self.weighting:
            return scores.new_ones(len(scores)), scores.new_ones(len(scores), dtype=torch.bool)
        diversity = to_unit(1 - F.cosine_similarity(average[None], scores.softmax(1), dim=1))
        certainty = to_unit(-entropy(scores))
        kept = diversity >= diversity.mean()
        return (diversity * certainty / self.temperature).exp()[kept], kept

    def corrected(self, scores: Tensor) -> Tensor:
        """Return scores (B, C) with the prior of their batch, smoothed the more the smaller the batch."""
        if not self.prior_correction:
            return scores
        prior = scores.softmax(1).mean(0)
        smooth = max(1 / scores.shape[0], 1 / scores.shape[1]) / prior.max()
        prior = (prior + smooth) / (1 + smooth * scores.shape[1])
        return scores * prior if self.variant == "released" else scores.log_softmax(1) + prior.log()


def likelihood_ratio(scores: Tensor) -> Tensor:
    """Return the soft likelihood ratio, -sum p log(p / (1 - p)), of scores (B, C): (B,)."""
    p = scores.softmax(1).clamp(max=CLIP)
    return -(p * (p / (1 - p) + 1e-5).log()).sum(1)


def symmetric_cross_entropy(scores: Tensor, others: Tensor) -> Tensor:
    """Return half the sum of both cross-entropies between two predictions, (B,)."""
    return 0.5 * (cross_entropy_to(scores, others) + cross_entropy_to(others, scores))


def to_unit(values: Tensor) -> Tensor:
    """Shift and scale values to 0 to 1; 0 where all are equal.

    Examples
    --------
    >>> to_unit(torch.tensor([2.0, 3.0, 4.0])), to_unit(torch.tensor([2.0]))
    (tensor([0.0000, 0.5000, 1.0000]), tensor([0.]))
    """
    low, high = values.aminmax()
    return (values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)
