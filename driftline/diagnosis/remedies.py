"""What is done about a loss of plasticity: named changes to a learner that has not learned yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import nn

from driftline.errors import ConfigError
from driftline.learners import GradientLearner
from driftline.learners.contracts import Penalty
from driftline.learners.optimizers import UPGD, Perturbed
from driftline.learners.penalties import L2Init
from driftline.learners.renewers import ContinualBackprop
from driftline.plasticity.watch import ACTIVATIONS

Remedy = Callable[[GradientLearner, int], GradientLearner]


def continual_backprop(learner: GradientLearner, seed: int) -> GradientLearner:
    """Least useful hidden units start again: replacement rate 1e-4, maturity 100 (Dohare et al., 2024)."""
    return _with(learner, renewers=[*learner.renewers, ContinualBackprop(learner.model, 1e-4, 100, seed=seed)])


def l2_init(learner: GradientLearner, seed: int) -> GradientLearner:
    """Pull towards the initial weights, strength 1e-3 (Kumar et al., 2023)."""
    return _with(learner, penalties=[*learner.penalties, cast(Penalty, L2Init(learner.model, 1e-3))])


def shrink_and_perturb(learner: GradientLearner, seed: int) -> GradientLearner:
    """Decay 0.01 and noise 0.01, both times the step size, around the same optimizer (Ash & Adams, 2020)."""
    return _with(learner, optimizer=Perturbed(learner.optimizer, 0.01, 0.01, seed=seed))


def upgd(learner: GradientLearner, seed: int) -> GradientLearner:
    """UPGD in place of the optimizer, with its step size: sigma 0.01, decay 0.01 (Elsayed & Mahmood, 2024)."""
    lr = learner.optimizer.param_groups[0]["lr"]
    step = UPGD(learner.model.parameters(), lr=lr, sigma=0.01, beta_utility=0.999, weight_decay=0.01, seed=seed)
    return _with(learner, optimizer=step)


def layer_norm(learner: GradientLearner, seed: int) -> GradientLearner:
    """Normalise the units of each layer before its activation (Lyle et al., 2023)."""
    added = 0
    for sequence in [module for module in learner.model.modules() if isinstance(module, nn.Sequential)]:
        layers: list[nn.Module] = []
        for layer in sequence:
            if layers and isinstance(layers[-1], nn.Linear) and isinstance(layer, ACTIVATIONS):
                weight = layers[-1].weight
                norm = nn.LayerNorm(layers[-1].out_features, device=weight.device, dtype=weight.dtype)
                learner.optimizer.add_param_group({"params": list(norm.parameters())})
                layers.append(norm)
                added += 1
            layers.append(layer)
        sequence._modules = {str(i): layer for i, layer in enumerate(layers)}
    if not added:
        raise ConfigError("layer norm: no activation follows a linear layer inside an nn.Sequential")
    return _with(learner)


REMEDIES: dict[str, Remedy] = {
    "continual backprop": continual_backprop,
    "L2-init": l2_init,
    "shrink and perturb": shrink_and_perturb,
    "layer norm": layer_norm,
    "UPGD": upgd,
}
"""By name; settings are the usual ones of papers for SGD on permuted images, and are not tuned."""


def _with(learner: GradientLearner, **changed: object) -> GradientLearner:
    """Return a learner of the same parts, some of them changed."""
    parts = ("penalties", "renewers", "replay", "replay_ratio", "replay_batch", "normalizer", "schedule", "compile")
    given = {name: getattr(learner, name) for name in ("optimizer", "loss", *parts)} | changed
    return GradientLearner(learner.model, **given)
