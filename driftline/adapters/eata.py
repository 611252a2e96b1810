"""EATA and ETA: entropy minimisation on samples that are reliable and not redundant (Niu et al., ICML 2022)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.adapters.choosing import MakeOptimizer, Parameters, choose, make_optimizer
from driftline.adapters.losses import entropy, entropy_level
from driftline.adapters.model import ModelAdapter, demand_finite, values_of
from driftline.adapters.normalization import replace_batch_norm
from driftline.adapters.settings import Variant, at_least, between, one_of
from driftline.errors import ConfigError, DataError
from driftline.stream.dataset import Dataset, as_input, check_samples
from driftline.stream.modules import probe


class ETA(ModelAdapter):
    """Step down the entropy of samples that are predicted with confidence, and not like those before.

    Parameters
    ----------
    model : nn.Module
        The source. Batch normalisations use the statistics of the batch from then on; other normalisations stay.
    lr : float
        Step size. Used for CIFAR-10-C: 1e-3 with Adam (batches of 200); for ImageNet-C: 2.5e-4 with SGD (64).
    optimizer : str or callable
        See :data:`driftline.adapters.choosing.MakeOptimizer`.
    entropy_margin : float, optional
        Samples of at least this entropy (nats) are left out. Default, as published: 0.4 ln C for C classes.
    redundancy : float
        Samples are left out whose predicted probabilities have at least this cosine, 0 to 1, with the moving average of
        those adapted to. Used for CIFAR-10-C: 0.4; CIFAR-100-C: 0.1; ImageNet-C: 0.05. Of few classes a small value
        leaves nothing over: probabilities of 10 classes are seldom that far from their average.
    steps : int
        Steps on each batch; the scores are those of the last step's forward pass, which is before its update.
    parameters : str, sequence of str, or callable
        What is trained, see :data:`driftline.adapters.choosing.Parameters`.
    variant : "paper" or "released"
        "released": the moving average of predictions survives ``reset()``, as in the authors' code.
    inplace : bool
        Adapt the model itself.

    Attributes
    ----------
    average : Tensor or None
        (C,) moving average of the probabilities predicted for samples adapted to; None before the first of them.

    Raises
    ------
    ConfigError
        For a model without the chosen parameters, or a setting out of range.

    Notes
    -----
    Source: Niu, Wu, Zhang, Chen, Zheng, Zhao & Tan, *Efficient test-time model adaptation without forgetting*, ICML
    2022. As in the authors' code all samples pass forward once, so that those left out still take part in the batch's
    statistics; the first samples kept are not compared with any average; and where nothing is kept there is no step.
    The code leaves the model in training mode, so that dropout stays active; here it is off.
    Single samples: each is kept or left out like in a batch. With batch normalisation an image is normalised by itself,
    which is poor; wrap it in a ``SlidingWindow``. Models with layer or group normalisation need nothing.

    Examples
    --------
    >>> source = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    >>> adapter = ETA(source, lr=0.01, entropy_margin=1.05, redundancy=1.0)
    >>> x = torch.randn(50, 4)
    >>> kept = adapter.kept(adapter.predict(x))
    >>> before = entropy(adapter.predict(x))[kept].mean()
    >>> for _ in range(10):
    ...     scores = adapter.adapt(x)
    >>> bool(entropy(adapter.predict(x))[kept].mean() < before)
    True
    """

    held: ClassVar[tuple[str, ...]] = ("model", "optimizer", "average")

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        optimizer: MakeOptimizer = "adam",
        entropy_margin: float | None = None,
        redundancy: float = 0.4,
        steps: int = 1,
        parameters: Parameters = "affine",
        variant: Variant = "paper",
        inplace: bool = False,
    ) -> None:
        at_least("steps", steps, 1)
        between("redundancy", redundancy, 0, 1)
        if entropy_margin is not None:
            between("entropy_margin", entropy_margin, 0)
        one_of("variant", variant)
        super().__init__(model, inplace)
        self.lr, self.entropy_margin, self.redundancy = lr, entropy_margin, redundancy
        self.steps, self.parameters, self.variant = steps, parameters, variant
        self.chosen = choose(self.model, parameters)
        self.model = replace_batch_norm(self.model)
        self.optimizer = make_optimizer(optimizer, [*self.chosen.values()], lr)
        self.average: Tensor | None = None
        self.remember()

    def changes_on(self, samples: int) -> int:
        """Return the steps on a batch."""
        return self.steps

    def update(self, x: Tensor) -> Tensor:
        """Step down the weighted entropy of the samples kept; return the scores from before."""
        for _ in range(self.steps):
            scores: Tensor = self.model(x)
            kept = self.kept(scores)
            if not kept.any():
                continue
            entropies = entropy(scores[kept])
            weights = (self.margin(scores) - entropies.detach()).exp()
            average = self.moved(scores[kept].detach().softmax(1).mean(0))
            self.step((weights * entropies).mean() + self.penalty())
            self.average = average
        return scores

    def margin(self, scores: Tensor) -> float:
        """Return the entropy E0 below which a sample is reliable."""
        return entropy_level(self.entropy_margin, scores, share=0.4)

    def kept(self, scores: Tensor) -> Tensor:
        """Return which samples are adapted to, (B,) bool, given their scores (B, C).

        Raises
        ------
        InputError
            When there are NaN or Inf among the scores.
        """
        scores = scores.detach()
        demand_finite(scores, "the model's scores for this batch")
        reliable = entropy(scores) < self.margin(scores)
        if self.average is None:
            return reliable
        likeness = F.cosine_similarity(self.average[None], scores.softmax(1), dim=1)
        return reliable & (likeness.abs() < self.redundancy)

    def moved(self, mean: Tensor) -> Tensor:
        """Return the moving average of predictions (C,), moved by a new mean."""
        return mean if self.average is None else 0.9 * self.average + 0.1 * mean

    def penalty(self) -> Tensor | float:
        """Return what is added to the loss."""
        return 0.0

    def reset(self) -> None:
        """Return to the source; the released variant keeps its average of predictions."""
        average = self.average
        super().reset()
        if self.variant == "released":
            self.average = average


class EATA(ETA):
    """ETA held back where the source's predictions are sensitive: parameters of much Fisher information stay near it.

    Parameters
    ----------
    model : nn.Module
        The source, as in :class:`ETA`.
    source : Dataset or Tensor (N, *input)
        Samples like those that the model was trained on, without labels (bytes become numbers in [0, 1]). Published:
        2 000 of them. They are taken in this order, so mix the classes; and they are not kept.
    fisher_alpha : float
        Weight of the Fisher term, 0 or more. Used for CIFAR-10-C: 1; for ImageNet-C: 2 000.
    fisher_batch_size : int
        Source samples whose gradient is squared together. Published: 64.
    lr, optimizer, entropy_margin, redundancy, steps, parameters, variant, inplace
        As in :class:`ETA`.

    Attributes
    ----------
    fisher : nn.ParameterList
        The Fisher information of each trained parameter.

    Raises
    ------
    ConfigError
        As :class:`ETA`, and for source samples that the model cannot use.

    Notes
    -----
    Source and differences: as for :class:`ETA`. As in the authors' code the Fisher information is that of the model
    with batch statistics, towards its own predictions, and is the square of the mean gradient of each batch, averaged
    over the batches, which is less than the mean of the samples' squares; so ``fisher_alpha`` belongs to
    ``fisher_batch_size``. Where nothing is kept there is no step on the Fisher term either. The Fisher information is
    part of the state, so that a run goes on bit for bit wherever it is resumed.
    Single samples: as in :class:`ETA`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    >>> adapter = EATA(model, source=torch.randn(100, 4))
    >>> [tuple(f.shape) for f in adapter.fisher]
    [(8,), (8,)]
    >>> adapter.adapt(torch.randn(50, 4)).shape
    torch.Size([50, 3])
    """

    held: ClassVar[tuple[str, ...]] = ("model", "optimizer", "average", "fisher")

    def __init__(
        self,
        model: nn.Module,
        source: Dataset | Tensor,
        lr: float = 1e-3,
        optimizer: MakeOptimizer = "adam",
        entropy_margin: float | None = None,
        redundancy: float = 0.4,
        fisher_alpha: float = 1.0,
        fisher_batch_size: int = 64,
        steps: int = 1,
        parameters: Parameters = "affine",
        variant: Variant = "paper",
        inplace: bool = False,
    ) -> None:
        between("fisher_alpha", fisher_alpha, 0)
        at_least("fisher_batch_size", fisher_batch_size, 1)
        samples = _source_samples(model, source, fisher_batch_size)
        # Taken over by remember() in ETA, which does not know of it.
        self.fisher = nn.ParameterList()
        super().__init__(
            model, lr, optimizer, entropy_margin, redundancy, steps, parameters, variant=variant, inplace=inplace
        )
        self.fisher_alpha, self.fisher_batch_size = fisher_alpha, fisher_batch_size
        self.start = values_of(self.chosen.values())
        self.fisher = self._information(samples)
        self.remember()

    def penalty(self) -> Tensor:
        """Return fisher_alpha * sum of F (theta - theta_source)^2."""
        terms = zip(self.fisher, self.chosen.values(), self.start, strict=True)
        return self.fisher_alpha * torch.stack([(f * (p - start).square()).sum() for f, p, start in terms]).sum()

    def _information(self, samples: Tensor) -> nn.ParameterList:
        parameters = [*self.chosen.values()]
        total = [torch.zeros_like(p) for p in parameters]
        batches = torch.split(samples, self.fisher_batch_size)
        with torch.enable_grad():
            for batch in batches:
                scores = self.model(as_input(batch).to(self.device))
                loss = F.cross_entropy(scores, scores.argmax(1))
                gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
                torch._foreach_addcmul_(total, gradients, gradients, value=1 / len(batches))
        for value in total:
            demand_finite(value, "source: the Fisher information")
        return values_of(total)


def _source_samples(model: nn.Module, source: object, size: int) -> Tensor:
    """Return source samples that have been tried on the model."""
    try:
        samples = check_samples(source.x if isinstance(source, Dataset) else source, "source")
        first = next((p for p in model.parameters()), samples)
        scores = probe(model, as_input(samples[:size]).to(first.device), samples=size)
        demand_finite(scores, "source: scores of the model")
    except DataError as error:
        raise ConfigError(f"source cannot be used: {error}") from error
    return samples
