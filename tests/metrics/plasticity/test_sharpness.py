import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import driftline
from driftline.errors import ConfigError, InputError
from driftline.learners import GradientLearner, NearestClassMean
from driftline.metrics.plasticity import Sharpness, hessian_product, top_eigenvalue
from driftline.models import mlp
from driftline.testing import blobs


def learner(normalization="none"):
    network = mlp(4, 3, (6, 5), activation="tanh", seed=0, normalization=normalization)
    return GradientLearner(network, torch.optim.SGD(network.parameters(), lr=0.1))


def full_hessian(network, x, y):
    names = [name for name, _ in network.named_parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in network.parameters()])
    sizes = [p.numel() for p in network.parameters()]
    shapes = [p.shape for p in network.parameters()]

    def loss(vector):
        parts = [part.view(shape) for part, shape in zip(vector.split(sizes), shapes)]
        return F.cross_entropy(functional_call(network, dict(zip(names, parts)), (x,)), y)

    return torch.autograd.functional.hessian(loss, flat)


def played(metric, **given):
    one = learner(**given)
    for _ in driftline.play(blobs(), one, batch_size=10, metrics=[metric]):
        pass
    return one


def test_it_is_the_largest_eigenvalue_of_the_full_hessian():
    metric = Sharpness(every=60, samples=40)
    one = played(metric)
    points = metric.points(0)
    assert points, "the stream is shorter than one interval"
    stop = points[-1][0]
    x, y = blobs().read(stop - 40, stop)
    # Played again up to there, since the learner went on.
    again = learner()
    for _ in driftline.play(blobs()[:stop], again, batch_size=10):
        pass
    expected = torch.linalg.eigvalsh(full_hessian(again.model, x, y.long()).double())[-1]
    # Products in float32.
    assert points[-1][2] == pytest.approx(expected.item(), rel=1e-3)
    assert one.model.training


def test_lanczos_finds_the_largest_not_the_largest_in_size_and_the_exact_one_with_enough_steps():
    draw = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(30, 30, generator=draw, dtype=torch.float64))
    for values in (torch.linspace(-9, 4, 30), torch.linspace(-9, -1, 30), torch.linspace(0, 1, 30).pow(4) * 100):
        matrix = basis @ torch.diag(values.double()) @ basis.T
        found = top_eigenvalue(lambda v, m=matrix: m @ v, torch.zeros(30, dtype=torch.float64), iterations=30)
        assert found.item() == pytest.approx(values.max().item(), abs=1e-6)


def test_a_zero_hessian_gives_zero_and_an_infinite_one_nan():
    assert top_eigenvalue(torch.zeros_like, torch.zeros(5)).item() == 0
    assert top_eigenvalue(lambda v: v * torch.inf, torch.zeros(5)).isnan()


def test_a_loss_without_curvature_has_a_product_of_zero():
    network = nn.Linear(3, 1)
    product, like = hessian_product(network, lambda scores, y: scores.sum(), torch.ones(2, 3), torch.zeros(2))
    assert torch.equal(product(torch.ones_like(like)), torch.zeros_like(like))


def test_bad_settings_and_learners_without_a_network_or_loss_are_refused():
    for given in ({"every": 0}, {"samples": 0}, {"iterations": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(given))}=0"):
            Sharpness(**given)
    with pytest.raises(InputError, match="NearestClassMean shows none"):
        for _ in driftline.play(blobs(), NearestClassMean(), batch_size=10, metrics=[Sharpness()]):
            pass
