"""Replica i of continual backprop in lockstep does what it would do alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline import models
from driftline.learners import GradientLearner
from driftline.learners.lockstep.modules import stack_models
from driftline.learners.lockstep.stack import in_lockstep
from driftline.learners.optimizers import Adam
from driftline.learners.renewers import ContinualBackprop, find_unit_groups

SHAPES = {"mlp": (4,), "normalised": (4,), "convnet": (1, 8, 8)}


def network(kind, seed):
    if kind == "mlp":
        return models.mlp(4, classes=3, hidden=(8, 6), seed=seed).double()
    if kind == "convnet":
        return models.convnet((1, 8, 8), classes=3, width=3, seed=seed).double()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 6), nn.LayerNorm(6), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(6, 3)).double()


def data(kind, steps, size=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(steps, 3, size, *SHAPES[kind], generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (steps, 3, size), generator=generator)


def follow(kind, settings, seeds, shared, optimizer_of, steps=60):
    """Train three models alone and in lockstep; return all."""
    x, y = data(kind, steps)
    singles = [network(kind, seed) for seed in seeds]
    stacked = stack_models(copy.deepcopy(singles))
    alone = [
        ContinualBackprop(one, seed=seed, **shared, **{k: v[r] for k, v in settings.items()})
        for r, (one, seed) in enumerate(zip(singles, seeds))
    ]
    together = ContinualBackprop(stacked, seed=seeds, replicas=3, **shared, **settings)
    optimizers = [optimizer_of(one.parameters(), None) for one in singles]
    all_at_once = optimizer_of(stacked.parameters(), 3)
    for now, labels in zip(x, y):
        for r, (one, optimizer, renewer) in enumerate(zip(singles, optimizers, alone)):
            optimizer.zero_grad()
            F.cross_entropy(one(now[r]), labels[r]).backward()
            optimizer.step()
            renewer.renew(one, optimizer)
        all_at_once.zero_grad()
        F.cross_entropy(stacked(now).flatten(0, 1), labels.flatten(), reduction="sum").div(now.shape[1]).backward()
        all_at_once.step()
        together.renew(stacked, all_at_once)
    return singles, alone, stacked, together


def agree(singles, alone, stacked, together):
    for i, traces in enumerate(together.traces):
        births = torch.stack([renewer.traces[i].birth for renewer in alone])
        assert torch.equal(traces.birth, births) and (births > 0).any(1).all()
        utilities = torch.stack([renewer.traces[i].utility for renewer in alone])
        torch.testing.assert_close(traces.utility, utilities, rtol=0, atol=1e-9)
    for name, tensor in stacked.state_dict().items():
        each = torch.stack([one.state_dict()[name] for one in singles])
        # Batched products sum in another order; 60 steps let that grow.
        torch.testing.assert_close(tensor, each, rtol=0, atol=1e-9)


def sgd(params, replicas):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def adam(params, replicas):
    return Adam(params, lr=0.005, replicas=replicas)


# A bias in front of batch normalisation has a gradient of rounding errors only, which Adam makes into whole steps.
CASES = [(kind, optimizer) for kind in SHAPES for optimizer in (sgd, adam) if (kind, optimizer) != ("normalised", adam)]


@pytest.mark.parametrize(("kind", "optimizer_of"), CASES)
def test_with_the_same_settings(kind, optimizer_of):
    shared = {"replacement_rate": 0.02, "maturity": 5, "decay": 0.9}
    agree(*follow(kind, {}, [4, 5, 6], shared, optimizer_of))


@pytest.mark.parametrize(("kind", "optimizer_of"), CASES)
def test_with_settings_of_each_replicas_own(kind, optimizer_of):
    settings = {"replacement_rate": [0.02, 0.05, 0.13], "maturity": [5, 3, 9], "decay": [0.9, 0.5, 0.99]}
    agree(*follow(kind, settings, [4, 5, 6], {}, optimizer_of))


@pytest.mark.parametrize(
    "shared",
    [
        {"accumulate": False},
        {"utility": "random"},
        {"utility": "zero_contribution"},
        {"utility": "adaptable_contribution"},
        {"utility": "adaptation"},
        {"running": False},
        {"compensate": False},
        {"variant": "released"},
        {"variant": "released", "accumulate": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_in_every_variant(kind, shared):
    shared = {"replacement_rate": 0.03, "maturity": 5, "decay": 0.9, **shared}
    agree(*follow(kind, {}, [4, 5, 6], shared, sgd))


def test_learners_are_stacked_with_their_renewers():
    def make(seed, rate):
        model = network("mlp", seed)
        groups = find_unit_groups(model, skip=["body.1"])
        renewer = ContinualBackprop(model, rate, maturity=5, decay=0.9, seed=seed, groups=groups)
        optimizer = Adam(model.parameters(), lr=0.005)
        return GradientLearner(model, optimizer, renewers=[renewer])

    arguments = [(4, 0.02), (5, 0.05), (6, 0.1)]
    alone, together = [make(*a) for a in arguments], in_lockstep([make(*a) for a in arguments])
    x, y = data("mlp", 60)
    for now, labels in zip(x, y):
        together.learn(now, labels)
        for r, learner in enumerate(alone):
            learner.learn(now[r], labels[r])
    (renewer,) = together.renewers
    assert [group.name for group in renewer.groups] == ["body.3"]
    agree([one.model for one in alone], [one.renewers[0] for one in alone], together.model, renewer)
