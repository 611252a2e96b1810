from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

from driftline import models
from driftline.errors import ConfigError, InputError
from driftline.learners.lockstep.modules import stack_models
from driftline.learners.optimizers import UPGD, HesScale
from driftline.learners.optimizers.backward_rules import is_curved, through
from driftline.learners.renewers.unit_groups import find_unit_groups

LOSSES = {"cross_entropy": F.cross_entropy, "squared_error": F.mse_loss}


def seeded(*layers):
    torch.manual_seed(0)
    made = nn.Sequential(*(layer() for layer in layers)).double()
    return made


def batch(loss, samples=5, inputs=4, classes=3):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(samples, inputs, generator=draw, dtype=torch.float64)
    if loss == "cross_entropy":
        return x, torch.randint(classes, (samples,), generator=draw)
    return x, torch.randn(samples, classes, generator=draw, dtype=torch.float64)


def exact(model, loss, x, y):
    """The diagonals of the whole Hessian, by double differentiation."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    blocks = hessian(lambda own: loss(functional_call(model, own, x), y))(params)
    return {n: blocks[n][n].reshape(p.numel(), p.numel()).diagonal().reshape(p.shape) for n, p in params.items()}


def found(model, x, y, loss, **given):
    diagonals = HesScale(model, loss, **given).diagonal(x, y)
    return dict(zip((n for n, p in model.named_parameters() if p.requires_grad), diagonals))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_last_layer_is_exact(loss, reduction):
    model = seeded(lambda: nn.Linear(4, 8), nn.Tanh, lambda: nn.Linear(8, 6), nn.ReLU, lambda: nn.Linear(6, 3))
    x, y = batch(loss)
    truth = exact(model, lambda out, y: LOSSES[loss](out, y, reduction=reduction), x, y)
    own = found(model, x, y, loss, reduction=reduction)
    for name in ("4.weight", "4.bias"):
        assert torch.allclose(own[name], truth[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("activation", [nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Softplus, nn.ELU])
def test_one_hidden_layer_with_a_squared_error_is_exact(activation):
    model = seeded(lambda: nn.Linear(4, 8), activation, lambda: nn.Linear(8, 3))
    x, y = batch("squared_error")
    truth, own = exact(model, F.mse_loss, x, y), found(model, x, y, "squared_error")
    for name in truth:
        assert torch.allclose(own[name], truth[name], rtol=1e-10, atol=1e-14)


def test_one_convolution_with_a_squared_error_is_exact():
    model = seeded(lambda: nn.Conv2d(2, 3, 2, stride=1, padding=1), nn.Tanh, nn.Flatten)
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    y = torch.randn(2, 48, dtype=torch.float64)
    truth, own = exact(model, F.mse_loss, x, y), found(model, x, y, "squared_error")
    for name in truth:
        assert torch.allclose(own[name], truth[name], rtol=1e-10, atol=1e-14)


def test_a_convolution_over_one_position_is_a_linear_layer():
    linear = seeded(lambda: nn.Linear(4, 8), nn.Tanh, lambda: nn.Linear(8, 6), nn.Tanh, lambda: nn.Linear(6, 3))
    conv = seeded(
        lambda: nn.Conv2d(4, 8, 1), nn.Tanh, lambda: nn.Conv2d(8, 6, 1), nn.Tanh, nn.Flatten, lambda: nn.Linear(6, 3)
    )
    for p, q in zip(conv.parameters(), linear.parameters()):
        p.data.copy_(q.data.view(p.shape))
    x, y = batch("cross_entropy")
    flat = found(linear, x, y, "cross_entropy")
    deep = found(conv, x.view(5, 4, 1, 1), y, "cross_entropy")
    for a, b in zip(flat.values(), deep.values()):
        assert torch.allclose(a, b.view(a.shape), rtol=1e-10, atol=1e-15)


POOLS = [
    nn.MaxPool2d(2),
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, stride=1),
    nn.AvgPool2d((2, 3), divisor_override=5),
    nn.AdaptiveAvgPool2d((2, 3)),
    nn.AdaptiveAvgPool2d(4),
]
CURVES = [nn.ReLU(), nn.LeakyReLU(0.1), nn.Tanh(), nn.SiLU(), nn.Hardtanh(), nn.SELU(), nn.Identity()]


@pytest.mark.parametrize("layer", [*POOLS, *CURVES], ids=repr)
def test_a_layer_passes_the_diagonal_at_its_output_back_to_its_input(layer):
    torch.manual_seed(0)
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    y = layer(x)
    target = torch.randn_like(y)
    gradient, curvature = y - target, torch.ones_like(y)
    truth = hessian(lambda x: (layer(x) - target).square().sum() / 2)(x).reshape(x.numel(), -1).diagonal()
    own = through(layer, x, y, gradient if is_curved(layer) else None, curvature)
    assert torch.allclose(own.flatten(), truth, rtol=1e-10, atol=1e-14)


def test_deeper_layers_leave_out_what_lies_off_the_diagonal():
    model = seeded(lambda: nn.Linear(4, 8), nn.Tanh, lambda: nn.Linear(8, 3))
    x, y = batch("cross_entropy")
    p = model(x).softmax(-1)
    at_hidden = (p * (1 - p)) @ model[2].weight.square()
    slope = 1 - model[1](model[0](x)).square()
    error = (p - F.one_hot(y, 3)) @ model[2].weight
    at_sums = slope.square() * at_hidden - 2 * model[1](model[0](x)) * slope * error
    own = found(model, x, y, "cross_entropy")
    assert torch.allclose(own["0.weight"], at_sums.T @ x.square() / 5, rtol=1e-10)
    assert torch.allclose(own["0.bias"], at_sums.mean(0), rtol=1e-10)


@pytest.mark.parametrize("make", [lambda seed: models.mlp(4, 3, (8,), nn.Tanh, seed), None], ids=["mlp", "convnet"])
@pytest.mark.parametrize("loss", LOSSES)
def test_replicas_have_what_each_would_alone(make, loss):
    if make is None:
        alone = [models.convnet((2, 6, 6), 3, width=4, seed=seed).double() for seed in range(3)]
        x = torch.randn(3, 5, 2, 6, 6, dtype=torch.float64)
    else:
        alone = [make(seed).double() for seed in range(3)]
        x = torch.randn(3, 5, 4, dtype=torch.float64)
    y = torch.stack([batch(loss)[1]] * 3)
    together = HesScale(stack_models(alone), loss, replicas=3).diagonal(x, y)
    for i, model in enumerate(alone):
        for own, whole in zip(HesScale(model, loss).diagonal(x[i], y[i]), together):
            assert torch.allclose(own, whole[i], rtol=1e-8, atol=1e-12)


def test_an_ordinary_loop_leaves_the_diagonals_behind():
    model = seeded(lambda: nn.Linear(4, 8), lambda: nn.ReLU(inplace=True), lambda: nn.Linear(8, 3))
    x, y = batch("cross_entropy")
    curvature = HesScale(model)
    with torch.no_grad():
        model(x)
    model(x)  # a pass that nobody differentiates
    F.cross_entropy(model(x), y).backward()
    taken = curvature.take()
    for own, p in zip(curvature.diagonal(x, y), model.parameters()):
        assert torch.equal(taken[p], own)
    assert curvature.take() == {}


def test_backward_passes_add_up_as_gradients_do():
    model = seeded(lambda: nn.Linear(4, 3))
    x, y = batch("cross_entropy", samples=6)
    curvature = HesScale(model, reduction="sum")
    for part in (slice(0, 2), slice(2, 6)):
        F.cross_entropy(model(x[part]), y[part], reduction="sum").backward()
    taken = curvature.take()
    for own, p in zip(curvature.diagonal(x, y), model.parameters()):
        assert torch.allclose(taken[p], own)


def test_frozen_parameters_have_none():
    model = seeded(lambda: nn.Linear(4, 8), nn.Tanh, lambda: nn.Linear(8, 3))
    model[0].requires_grad_(False)
    x, y = batch("cross_entropy")
    assert set(found(model, x, y, "cross_entropy")) == {"2.weight", "2.bias"}


def test_ones_own_loss_gives_its_curvature_at_the_outputs():
    model = seeded(lambda: nn.Linear(4, 3))
    x, y = batch("squared_error")
    curvature = HesScale(model, lambda out: torch.full_like(out, 2 / out.numel()))
    F.mse_loss(model(x), y).backward()
    assert torch.allclose(curvature.take()[model[0].bias], torch.full((3,), 2 / 3, dtype=torch.float64))
    with pytest.raises(ConfigError, match="take"):
        curvature.diagonal(x, y)


def test_units_can_be_found_in_a_model_that_is_watched():
    model = models.mlp(4, 3, hidden=(8,))
    curvature = HesScale(model)
    optimizer = UPGD(
        model.parameters(), order=2, scope="feature", features=find_unit_groups(model), curvature=curvature
    )
    F.cross_entropy(model(torch.randn(5, 4)), torch.randint(3, (5,))).backward()
    optimizer.step()
    assert optimizer.state[model.body[1].bias]["unit_utility"].shape == (8,)


def test_hooks_can_be_removed():
    model = seeded(lambda: nn.Linear(4, 3))
    curvature = HesScale(model)
    curvature.remove()
    x, y = batch("cross_entropy")
    F.cross_entropy(model(x), y).backward()
    assert curvature.take() == {}


@pytest.mark.parametrize(
    ("layer", "name"), [(nn.BatchNorm1d(8), "BatchNorm1d"), (nn.Dropout(0.5), "Dropout"), (nn.Softmax(-1), "Softmax")]
)
def test_layers_without_a_rule_are_named(layer, name):
    with pytest.raises(ConfigError, match=rf"no rule for {name} \(1\)"):
        HesScale(nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 3)))


class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.second(x + self.first(x))


def test_what_happens_between_modules_is_refused():
    model = Skipping()
    HesScale(model)
    with pytest.raises(InputError, match="not the output of the Linear before it"):
        model(torch.ones(1, 4))


def test_an_unknown_loss_is_refused():
    with pytest.raises(ConfigError, match="cross_entropy"):
        HesScale(nn.Linear(4, 3), "cross_entropi")


@pytest.mark.parametrize("scope", ["weight", "feature"])
def test_second_order_utility_adds_half_the_curvature(scope):
    model = seeded(lambda: nn.Linear(4, 8), nn.Tanh, lambda: nn.Linear(8, 3))
    x, y = batch("cross_entropy")
    start, diagonals = copy.deepcopy(model), dict(zip(model.parameters(), HesScale(model).diagonal(x, y)))
    optimizer = UPGD(
        model.parameters(),
        beta_utility=0.5,
        order=2,
        scope=scope,
        features=[(model[0].weight, model[0].bias, model[2].weight)],
        curvature=HesScale(model),
    )
    F.cross_entropy(model(x), y).backward()
    each = {
        p: 0.5 * (diagonals[p] * q.detach() ** 2 / 2 - p.grad * q.detach())
        for p, q in zip(model.parameters(), start.parameters())
    }
    optimizer.step()
    if scope == "weight":
        for p, utility in each.items():
            assert torch.allclose(optimizer.state[p]["utility"], utility, atol=1e-15)
    else:
        unit = optimizer.state[model[0].bias]["unit_utility"]
        assert torch.allclose(unit, each[model[2].weight].sum(0), atol=1e-15)


def test_second_order_without_a_backward_pass_through_the_model_is_refused_before_anything_changes():
    model = seeded(lambda: nn.Linear(4, 3))
    optimizer = UPGD(model.parameters(), order=2, curvature=HesScale(seeded(lambda: nn.Linear(4, 3))))
    x, y = batch("cross_entropy")
    F.cross_entropy(model(x), y).backward()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(InputError, match="no second derivative"):
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before))
    assert not any(optimizer.state.values())
