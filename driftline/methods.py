"""The learning methods that have a name: what each is made of, and its settings with their usual values.

Each takes the model to train, the number of classes (0: there are numbers to predict) and the seed of what it draws.
Those that are a penalty are in :mod:`driftline.penalised`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from driftline.errors import ConfigError, unknown
from driftline.learners import (
    AdaptiveReplayRatio,
    ClassBalancedReplay,
    GradientLearner,
    InputNormalizer,
    Learner,
    NearestClassMean,
    Replay,
    ReservoirReplay,
    SlidingReplay,
    StreamingLDA,
    TaskCrossEntropy,
    squared_error,
)
from driftline.learners.optimizers import (
    TAG,
    UPGD,
    Adam,
    ObGD,
    PerturbedSGD,
    ShrinkAndPerturb,
    WeightClipping,
    named_optimizer,
)
from driftline.learners.renewers import (
    ContinualBackprop,
    LayerReset,
    ReDo,
    ReGraMa,
    SelfNormalizedReset,
    SparseTraining,
)

Step = Literal["sgd", "adam"]

MEMORIES: dict[str, type[Replay]] = {
    "reservoir": ReservoirReplay,
    "class-balanced": ClassBalancedReplay,
    "sliding": SlidingReplay,
}


def sgd(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.05,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    normalize: bool = False,
) -> Learner:
    """Online stochastic gradient descent: one step per batch."""
    step = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    return trained(model, classes, step, normalize)


def adam(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.001,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
    normalize: bool = False,
) -> Learner:
    """Online Adam with decoupled weight decay: one step per batch."""
    step = torch.optim.AdamW(model.parameters(), lr=lr, betas=(beta1, beta2), weight_decay=weight_decay)
    return trained(model, classes, step, normalize)


def optimizer(
    model: nn.Module,
    classes: int,
    seed: int,
    optimizer: str = "adamw",
    lr: float | None = None,
    settings: Mapping[str, object] | None = None,
    normalize: bool = False,
) -> Learner:
    """Any optimizer by name: torch's own, or of the pytorch_optimizer package, such as optimizer=prodigy."""
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(f'settings={settings!r}: give a mapping, such as {{"weight_decay": 0.01}}')
    given = {**(settings or {}), **({} if lr is None else {"lr": lr})}
    return trained(model, classes, named_optimizer(optimizer, **given)(model.parameters()), normalize)


def er(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.05,
    capacity: int = 500,
    memory: str = "reservoir",
    ratio: float = 1.0,
    replay_batch: int | None = None,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """Experience replay: each step trains on the batch and as many samples of a memory."""
    replay = remembering(memory, classes, capacity, seed)
    step = plain_step(optimizer, model, lr)
    return trained(model, classes, step, normalize, replay=replay, replay_ratio=ratio, replay_batch=replay_batch)


def adaptive_er(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.05,
    capacity: int = 500,
    memory: str = "reservoir",
    levels: Sequence[float] = (0.5, 2),
    gap: float = 1e-3,
    every: int = 25_000,
    window: int = 500,
    signal: str = "active_units",
    back_off: float | None = None,
    replay_batch: int | None = None,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """Experience replay that makes more updates once plasticity has settled (Ma et al., 2024)."""
    replay = remembering(memory, classes, capacity, seed)
    ratio = AdaptiveReplayRatio(levels, gap, every, window, signal, back_off)
    step = plain_step(optimizer, model, lr)
    return trained(model, classes, step, normalize, replay=replay, replay_ratio=ratio, replay_batch=replay_batch)


def cbp(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    replacement_rate: float = 1e-4,
    maturity: int = 100,
    decay: float = 0.99,
    utility: str = "contribution",
    optimizer: Step = "sgd",
    variant: Literal["paper", "released"] = "paper",
    normalize: bool = False,
) -> Learner:
    """Continual backprop: SGD or Adam, and the least useful hidden units start again (Dohare et al., 2024)."""
    given = {"replacement_rate": replacement_rate, "maturity": maturity, "decay": decay, "utility": utility}
    renewer = ContinualBackprop(model, seed=seed, variant=variant, **given)  # type: ignore[arg-type]
    return trained(model, classes, step_with_clocks(optimizer, model, lr), normalize, renewers=[renewer])


def redo(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    tau: float = 0.025,
    every: int = 1000,
    samples: int = 64,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """ReDo: SGD or Adam, and hidden units that say next to nothing start again (Sokar et al., 2023)."""
    renewer = ReDo(model, tau, every, samples, seed=seed)
    return trained(model, classes, step_with_clocks(optimizer, model, lr), normalize, renewers=[renewer])


def snr(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    eta: float = 0.02,
    every: int = 20_000,
    threshold: int = 1000,
    lowest: int = 100,
    highest: int = 100_000,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """Self-normalized resets: units that are silent for unusually long start again (Farias & Jozefiak, 2025)."""
    renewer = SelfNormalizedReset(model, eta, every, threshold, lowest, highest, seed=seed)
    return trained(model, classes, step_with_clocks(optimizer, model, lr), normalize, renewers=[renewer])


def regrama(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    tau: float = 0.01,
    every: int = 1000,
    steps: int = 64,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """ReGraMa: SGD or Adam, and hidden units with next to no gradient start again (Liu et al., 2025)."""
    renewer = ReGraMa(model, tau, every, steps, seed=seed)
    return trained(model, classes, step_with_clocks(optimizer, model, lr), normalize, renewers=[renewer])


def layer_reset(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    layers: int = 1,
    every: int = 10_000,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """SGD or Adam whose last layers (0: all) start again every so many steps (Nikishin et al., 2022)."""
    renewer = LayerReset(model, layers or "all", every, seed=seed)
    return trained(model, classes, step_with_clocks(optimizer, model, lr), normalize, renewers=[renewer])


def upgd(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    sigma: float = 0.001,
    beta_utility: float = 0.999,
    weight_decay: float = 0.0,
    scaling: Literal["global", "local"] = "global",
    variant: Literal["paper", "released", "readme"] = "paper",
    normalize: bool = False,
) -> Learner:
    """Utility-based perturbed gradient descent: useful weights are protected (Elsayed & Mahmood, 2024)."""
    given = {"lr": lr, "sigma": sigma, "beta_utility": beta_utility, "weight_decay": weight_decay}
    step = UPGD(model.parameters(), seed=seed, scaling=scaling, variant=variant, **given)  # type: ignore[arg-type]
    return trained(model, classes, step, normalize)


def shrink_and_perturb(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    sigma: float = 0.001,
    decay: float = 0.01,
    normalize: bool = False,
) -> Learner:
    """Shrink and perturb: SGD that shrinks the weights and adds noise at each step (Ash & Adams, 2020)."""
    return trained(model, classes, ShrinkAndPerturb(model.parameters(), lr, sigma, decay, seed=seed), normalize)


def perturbed(
    model: nn.Module, classes: int, seed: int, lr: float = 0.01, sigma: float = 0.001, normalize: bool = False
) -> Learner:
    """SGD with noise on every weight at each step (perturbed gradient descent)."""
    return trained(model, classes, PerturbedSGD(model.parameters(), lr, sigma, seed=seed), normalize)


def obgd(
    model: nn.Module, classes: int, seed: int, lr: float = 1.0, kappa: float = 2.0, normalize: bool = False
) -> Learner:
    """SGD whose steps are bounded so that they do not overshoot (Elsayed, Vasan & Mahmood, 2024)."""
    return trained(model, classes, ObGD(model.parameters(), lr, kappa=kappa), normalize)


def weight_clipping(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.01,
    kappa: float = 1.0,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """SGD or Adam with weights kept within their layer's initial range (Elsayed et al., 2024)."""
    return trained(model, classes, WeightClipping(plain_step(optimizer, model, lr), kappa), normalize)


def tag(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 2.5e-4,
    b: float = 5.0,
    base: Literal["rmsprop", "adagrad", "adam"] = "rmsprop",
    variant: Literal["paper", "released"] = "paper",
    heads: bool = False,
    normalize: bool = False,
) -> Learner:
    """TAG: step sizes by agreement with earlier tasks, which it is told (Malviya et al., 2022)."""
    step = TAG(model.parameters(), lr, b, base=base, variant=variant)
    return by_task(trained(model, classes, step, normalize), classes, heads)


def sparse(
    model: nn.Module,
    classes: int,
    seed: int,
    lr: float = 0.05,
    density: float = 0.2,
    allocation: Literal["erk", "uniform"] = "erk",
    growth: Literal["random", "unfired", "gradient", "momentum"] = "random",
    every: int = 100,
    fraction: float = 0.5,
    tasks: Literal["shared", "isolated"] = "shared",
    heads: bool = False,
    optimizer: Step = "sgd",
    normalize: bool = False,
) -> Learner:
    """Dynamic sparse training: few weights, exchanged now and then; a mask for each task (Yildirim et al., 2024)."""
    renewer = SparseTraining(
        model,
        density,
        allocation=allocation,
        growth=growth,
        every=every,
        fraction=fraction,
        tasks=tasks,
        seed=seed,
    )
    learner = trained(model, classes, step_with_clocks(optimizer, model, lr), normalize, renewers=[renewer])
    return by_task(learner, classes, heads)


def ncm(model: None, classes: int, seed: int) -> Learner:
    """Nearest class mean: predicts the class whose running mean is closest; no gradient."""
    return NearestClassMean(classes=classes)


def slda(
    model: None,
    classes: int,
    seed: int,
    shrinkage: float = 1e-4,
    covariance: Literal["streaming", "pooled"] = "streaming",
) -> Learner:
    """Streaming linear discriminant analysis: class means and a shared covariance; no gradient."""
    return StreamingLDA(classes=classes, shrinkage=shrinkage, covariance=covariance)


def trained(
    model: nn.Module, classes: int, optimizer: torch.optim.Optimizer, normalize: bool, **parts: Any
) -> GradientLearner:
    """Return a gradient learner for classes, or (``classes`` 0) for numbers to predict."""
    loss = F.cross_entropy if classes else squared_error
    normalizer = InputNormalizer() if normalize else None
    return GradientLearner(model, optimizer, loss, normalizer=normalizer, **parts)


def remembering(name: str, classes: int, capacity: int, seed: int) -> Replay:
    """Return a memory by name."""
    if name not in MEMORIES:
        raise unknown("memory", name, MEMORIES)
    if name == "class-balanced" and not classes:
        raise ConfigError("memory='class-balanced' needs classes, and this stream has numbers to predict")
    return MEMORIES[name](capacity, seed=seed)


def by_task(learner: GradientLearner, classes: int, heads: bool) -> GradientLearner:
    """Return the learner with a head for each task, where that is asked for."""
    if heads:
        if not classes:
            raise ConfigError("heads=true gives each task's classes a head, and this stream has none")
        learner.loss = TaskCrossEntropy()
    return learner


def plain_step(name: str, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return an optimizer without anything added, by name."""
    if name not in ("sgd", "adam"):
        raise unknown("optimizer", name, ("sgd", "adam"))
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=lr)
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)


def step_with_clocks(name: str, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return an optimizer by name, in which units that start again have clocks of their own."""
    return Adam(model.parameters(), lr=lr) if name == "adam" else plain_step(name, model, lr)
