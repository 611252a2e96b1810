"""Normalise and project: sizes come back, and what the network computes stays."""

import pytest
import torch
from torch import nn

from driftline import models
from driftline.errors import CheckpointError, ConfigError
from driftline.learners.lockstep.modules import stack_models
from driftline.learners.renewers import NormalizeAndProject
from tests.learners.states import kept, same

NETWORKS = {
    "mlp, layer": (lambda seed: models.mlp(6, 3, (8, 5), seed=seed, normalization="layer"), (6,)),
    "mlp, batch": (lambda seed: models.mlp(6, 3, (8, 5), seed=seed, normalization="batch"), (6,)),
    "convnet, layer": (lambda seed: models.convnet((1, 8, 8), 3, 4, seed, normalization="layer"), (1, 8, 8)),
    "resnet, batch": (lambda seed: models.resnet18((1, 8, 8), 3, 4, seed), (1, 8, 8)),
}
networks = pytest.mark.parametrize(("make", "shape"), NETWORKS.values(), ids=NETWORKS)


def settled(model, shape):
    """The model in float64, its statistics and parameters not where they began."""
    rng = torch.Generator().manual_seed(0)
    model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=rng, dtype=torch.float64))
    for _ in range(3):
        model.train()(torch.randn(16, *shape, generator=rng, dtype=torch.float64))
    return model.eval()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


@networks
def test_sizes_are_the_initial_ones_again_and_the_function_stays(make, shape):
    model = make(0)
    renewer = NormalizeAndProject(model)
    initial = {name: p.detach().double().norm() for name, p in model.named_parameters() if p.dim() > 1}
    settled(model, shape)
    x = torch.randn(5, *shape, dtype=torch.float64)
    before, head = model(x), model.head.weight.detach().clone()
    renewer.renew(model, sgd(model))
    for name, p in model.named_parameters():
        if p.dim() > 1 and not name.startswith("head"):
            torch.testing.assert_close(p.detach().norm(), initial[name], rtol=1e-6, atol=0)  # taken in float32
    assert torch.equal(model.head.weight, head)
    # The normalisations' epsilon, 1e-5, does not scale along.
    torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-3)
    assert any(p.dim() > 1 and (p.norm() - initial[n]).abs() < 1e-5 for n, p in model.named_parameters())


@networks
def test_replicas_are_projected_each_by_itself(make, shape):
    alone = [make(seed) for seed in range(2)]
    together = stack_models([make(seed) for seed in range(2)])
    renewers = [NormalizeAndProject(model) for model in alone]
    renewer = NormalizeAndProject(together, replicas=2)
    with torch.no_grad():
        for i, model in enumerate(alone):
            for p, q in zip(model.parameters(), together.parameters()):
                p.mul_(2.0 + i)
                q[i].mul_(2.0 + i)
    renewer.renew(together, sgd(together))
    for i, model in enumerate(alone):
        renewers[i].renew(model, sgd(model))
        for p, q in zip(model.parameters(), together.parameters()):
            torch.testing.assert_close(q[i], p, rtol=1e-5, atol=1e-6)


def test_it_projects_every_so_many_steps():
    model = models.mlp(6, 3, (8,), normalization="layer")
    renewer = NormalizeAndProject(model, every=3)
    size = model.body[1].weight.detach().norm()
    model.body[1].weight.data.mul_(2.0)
    sizes = []
    for _ in range(4):
        renewer.renew(model, sgd(model))
        sizes.append(round((model.body[1].weight.detach().norm() / size).item(), 4))
    assert sizes == [2.0, 2.0, 1.0, 1.0]


def test_a_state_goes_on_with_the_sizes_and_steps_it_has():
    model, other = (models.mlp(6, 3, (8,), normalization="layer", seed=seed) for seed in range(2))
    renewer, later = NormalizeAndProject(model, every=3), NormalizeAndProject(other, every=3)
    renewer.renew(model, sgd(model))
    later.load_state_dict(kept(renewer))
    assert same(kept(later), kept(renewer))
    for _ in range(2):
        later.renew(other, sgd(other))
    torch.testing.assert_close(other.body[1].weight.norm(), model.body[1].weight.norm())


def test_a_state_of_another_model_is_refused_and_changes_nothing():
    renewer = NormalizeAndProject(models.mlp(6, 3, (8,), normalization="layer"))
    other = NormalizeAndProject(models.mlp(6, 3, (8, 8), normalization="layer"))
    before = kept(renewer)
    for state in ({}, other.state_dict()):
        with pytest.raises(CheckpointError, match="the state has"):
            renewer.load_state_dict(state)
    assert same(before, kept(renewer))


def test_layers_are_taken_by_name_where_there_is_no_normalisation():
    model = models.mlp(6, 3, (8,))
    renewer = NormalizeAndProject(model, layers=["body.1"])
    size = model.body[1].weight.detach().norm()
    model.body[1].weight.data.mul_(2.0)
    renewer.renew(model, sgd(model))
    torch.testing.assert_close(model.body[1].weight.detach().norm(), size)


def test_a_weight_of_zeros_stays_finite():
    model = models.mlp(6, 3, (8,), normalization="layer")
    renewer = NormalizeAndProject(model)
    nn.init.zeros_(model.body[1].weight)
    renewer.renew(model, sgd(model))
    assert all(p.isfinite().all() for p in [model.body[1].weight])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NormalizeAndProject(models.mlp(6, 3, (8,))), "no layer with a normalisation behind it"),
        (lambda: NormalizeAndProject(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(2))), "no layer with a norm"),
        (lambda: NormalizeAndProject(models.mlp(6, 3, (8,), normalization="layer"), every=0), "every=0"),
        (lambda: NormalizeAndProject(models.mlp(6, 3, (8,)), layers=["body.2"]), "did you mean 'body.1'"),
        (lambda: NormalizeAndProject(models.mlp(6, 3, (8,)), layers=[]), "no layer with a normalisation"),
        (lambda: NormalizeAndProject(models.mlp(6, 3, (8,)), replicas=2), "replicas=2, but the model"),
    ],
)
def test_bad_settings_and_models_without_normalisation_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
