"""Adapting the statistics of batch normalisation alone (Nado et al., 2020; Schneider et al., NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from driftline.adapters.model import ModelAdapter, demand_finite
from driftline.adapters.normalization import AdaptedNorm, BatchStatistics, FollowingNorm, replace_batch_norm, taking_in
from driftline.adapters.settings import between, one_of

Statistics = Literal["batch", "mix", "prior", "running"]


class BatchNormAdapter(ModelAdapter):
    """Normalise by statistics of the test data in place of the source's, or by a mixture of both; nothing is trained.

    Parameters
    ----------
    model : nn.Module
        The source, with batch normalisation.
    statistics : "batch", "mix", "prior" or "running"
        "batch": those of the batch. "mix": (1 - alpha) source + alpha batch. "prior": n / (n + prior) of the batch's n
        samples, the rest of the source's. "running": a running average that starts at the source's and follows the
        batches.
    alpha : float
        Weight of the batch in "mix", 0 to 1.
    prior : float
        Samples that the source's statistics count for in "prior", 0 or more. Schneider et al. find 16 (batches of 8 to
        32) to 256 or more (single samples) best.
    momentum : float
        Weight of the newest batch in "running", 0 to 1.
    unbiased : bool, optional
        Take the batch's unbiased variance. Default: as the released code of each: "mix" and "running" do, "batch"
        and "prior" do not.
    inplace : bool
        Adapt the model itself.

    Raises
    ------
    ConfigError
        For a model without batch normalisation, or a number out of range.

    Notes
    -----
    Sources: "batch": Nado et al., *Evaluating prediction-time batch normalization*, 2020 ("norm", "BN-1"); "prior":
    Schneider et al., *Improving robustness against common corruptions by covariate shift adaptation*, NeurIPS 2020;
    "mix" and "running" as in the comparisons of Döbler, Marsden & Yang (2023).
    Single samples: "mix", "prior" and "running" are made for them; "batch" normalises an image by itself.

    Examples
    --------
    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> x = torch.tensor([[10.0], [12.0]])
    >>> BatchNormAdapter(model).adapt(x).flatten()
    tensor([-1.0000,  1.0000])
    >>> [round(float(v), 2) for v in BatchNormAdapter(model, "prior", prior=2).adapt(x)]
    [4.5, 6.5]
    """

    def __init__(
        self,
        model: nn.Module,
        statistics: Statistics = "batch",
        alpha: float = 0.1,
        prior: float = 16.0,
        momentum: float = 0.1,
        unbiased: bool | None = None,
        inplace: bool = False,
    ) -> None:
        one_of("statistics", statistics, ("batch", "mix", "prior", "running"))
        between("alpha", alpha, 0, 1)
        between("momentum", momentum, 0, 1)
        between("prior", prior, 0)
        super().__init__(model, inplace)
        self.statistics, self.alpha, self.prior, self.momentum = statistics, alpha, prior, momentum
        self.unbiased = statistics in ("mix", "running") if unbiased is None else unbiased
        make: Callable[[_BatchNorm], AdaptedNorm]
        if statistics == "batch":
            make = partial(Mixed, prior=0.0, unbiased=True) if self.unbiased else BatchStatistics
        elif statistics == "running":
            make = partial(Running, momentum=momentum, unbiased=self.unbiased)
        else:
            make = partial(Mixed, alpha=None if statistics == "prior" else alpha, prior=prior, unbiased=self.unbiased)
        self.model = replace_batch_norm(self.model, make, required=True).requires_grad_(False)
        self.remember()

    def update(self, x: Tensor) -> Tensor:
        """Take in the batch's statistics where they are kept; return the scores with them."""
        with torch.no_grad():
            if self.statistics == "running":
                follow_batch(self.model, x)
            scores: Tensor = self.model(x)
        return scores


class Mixed(AdaptedNorm):
    """Normalises by the source's statistics mixed with the batch's, whose weight is ``alpha`` or n / (n + prior)."""

    def __init__(
        self, source: _BatchNorm, alpha: float | None = None, prior: float = 16.0, unbiased: bool = False
    ) -> None:
        super().__init__(source)
        self.alpha, self.prior, self.unbiased = alpha, prior, unbiased

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised samples (B, C, ...)."""
        weight = len(x) / (len(x) + self.prior) if self.alpha is None else self.alpha
        mean, var = self.moments(x, self.unbiased)
        if weight < 1:
            source_mean, source_var = self.stored()
            mean, var = torch.lerp(source_mean, mean, weight), torch.lerp(source_var, var, weight)
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)


class Running(FollowingNorm):
    """Normalises by running statistics; in training mode by the batch's, which the running ones then follow."""

    def __init__(self, source: _BatchNorm, momentum: float, unbiased: bool = True) -> None:
        super().__init__(source)
        self.follow, self.unbiased = momentum, unbiased

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised samples (B, C, ...)."""
        if self.training:
            moments = zip(self.stored(), self.moments(x.detach(), self.unbiased), strict=True)
            mean, var = (torch.lerp(running, new, self.follow) for running, new in moments)
            self.due = mean, var
        if not self.training or x.numel() == x.shape[1]:
            return F.batch_norm(x, *self.stored(), self.weight, self.bias, False, 0.0, self.eps)
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


def follow_batch(model: nn.Module, x: Tensor) -> None:
    """Let all running statistics of a model take in a batch, or none.

    Raises
    ------
    InputError
        When the model gives NaN or Inf for it; no statistics have been changed then.
    """
    with taking_in(model):
        demand_finite(model(x), "scores")
