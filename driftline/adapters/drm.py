"""DRM: a head for each source domain, weighted at test time by how sure it is (domain-specific risk minimisation)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.adapters.choosing import MakeOptimizer, make_optimizer
from driftline.adapters.losses import entropy
from driftline.adapters.model import ModelAdapter, demand_finite
from driftline.adapters.settings import Variant, at_least, between, one_of
from driftline.errors import ConfigError
from driftline.stream.dataset import Dataset

PseudoLabels = Literal["own", "combined", "uniform", "shared"]


class DRM(ModelAdapter):
    """Combine the predictions of several heads, each sample's by the entropies of the heads on it.

    Parameters
    ----------
    model : nn.Module
        The featuriser: maps (B, *input) to features (B, F).
    heads : sequence of nn.Module
        At least 2, one for each source domain: map features to scores (B, C). See :func:`train_heads`.
    shared : nn.Module, optional
        One more head, trained on all domains.
    gamma : float
        A head's weight is proportional to H^-gamma, H the entropy of its prediction; 0 or more. 0: all count the same;
        infinity: the head of the lowest entropy alone. Published: 0, 0.5, 1, 5 and infinity (written -1).
    pseudo_labels : "own", "combined", "uniform", "shared", optional
        Also train the heads on labels of their own making: each on its own, or all on those of the combination, of the
        heads' mean, or of the shared head. None: heads stay as they are.
    beta : float
        Only samples whose label has at least this probability are learned from, 0 to 1.
    lr : float
        Step size; above 0.
    optimizer : str or callable
        See :data:`driftline.adapters.choosing.MakeOptimizer`.
    variant : "paper" or "released"
        "released": weights sum to 1 over the domains' heads and the shared one, which then does not vote; where heads
        are not trained, one head is chosen for the whole batch, that of the lowest mean entropy; and the confidence is
        that of the softmax of probabilities, at most e / (e + C - 1).
    inplace : bool
        Adapt featuriser and heads themselves.

    Attributes
    ----------
    model : nn.Module
        Featuriser and heads together, which gives the combined scores.

    Raises
    ------
    ConfigError
        For fewer than two heads, or a setting out of range.

    Notes
    -----
    Source: Zhang et al., *Domain-specific risk minimization for domain generalization*, KDD 2023, as in its authors'
    code. Scores are logarithms of the combined probabilities. ``adapt`` returns them from before its step.
    Single samples: work as they are while ``pseudo_labels`` is None, since each has weights of its own.

    Examples
    --------
    >>> heads = [nn.Linear(8, 3), nn.Linear(8, 3)]
    >>> adapter = DRM(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), heads, gamma=5.0)
    >>> scores = adapter.adapt(torch.randn(6, 4))
    >>> torch.allclose(scores.exp().sum(1), torch.ones(6))
    True
    """

    held = ("model", "optimizer")

    def __init__(
        self,
        model: nn.Module,
        heads: Sequence[nn.Module],
        shared: nn.Module | None = None,
        gamma: float = 1.0,
        pseudo_labels: PseudoLabels | None = None,
        beta: float = 0.75,
        lr: float = 1e-4,
        optimizer: MakeOptimizer = "adam",
        variant: Variant = "paper",
        inplace: bool = False,
    ) -> None:
        if len(heads) < 2:
            raise ConfigError(f"heads: {len(heads)} given; there must be at least 2 to choose from")
        if math.isnan(gamma) or gamma < 0:
            raise ConfigError(f"gamma={gamma}: must be 0 or more; infinity chooses the surest head")
        if pseudo_labels is not None:
            one_of("pseudo_labels", pseudo_labels, ("own", "combined", "uniform", "shared"))
        if pseudo_labels == "shared" and shared is None:
            raise ConfigError('shared=None: pseudo_labels="shared" are those of the shared head; give it')
        between("beta", beta, 0, 1)
        one_of("variant", variant)
        super().__init__(Steered(model, heads, shared, gamma, variant == "released", pseudo_labels is None), inplace)
        self.gamma, self.pseudo_labels, self.beta, self.lr, self.variant = gamma, pseudo_labels, beta, lr, variant
        self.model.requires_grad_(False)
        self.steered.heads.requires_grad_(True)
        self.optimizer = make_optimizer(optimizer, [*self.steered.heads.parameters()], lr)
        self.remember()

    @property
    def steered(self) -> Steered:
        """Featuriser and heads."""
        return cast(Steered, self.model)

    def update(self, x: Tensor) -> Tensor:
        """Combine the heads; train them on their labels where that is asked for."""
        heads = self.steered.each(x)  # (H, B, C)
        demand_finite(heads, "scores of the heads")
        scores = self.steered.combine(heads)
        if self.pseudo_labels is not None:
            target = self._target(heads.detach(), scores.detach())
            confidence, label = (target if self.variant == "paper" else F.softmax(target, -1)).max(-1)  # (H, B)
            sure = (confidence >= self.beta).to(heads.dtype)
            if bool(sure.any()):
                wrong = F.cross_entropy(heads.flatten(0, 1), label.flatten(), reduction="none")
                self.step((wrong.view_as(sure) * sure).sum() / sure.sum())
        return scores

    def _target(self, heads: Tensor, scores: Tensor) -> Tensor:
        """Return the probabilities (H, B, C) that labels are taken from."""
        if self.pseudo_labels == "own":
            return F.softmax(heads, -1)
        if self.pseudo_labels == "combined":
            common = F.softmax(scores, -1)
        elif self.pseudo_labels == "uniform":
            common = F.softmax(heads[: self.steered.domains], -1).mean(0)
        else:
            common = F.softmax(heads[-1], -1)
        return common.expand_as(heads)


class Steered(nn.Module):
    """A featuriser with several heads, which gives the logarithms of their weighted probabilities.

    Parameters
    ----------
    featuriser : nn.Module
        Maps (B, *input) to (B, F).
    heads : sequence of nn.Module
        One for each domain.
    shared : nn.Module, optional
        Of all domains.
    gamma : float
        Power of the entropies.
    released : bool
        Weigh as the authors' code does.
    choose : bool
        With ``released``, choose one head for the whole batch.
    """

    def __init__(
        self,
        featuriser: nn.Module,
        heads: Sequence[nn.Module],
        shared: nn.Module | None = None,
        gamma: float = 1.0,
        released: bool = False,
        choose: bool = False,
    ) -> None:
        super().__init__()
        self.featuriser = featuriser
        self.domains = len(heads)
        self.heads = nn.ModuleList([*heads, *([] if shared is None else [shared])])
        self.gamma, self.released, self.choose = gamma, released, choose

    def each(self, x: Tensor) -> Tensor:
        """Return the scores of all heads, the shared one last, (H, B, C)."""
        features = self.featuriser(x)
        return torch.stack([head(features) for head in self.heads])

    def combine(self, heads: Tensor) -> Tensor:
        """Return the logarithms (B, C) of the heads' weighted probabilities."""
        unsure = entropy(heads.flatten(0, 1)).view(heads.shape[:2])  # (H, B)
        logs = F.log_softmax(heads, -1)
        if self.released and self.choose:
            return logs[: self.domains][unsure[: self.domains].mean(1).argmin()]
        if math.isinf(self.gamma):
            weights = F.one_hot(unsure.argmin(0), len(heads)).T.log()
        else:
            # The logarithm of H^-gamma; an entropy of 0 would weigh infinitely.
            weights = F.log_softmax(-self.gamma * unsure.clamp(min=1e-12).log(), 0)
        voting = self.domains if self.released else len(heads)
        combined = torch.logsumexp(weights[:voting, :, None] + logs[:voting], 0)
        # Where the shared head, which does not vote, had all the weight, the others count the same.
        nothing = torch.isinf(combined).all(-1, keepdim=True)
        return torch.where(nothing, torch.logsumexp(logs[:voting], 0) - math.log(voting), combined)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logarithms (B, C) of the weighted probabilities."""
        return self.combine(self.each(x))


def train_heads(
    featuriser: nn.Module,
    heads: Sequence[nn.Module],
    domains: Sequence[Dataset],
    shared: nn.Module | None = None,
    epochs: int = 5,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
) -> None:
    """Train a featuriser, a head for each domain, and one for all of them, in place.

    The loss is the mean over the domains of the cross-entropy of the domain's head, or of the mean of that and the
    shared head's.

    Parameters
    ----------
    featuriser, heads, shared
        As of :class:`DRM`; they end in evaluation mode.
    domains : sequence of Dataset
        Labelled, as many as heads.
    epochs, batch_size : int
        Passes over the smallest domain, and samples of each domain in a step; at least 1.
    lr : float
        Step size of Adam.
    seed : int
        Of the order of the samples.

    Raises
    ------
    ConfigError
        For another number of domains than heads, or a domain without labels.

    Examples
    --------
    >>> domains = [Dataset(torch.randn(20, 4), torch.arange(20) % 3) for _ in range(2)]
    >>> heads = [nn.Linear(8, 3), nn.Linear(8, 3)]
    >>> train_heads(nn.Linear(4, 8), heads, domains, epochs=1)
    """
    if len(domains) != len(heads):
        raise ConfigError(f"domains: {len(domains)} for {len(heads)} heads; give one dataset for each head")
    if any(domain.y is None or domain.y.is_floating_point() for domain in domains):
        raise ConfigError("domains: each needs class labels")
    at_least("epochs", epochs, 1)
    at_least("batch_size", batch_size, 1)
    modules = nn.ModuleList([featuriser, *heads, *([] if shared is None else [shared])]).train()
    optimizer = make_optimizer("adam", [*modules.parameters()], lr)
    random = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        orders = [torch.randperm(len(domain), generator=random) for domain in domains]
        for start in range(0, min(map(len, domains)), batch_size):
            losses = []
            for domain, head, order in zip(domains, heads, orders, strict=True):
                rows = order[start : start + batch_size].to(domain.x.device)
                features, y = featuriser(domain.rows(rows)), cast(Tensor, domain.y)[rows]
                loss = F.cross_entropy(head(features), y)
                losses.append(loss if shared is None else (loss + F.cross_entropy(shared(features), y)) / 2)
            optimizer.zero_grad()
            torch.autograd.backward(torch.stack(losses).mean())
            optimizer.step()
    modules.eval()
