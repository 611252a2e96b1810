"""Tent: entropy minimisation by the scales and shifts of normalisation layers (Wang et al., ICLR 2021)."""

from __future__ import annotations

from torch import Tensor, nn

from driftline.adapters.choosing import MakeOptimizer, Parameters, choose, make_optimizer
from driftline.adapters.losses import entropy
from driftline.adapters.model import ModelAdapter
from driftline.adapters.normalization import replace_batch_norm
from driftline.adapters.settings import at_least


class Tent(ModelAdapter):
    """Normalise by the batch, and step down the mean entropy of its predictions.

    Parameters
    ----------
    model : nn.Module
        The source. Batch normalisations use the statistics of the batch from then on; other normalisations stay.
    lr : float
        Step size. Published: 1e-3 with Adam for CIFAR-10-C (batches of 200), 2.5e-4 with SGD for ImageNet-C (64).
    optimizer : str or callable
        See :data:`driftline.adapters.choosing.MakeOptimizer`.
    steps : int
        Steps on each batch; the scores are those of the last step's forward pass, which is before its update.
    parameters : str, sequence of str, or callable
        What is trained, see :data:`driftline.adapters.choosing.Parameters`.
    episodic : bool
        Return to the source before each batch.
    inplace : bool
        Adapt the model itself.

    Raises
    ------
    ConfigError
        For a model without the chosen parameters, or a setting out of range.

    Notes
    -----
    Source: Wang, Shelhamer, Liu, Olshausen & Darrell, *Tent: fully test-time adaptation by entropy minimization*,
    ICLR 2021. The released code leaves the model in training mode, so that dropout stays active; here it is off.
    Single samples: images are normalised by themselves, which is poor; wrap it in a ``SlidingWindow``.

    Examples
    --------
    >>> import torch
    >>> adapter = Tent(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)), lr=0.01)
    >>> x = torch.randn(50, 4)
    >>> before = entropy(adapter.predict(x)).mean()
    >>> for _ in range(10):
    ...     scores = adapter.adapt(x)
    >>> bool(entropy(adapter.predict(x)).mean() < before)
    True
    """

    held = ("model", "optimizer")

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        optimizer: MakeOptimizer = "adam",
        steps: int = 1,
        parameters: Parameters = "affine",
        episodic: bool = False,
        inplace: bool = False,
    ) -> None:
        at_least("steps", steps, 1)
        super().__init__(model, inplace)
        self.lr, self.steps, self.parameters, self.episodic = lr, steps, parameters, episodic
        chosen = choose(self.model, parameters)
        self.model = replace_batch_norm(self.model)
        self.optimizer = make_optimizer(optimizer, [*chosen.values()], lr)
        self.remember()

    def changes_on(self, samples: int) -> int:
        """Return the steps on a batch."""
        return self.steps

    def update(self, x: Tensor) -> Tensor:
        """Step down the batch's entropy; return the scores from before."""
        if self.episodic:
            self.reset()
        for _ in range(self.steps):
            scores: Tensor = self.model(x)
            self.step(entropy(scores).mean())
        return scores
