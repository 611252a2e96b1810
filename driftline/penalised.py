"""The learning methods that have a name and are gradient descent with a penalty; as :mod:`driftline.methods`."""

from __future__ import annotations

from typing import Literal

from torch import nn

from driftline.errors import ConfigError
from driftline.learners import Learner
from driftline.learners.penalties import (
    L2,
    MAS,
    CenterLoss,
    EffectiveRank,
    L2Init,
    OnlineEWC,
    Orthogonal,
    RWalk,
    SpectralRegularization,
    SynapticIntelligence,
    WassersteinRegularization,
)
from driftline.learners.renewers import NormalizeAndProject
from driftline.methods import Step, plain_step, trained

Form = Literal["online", "boundary"]


def l2(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    strength: float = 1e-3,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """Pull towards zero: the sum of squared parameters is added to the loss."""
    return trained(model, classes, plain_step(optimizer, model, lr), normalize, penalties=[L2(strength)])


def l2_init(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    strength: float = 1e-2,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """Pull towards the initial weights: their squared distance is added to the loss (Kumar et al., 2023)."""
    return trained(model, classes, plain_step(optimizer, model, lr), normalize, penalties=[L2Init(model, strength)])


def spectral(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    strength: float = 1e-4,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """Spectral regularization: each layer's largest singular value is held near 1 (Lewandowski et al., 2024)."""
    penalty = SpectralRegularization(model, strength, seed=seed)
    return trained(model, classes, plain_step(optimizer, model, lr), normalize, penalties=[penalty])


def wasserstein(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    strength: float = 1e-2,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """Pull towards the initial distribution of each layer's weights (Lewandowski et al., 2023)."""
    penalty = WassersteinRegularization(model, strength)
    return trained(model, classes, plain_step(optimizer, model, lr), normalize, penalties=[penalty])


def online_ewc(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    strength: float = 1.0,
    form: Form = "online",
    every: int = 0,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """Elastic weight consolidation: weights are held by their squared gradients (Schwarz et al., 2018)."""
    penalty = OnlineEWC(model, strength, form=form, every=every or None)
    return trained(model, classes, plain_step(optimizer, model, lr), normalize, penalties=[penalty])


def si(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    strength: float = 0.1,
    form: Form = "online",
    every: int = 0,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """Synaptic intelligence: weights are held by what their way took off the loss (Zenke et al., 2017)."""
    penalty = SynapticIntelligence(model, strength, form=form, every=every or None)
    return trained(model, classes, plain_step(optimizer, model, lr), normalize, penalties=[penalty])


def mas(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    strength: float = 0.1,
    form: Form = "online",
    every: int = 0,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """Memory aware synapses: weights are held by how the output changes with them (Aljundi et al., 2018)."""
    penalty = MAS(model, strength, form=form, every=every or None)
    return trained(model, classes, plain_step(optimizer, model, lr), normalize, penalties=[penalty])


def rwalk(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    strength: float = 0.01,
    form: Form = "online",
    every: int = 0,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """Riemannian walk: weights are held by Fisher information and path together (Chaudhry et al., 2018)."""
    penalty = RWalk(model, strength, form=form, every=every or None)
    return trained(model, classes, plain_step(optimizer, model, lr), normalize, penalties=[penalty])


def orthogonal(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    strength: float = 1e-3,
    side: Literal["smaller", "rows", "columns", "both"] = "smaller",
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """Soft orthogonality: the singular values of each weight matrix are held near 1 (Bansal et al., 2018)."""
    penalty = Orthogonal(model, strength, side=side)
    return trained(model, classes, plain_step(optimizer, model, lr), normalize, penalties=[penalty])


def l2_er(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    strength: float = 1e-3,
    decay: float = 1e-4,
    samples: int = 64,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """Pull towards zero, and towards features of high effective rank (L2-ER, 2025)."""
    penalties = [L2(decay), EffectiveRank(model, strength, samples=samples)]
    return trained(model, classes, plain_step(optimizer, model, lr), normalize, penalties=penalties)


def center_loss(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    strength: float = 0.01,
    rate: float = 0.5,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """Centre loss: features are pulled to their class's running centre (Wen et al., 2016)."""
    if not classes:
        raise ConfigError("center-loss pulls features to the centres of classes, and this stream has none")
    penalty = CenterLoss(model, strength, rate=rate)
    return trained(model, classes, plain_step(optimizer, model, lr), normalize, penalties=[penalty])


def normalize_and_project(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    every: int = 1,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """Weights in front of normalisations keep their initial size (Lyle et al., 2024)."""
    renewer = NormalizeAndProject(model, every=every)
    return trained(model, classes, plain_step(optimizer, model, lr), normalize, renewers=[renewer])
