"""Streaming linear discriminant analysis: class means and one running covariance, and no gradient.

Hayes & Kanan, "Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis" (CVPR workshops 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn

from driftline.errors import CheckpointError, ConfigError
from driftline.learners.base import State
from driftline.learners.nearest_class_mean import NearestClassMean


class StreamingLDA(NearestClassMean):
    """A linear classifier from class means and the covariance that the classes share.

    With means mu_k and covariance Sigma: Lambda = ((1 - shrinkage) Sigma + shrinkage I)^-1, and class k scores
    mu_k' Lambda z - mu_k' Lambda mu_k / 2.

    Parameters
    ----------
    features : nn.Module, optional
        As in :class:`NearestClassMean`.
    classes : int, optional
        As in :class:`NearestClassMean`.
    shrinkage : float
        In [0, 1]: weight of the identity in the covariance; the paper's is 1e-4. 0: the pseudo-inverse of Sigma.
    covariance : {"streaming", "pooled"}
        ``"streaming"``: the paper's rule, one sample z of class y after the other,
        Sigma <- (n Sigma + n / (n + 1) (z - mu_y)(z - mu_y)') / (n + 1) and then mu_y, where n counts the samples of
        *all* classes. It depends on the order of samples, and the first sample of a class counts with its distance
        from 0. ``"pooled"``: the same with n_y / (n_y + 1), n_y counting the samples of class y; that is the
        within-class covariance (1 / N) sum (z - mu_y)(z - mu_y)', in whatever order they came.

    Notes
    -----
    A batch gives the same as its samples one by one, up to rounding: both rules add weighted outer products
    of z - mu_y, and mu_y just before a sample follows from sums within the batch. (In the released code, fitting a
    batch at once loses samples that share a class.)

    Statistics are kept in float64. The classifier is made anew at the first prediction after learning: with F
    features that is a Cholesky factorisation of order F^3 / 3 (the released code: a pseudo-inverse, which with
    shrinkage is the same matrix). The diagonal is loaded with more than ``shrinkage`` only where float64 could not
    tell the matrix from a singular one, below F * 2.2e-16 times the trace of Sigma.

    A class without samples scores ``-inf``; in the released code it scores 0 and can win.

    Raises
    ------
    ConfigError
        When ``shrinkage`` is outside [0, 1], ``covariance`` is unknown, or ``classes`` is below 1.

    Examples
    --------
    >>> import torch
    >>> from driftline.learners import StreamingLDA
    >>> learner = StreamingLDA()
    >>> x = torch.tensor([[0.0, 0.0], [4.0, 2.0], [1.0, -1.0], [5.0, 1.0]])
    >>> learner.learn(x, torch.tensor([0, 0, 1, 1]))
    >>> learner.predict(torch.tensor([[8.0, 4.0], [8.0, 3.0]])).argmax(1).tolist()
    [0, 1]
    """

    def __init__(
        self,
        features: nn.Module | None = None,
        classes: int | None = None,
        shrinkage: float = 1e-4,
        covariance: Literal["streaming", "pooled"] = "streaming",
    ) -> None:
        super().__init__(features, classes)
        if not 0 <= shrinkage <= 1:
            raise ConfigError(f"shrinkage={shrinkage}: must lie in [0, 1]")
        if covariance not in ("streaming", "pooled"):
            raise ConfigError(f"covariance={covariance!r}: choose 'streaming' (the paper's rule) or 'pooled'")
        self.shrinkage, self.covariance = shrinkage, covariance
        self._seen = 0
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)  # n Sigma, (F, F)
        self._classifier: tuple[Tensor, Tensor] | None = None

    def to(self, device: torch.device | str) -> Self:
        """Move statistics and feature extractor to ``device``."""
        self._scatter, self._classifier = self._scatter.to(device), None
        return super().to(device)

    def describe(self) -> dict[str, object]:
        """Return name and parameters for the record (JSON values)."""
        base = cast(dict[str, object], super().describe()["parameters"])
        parameters = {**base, "shrinkage": self.shrinkage, "covariance": self.covariance}
        return {"name": type(self).__name__, "parameters": parameters}

    def state_dict(self) -> State:
        """Return the statistics, and the feature extractor's state."""
        return {**super().state_dict(), "covariance": self.covariance, "seen": self._seen, "scatter": self._scatter}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict` of a learner built the same way."""
        if (saved := state.get("covariance", self.covariance)) != self.covariance:
            raise CheckpointError(f"saved with covariance={saved!r}, but this learner has {self.covariance!r}")
        super().load_state_dict(state)
        self._seen = cast(int, state["seen"])
        self._scatter = cast(Tensor, state["scatter"]).to(self._sums.device)
        self._classifier = None

    def _begin(self, z: Tensor) -> None:
        super()._begin(z)
        self._scatter = z.new_zeros(z.shape[1], z.shape[1])

    def _learn(self, z: Tensor, member: Tensor) -> None:
        # Row i of the strictly lower triangle: which earlier samples of the batch share sample i's class.
        earlier = (member @ member.T).tril(-1)
        counts = member @ self._counts + earlier.sum(1)
        sums = member @ self._sums + earlier @ z
        away = z - sums / counts.clamp(min=1).unsqueeze(1)
        if self.covariance == "streaming":
            counts = torch.arange(self._seen, self._seen + len(z), device=z.device, dtype=z.dtype)
        weight = counts / (counts + 1)
        self._scatter = torch.addmm(self._scatter, (away * weight.unsqueeze(1)).T, away)
        self._seen += len(z)
        self._classifier = None
        super()._learn(z, member)

    def _scores(self, z: Tensor) -> Tensor:
        if self._classifier is None:
            self._classifier = self._make_classifier()
        weight, bias = self._classifier
        return z @ weight + bias

    def _make_classifier(self) -> tuple[Tensor, Tensor]:
        """Return weights (F, C) and biases (C,)."""
        means, sigma = self._means().T, self._scatter / self._seen
        if self.shrinkage:
            eps = torch.finfo(sigma.dtype).eps
            loading = (len(sigma) * eps * sigma.diagonal().sum()).clamp(min=self.shrinkage)
            regular = (1 - self.shrinkage) * sigma
            regular.diagonal().add_(loading)
            # Without error checks nothing is read back from the device; the loading makes them needless.
            factor, _ = torch.linalg.cholesky_ex(regular)
            weight = torch.cholesky_solve(means, factor)
        else:
            weight = torch.linalg.pinv(sigma, hermitian=True) @ means
        return weight, (means * weight).sum(0) / -2
