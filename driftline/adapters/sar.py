"""SAR: sharpness-aware and reliable entropy minimisation (Niu et al., ICLR 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from driftline.adapters.choosing import MakeOptimizer, Parameters, choose, make_optimizer, patterns
from driftline.adapters.losses import entropy, entropy_level
from driftline.adapters.model import ModelAdapter, demand_finite
from driftline.adapters.normalization import replace_batch_norm
from driftline.adapters.settings import Variant, at_least, between, one_of

LAST_STAGES = ("*layer4.*", "*blocks.9.*", "*blocks.10.*", "*blocks.11.*", "norm.*")
"""Names of the last stages of ResNets with four of them and of ViTs with twelve blocks."""


class SAR(ModelAdapter):
    """Step towards flat minima of the entropy of samples that are predicted with confidence.

    Parameters
    ----------
    model : nn.Module
        The source. Batch normalisations use the statistics of the batch from then on; other normalisations stay.
    lr : float
        Step size. Used for CIFAR-10-C: 1e-3 with Adam (batches of 200). Published for ImageNet-C (SGD, batches of 64):
        2.5e-4 for ResNets, 1e-3 for ViTs; for single samples a 32nd of that.
    optimizer : str or callable
        Makes the steps from the gradient of the perturbed model, see
        :data:`driftline.adapters.choosing.MakeOptimizer`.
    rho : float
        How far the parameters are moved up the gradient before the second pass, in Euclidean distance.
    entropy_margin : float, optional
        Samples of at least this entropy (nats) are left out. Default, as published: 0.4 ln C for C classes.
    reset_threshold : float, optional
        Return to the source when the moving average of the second pass's entropy is below this many nats; 0: never.
        Published: 0.2, for the 1 000 classes of ImageNet; with few classes confident models are often below it.
        Default: the same part of the largest entropy, 0.2 ln C / ln 1000, which is 0.067 for 10 classes.
    steps : int
        Steps on each batch; the scores are those of the last step's first pass.
    parameters : str, sequence of str, or callable
        What is trained, see :data:`driftline.adapters.choosing.Parameters`.
    exclude : sequence of str
        Patterns of parameters that stay, whose changes are the most harmful: the last stage. Default, as published: its
        names in ImageNet's ResNets and ViTs. In other models these match nothing, so that all is trained, and a warning
        says so: name the last stage, such as ``["*layer3.*"]`` for CIFAR's ResNets, or give ``[]`` to train all.
    variant : "paper" or "released"
        "released" does what the authors' code does beside the paper: a return to the source leaves the optimizer's
        momentum as it is, and the low average too, so that the next batches return again; and where no sample is
        reliable a step is made without gradient, by momentum alone.
    inplace : bool
        Adapt the model itself.

    Attributes
    ----------
    average : float or None
        Moving average of the second pass's entropy; None before the first.

    Raises
    ------
    ConfigError
        For a model without the chosen parameters, or a setting out of range.

    Notes
    -----
    Source: Niu, Wu, Zhang, Wen, Chen, Zhao & Tan, *Towards stable test-time adaptation in dynamic wild world*, ICLR
    2023. As in the authors' code, samples are filtered once more by their entropy after the perturbation. The code
    leaves the model in training mode, so that dropout stays active; here it is off.
    Single samples: made for them, on models with layer or group normalisation; a batch normalisation normalises an
    image by itself, which is poor.

    Examples
    --------
    >>> source = nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> adapter = SAR(source, lr=0.01, entropy_margin=1.1, reset_threshold=0, exclude=[])
    >>> x = torch.randn(1, 4)
    >>> before = entropy(adapter.predict(x))
    >>> for _ in range(10):
    ...     scores = adapter.adapt(x)
    >>> bool(entropy(adapter.predict(x)) < before)
    True
    """

    held = ("model", "optimizer", "average")

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        optimizer: MakeOptimizer = "adam",
        rho: float = 0.05,
        entropy_margin: float | None = None,
        reset_threshold: float | None = None,
        steps: int = 1,
        parameters: Parameters = "affine",
        exclude: Sequence[str] = LAST_STAGES,
        variant: Variant = "paper",
        inplace: bool = False,
    ) -> None:
        at_least("steps", steps, 1)
        between("rho", rho, 0)
        if entropy_margin is not None:
            between("entropy_margin", entropy_margin, 0)
        if reset_threshold is not None:
            between("reset_threshold", reset_threshold)
        one_of("variant", variant)
        super().__init__(model, inplace)
        self.lr, self.rho, self.entropy_margin, self.reset_threshold = lr, rho, entropy_margin, reset_threshold
        self.steps, self.parameters, self.exclude, self.variant = steps, parameters, patterns(exclude), variant
        self.chosen = tuple(choose(self.model, parameters, self.exclude).values())
        self.model = replace_batch_norm(self.model)
        self.optimizer = make_optimizer(optimizer, self.chosen, lr)
        self.average: float | None = None
        self.remember()

    def changes_on(self, samples: int) -> int:
        """Return the steps on a batch."""
        return self.steps

    def update(self, x: Tensor) -> Tensor:
        """Step down the entropy of reliable samples at the perturbed parameters; return the scores of the first pass.

        An error in the second pass leaves the parameters as they were.
        """
        for _ in range(self.steps):
            scores: Tensor = self.model(x)
            margin = entropy_level(self.entropy_margin, scores, share=0.4)
            first = entropy(scores)
            demand_finite(first, "entropies of this batch")
            reliable = first < margin
            if reliable.any():
                with self.perturbed(self.gradient(first[reliable])):
                    second = entropy(self.model(x))[reliable]
                    demand_finite(second, "entropies of this batch at the perturbed parameters")
                    second = second[second < margin]
                    gradient = self.gradient(second)
                self.step_by(gradient, second)
            elif self.variant == "released":
                self.step_by(tuple(torch.zeros_like(p) for p in self.chosen), first[reliable])
            if self.average is not None and self.average < self.threshold(scores):
                self.recover()
        return scores

    def gradient(self, entropies: Tensor) -> tuple[Tensor, ...]:
        """Return the gradient of the mean entropy; zeros for no sample at all."""
        return torch.autograd.grad(entropies.sum() / max(len(entropies), 1), self.chosen, materialize_grads=True)

    @contextmanager
    def perturbed(self, gradient: tuple[Tensor, ...]) -> Iterator[None]:
        """Have the parameters ``rho`` further up the gradient, and afterwards, whatever happens, back in place."""
        before = [p.detach().clone() for p in self.chosen]
        scale = self.rho / (torch.stack(torch._foreach_norm(gradient)).norm() + 1e-12)
        with torch.no_grad():
            torch._foreach_add_(self.chosen, torch._foreach_mul(gradient, scale))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.chosen, before)

    def step_by(self, gradient: tuple[Tensor, ...], entropies: Tensor) -> None:
        """Step down a gradient, and take the mean of the entropies it came from into the average.

        Where no sample was left there is no step; in the released variant there is one by momentum.
        """
        if len(entropies) or self.variant == "released":
            for parameter, of_it in zip(self.chosen, gradient, strict=True):
                parameter.grad = of_it
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if len(entropies):
            mean = float(entropies.detach().mean())
            self.average = mean if self.average is None else 0.9 * self.average + 0.1 * mean

    def threshold(self, scores: Tensor) -> float:
        """Return the average entropy below which the model is taken for collapsed."""
        if self.reset_threshold is not None:
            return self.reset_threshold
        return entropy_level(None, scores, share=0.2 / math.log(1000))

    def recover(self) -> None:
        """Return to the source; the released variant keeps the average that was too low."""
        low = self.average
        self.reset()
        if self.variant == "released":
            self.average = low

    def reset(self) -> None:
        """Return to the source; the released variant keeps the optimizer's momentum."""
        momentum = self.optimizer.state_dict()
        super().reset()
        if self.variant == "released":
            self.optimizer.load_state_dict(momentum)
