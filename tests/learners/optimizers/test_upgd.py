from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline import models, native
from driftline.errors import ConfigError
from driftline.learners.lockstep.modules import stack_models
from driftline.learners.optimizers import UPGD, PerturbedSGD
from driftline.learners.renewers.unit_groups import find_unit_groups
from tests.golden import golden_names
from tests.learners.optimizers.replaying import FOLDER, Recorded

VARIANTS = ["paper", "released", "readme"]


def built(case, **given):
    """The optimizer that a recorded case was made with."""
    method, settings = case.config["method"], dict(case.settings)
    if "feature" in method:
        layers = list(case.layers)
        given["features"] = [(a.weight, a.bias, b.weight) for a, b in zip(layers, layers[1:])]
    optimizer = UPGD(
        case.params,
        scope="feature" if "feature" in method else "weight",
        scaling="local" if "local" in method else "global",
        protecting="nonprotecting" not in method,
        moments=method == "upgd_adaptive",
        variant="readme" if method == "upgd_readme" else "released",
        **settings,
        **given,
    )
    optimizer.draws = case.draws(case.params[:-2] if "feature" in method else case.params)
    return optimizer


RECORDS = [n for n in golden_names(FOLDER, "upgd_*") if "clipping" not in n]


@pytest.mark.parametrize("name", RECORDS)
def test_released_variant_follows_the_recorded_run(name):
    case = Recorded(name)
    optimizer = built(case)
    states = {}
    if "feature" not in name:
        states["avg_utility"] = lambda p: optimizer.state[p]["utility"]
    if "adaptive" in name:
        states["first_moment"] = lambda p: optimizer.state[p]["exp_avg"]
        states["sec_moment"] = lambda p: optimizer.state[p]["exp_avg_sq"]

    def after(step):
        if "feature" in name:
            for i, layer in enumerate(case.layers[:-1]):
                found = optimizer.state[layer.bias]["unit_utility"]
                case.check(f"state/avg_utility/gate_{i + 1}.weight", step, found)

    case.train(optimizer, states, after)


SHAPES = ((5, 7), (5,), (4, 3, 2, 2), (1,), ())


def params_of(shapes=SHAPES, replicas=None, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    lead = () if replicas is None else (replicas,)
    return [nn.Parameter(torch.randn((*lead, *s), generator=draw, dtype=dtype)) for s in shapes]


def give_gradients(params, step=0, scale=1.0):
    draw = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = scale * torch.randn(p.shape, generator=draw, dtype=p.dtype)


def moves(params, optimizer, grads=None):
    """How far each weight moved in one step, relative to plain gradient descent with the same step size."""
    before = [p.detach().clone() for p in params]
    if grads is None:
        give_gradients(params)
    else:
        for p, g in zip(params, grads):
            p.grad = g.clone()
    optimizer.step()
    lr = optimizer.param_groups[0]["lr"]
    return torch.cat([((b - p) / (lr * p.grad)).detach().flatten() for b, p in zip(before, params)])


def test_paper_variant_is_the_published_algorithm():
    params = params_of()
    optimizer = UPGD(params, lr=0.1, sigma=0.0, beta_utility=0.9, weight_decay=0.2)
    plain = [p.detach().clone() for p in params]
    traces = [torch.zeros_like(p) for p in plain]
    for t in range(1, 20):
        give_gradients(params, t)
        optimizer.step()
        traces = [0.9 * u - 0.1 * p.grad * q for u, p, q in zip(traces, params, plain)]
        corrected = [u / (1 - 0.9**t) for u in traces]
        largest = max(float(u.max()) for u in corrected)
        plain = [
            (1 - 0.1 * 0.2) * q - 0.1 * p.grad * (1 - torch.sigmoid(u / largest))
            for q, p, u in zip(plain, params, corrected)
        ]
        for p, q in zip(params, plain):
            assert torch.allclose(p, q, rtol=0, atol=1e-12)


def test_the_most_useful_weight_is_protected_by_731_thousandths():
    params = params_of()
    moved = moves(params, UPGD(params, sigma=0.0))
    assert moved.min().item() == pytest.approx(1 - 1 / (1 + math.exp(-1)))
    assert 0.5 < moved.max().item() <= 1 + 1e-9


@pytest.mark.parametrize("scaling", ["global", "local"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_that_are_all_zero_move_nothing_and_make_no_nan(scaling, variant, moments, fused):
    params = params_of(dtype=torch.float32)
    before = [p.detach().clone() for p in params]
    optimizer = UPGD(params, sigma=0.0, scaling=scaling, variant=variant, moments=moments, fused=fused)
    for _ in range(3):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(params, before))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fused", [False, True])
def test_a_useless_weight_is_protected_by_half(variant, fused):
    params = params_of(dtype=torch.float32)
    for p in params:
        p.data.zero_()
    stretch = 2 if variant == "readme" else 1
    moved = moves(params, UPGD(params, sigma=0.0, variant=variant, fused=fused))
    assert moved.tolist() == pytest.approx([stretch / 2] * len(moved))


@pytest.mark.parametrize("fused", [False, True])
def test_when_no_utility_is_positive_the_paper_variant_protects_all_alike(fused):
    params = params_of(dtype=torch.float32)
    grads = [p.detach() * (1 + torch.arange(p.numel()).view(p.shape)) for p in params]
    moved = moves(params, UPGD(params, sigma=0.0, fused=fused), grads)
    assert moved.tolist() == pytest.approx([0.5] * len(moved), rel=1e-3)


def test_when_no_utility_is_positive_the_released_variant_moves_the_least_harmful_weight_most():
    params = params_of()
    grads = [p.detach().clone() for p in params]
    moved = moves(params, UPGD(params, sigma=0.0, beta_utility=0.0, variant="released"), grads)
    utility = torch.cat([-g.square().flatten() for g in grads])
    assert moved.argmax() == utility.argmax()


@pytest.mark.parametrize("size", [1e-30, 1e-20])
@pytest.mark.parametrize("variant", VARIANTS)
def test_utilities_too_small_to_divide_by_make_no_nan(size, variant):
    params = params_of(dtype=torch.float32)
    for p in params:
        p.data *= size
    give_gradients(params, scale=size)
    optimizer = UPGD(params, sigma=0.0, variant=variant)
    for _ in range(3):
        optimizer.step()
    assert all(p.isfinite().all() for p in params)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_that_is_not_finite_spoils_its_own_weight_only(bad, fused):
    params = params_of(dtype=torch.float32)
    give_gradients(params)
    params[0].grad[2, 3] = bad
    UPGD(params, sigma=0.0, fused=fused).step()
    assert not params[0][2, 3].isfinite()
    finite = torch.cat([p.detach().isfinite().flatten() for p in params])
    assert int((~finite).sum()) == 1


def test_local_scaling_takes_each_units_weights_together():
    params = params_of()
    optimizer = UPGD(params, sigma=0.0, scaling="local", beta_utility=0.0)
    moved = moves(params, optimizer)
    expected = []
    for p, q in zip(params, params_of()):
        utility = -p.grad * q
        over = tuple(range(1, p.dim())) if p.dim() > 1 else tuple(range(p.dim()))
        norm = utility.square().sum(over, keepdim=True).sqrt() if over else utility.abs()
        expected.append((1 - torch.sigmoid(utility / norm)).detach().flatten())
    assert torch.allclose(moved, torch.cat(expected))


@pytest.mark.parametrize("protecting", [True, False])
def test_noise_is_gated_and_scaled_by_the_learning_rate(protecting):
    quiet, noisy = params_of(), params_of()
    settings = {"lr": 0.1, "protecting": protecting, "seed": 3}
    for params, sigma in ((quiet, 0.0), (noisy, 0.5)):
        optimizer = UPGD(params, sigma=sigma, **settings)
        give_gradients(params)
        optimizer.step()
    noise = optimizer.draws.normal(0, sum(p.numel() for p in quiet), dtype=torch.float64)
    traces = torch.cat([state["utility"].flatten() for state in optimizer.state.values()])
    gates = torch.sigmoid(-traces / traces.max())
    difference = torch.cat([(p - q).detach().flatten() for p, q in zip(quiet, noisy)])
    assert torch.allclose(difference, 0.1 * 0.5 * noise * gates)


def test_a_pool_of_noise_comes_round_after_64_draws():
    drawn = []
    params = params_of()
    optimizer = UPGD(params, noise="pool")
    for step in (0, 1, 64):
        optimizer.steps = step
        drawn.append(optimizer.flat_noise(params).clone())
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


KINDS = [
    {},
    {"scaling": "local"},
    {"variant": "released"},
    {"variant": "released", "scaling": "local"},
    {"variant": "readme"},
    {"protecting": False},
    {"moments": True},
    {"noise": "pool"},
    {"sigma": 0.0},
]


@pytest.mark.parametrize("settings", KINDS, ids=str)
@pytest.mark.parametrize("replicas", [None, 3])
def test_the_fused_kernel_agrees_to_rounding(settings, replicas):
    if not native.available():
        pytest.skip("no kernels here")
    results = []
    given = {"lr": 0.1, "sigma": 0.1, "weight_decay": 0.01, **settings}
    if replicas is not None:
        given |= {"replicas": 3, "seed": [1, 2, 3], "lr": [0.1, 0.2, 0.3], "beta_utility": [0.9, 0.99, 0.0]}
    for fused in (False, True):
        params = params_of(replicas=replicas, dtype=torch.float32)
        optimizer = UPGD(params, fused=fused, **given)
        for step in range(20):
            give_gradients(params, step)
            optimizer.step()
        results.append(params)
    for p, q in zip(*results):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-5)  # 20 steps of a few roundings each


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_replicas_do_what_each_would_alone(settings):
    merged = {
        "lr": [0.1, 0.01, 0.2],
        "sigma": [0.1, 0.0, 0.01],
        "beta_utility": [0.9, 0.99, 0.0],
        "weight_decay": [0.0, 0.1, 0.01],
        "seed": [5, 6, 7],
    }
    merged = {name: values for name, values in merged.items() if name not in settings}
    together = params_of(replicas=3)
    both = UPGD(together, replicas=3, **merged, **settings)
    alone = [[nn.Parameter(p.detach()[i].clone()) for p in together] for i in range(3)]
    single = [
        UPGD(params, **{name: values[i] for name, values in merged.items()}, **settings)
        for i, params in enumerate(alone)
    ]
    for step in range(10):
        give_gradients(together, step)
        both.step()
        for i in range(3):
            for p, q in zip(alone[i], together):
                p.grad = q.grad[i].clone()
            single[i].step()
    for i in range(3):
        for p, q in zip(alone[i], together):
            assert torch.allclose(p, q[i], rtol=0, atol=1e-6)  # the noise is float32


def test_groups_and_parameters_may_have_traces_of_different_ages():
    merged = {"beta_utility": [0.9, 0.5]}
    together = params_of(replicas=2)
    alone = [[nn.Parameter(p.detach()[i].clone()) for p in together] for i in range(2)]

    def grouped(params, beta, **given):
        return UPGD([{"params": params[:2], "beta_utility": beta}, {"params": params[2:]}], sigma=0.0, **given)

    both = grouped(together, merged["beta_utility"], replicas=2, seed=[0, 1])
    single = [grouped(params, merged["beta_utility"][i]) for i, params in enumerate(alone)]
    for step in range(6):
        give_gradients(together, step)
        if step < 3:
            together[1].grad = None
        for i in range(2):
            for p, q in zip(alone[i], together):
                p.grad = None if q.grad is None else q.grad[i].clone()
        for optimizer in (both, *single):
            optimizer.step()
    assert both.state[together[1]]["step"] == 3
    for i in range(2):
        for p, q in zip(alone[i], together):
            assert torch.allclose(p, q[i], rtol=0, atol=1e-12)


class Gated(nn.Module):
    """A convnet with an explicit gate of ones behind each activation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.three = nn.Conv2d(1, 3, 3), nn.Linear(12, 5, bias=False), nn.Linear(5, 2)
        self.double()
        self.gates = [torch.ones(3, 1, 1, dtype=torch.float64), torch.ones(5, dtype=torch.float64)]

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.one(x)) * self.gates[0], 2).flatten(1)
        return self.three(torch.tanh(self.two(x)) * self.gates[1])


def test_a_features_utility_is_that_of_a_gate_behind_its_activation():
    model = Gated()
    for gate in model.gates:
        gate.requires_grad_()
    features = [
        (model.one.weight, model.one.bias, model.two.weight),
        (model.two.weight, None, [model.three.weight]),
    ]
    optimizer = UPGD(model.parameters(), sigma=0.0, beta_utility=0.0, scope="feature", features=features)
    x, y = torch.randn(4, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    found = [optimizer.state[model.one.bias]["unit_utility"], optimizer.state[model.two.weight]["unit_utility"]]
    for utility, gate in zip(found, model.gates):
        assert torch.allclose(utility, -gate.grad.flatten(), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("scaling", ["global", "local"])
def test_feature_wise_steps_take_unit_groups_and_replicas(scaling):
    alone = [models.convnet((1, 6, 6), 3, width=4, seed=seed).double() for seed in range(2)]
    together = stack_models(alone)
    settings = {"lr": 0.1, "sigma": 0.1, "scope": "feature", "scaling": scaling}
    both = UPGD(together.parameters(), features=find_unit_groups(together), replicas=2, seed=[3, 4], **settings)
    single = [
        UPGD(m.parameters(), features=find_unit_groups(m), seed=seed, **settings) for m, seed in zip(alone, (3, 4))
    ]
    x, y = torch.randn(2, 5, 1, 6, 6, dtype=torch.float64), torch.randint(3, (2, 5))
    for _ in range(5):
        both.zero_grad()
        sum(F.cross_entropy(out, own) for out, own in zip(together(x), y)).backward()
        both.step()
        for i, model in enumerate(alone):
            single[i].zero_grad()
            F.cross_entropy(model(x[i]), y[i]).backward()
            single[i].step()
    for i, model in enumerate(alone):
        for p, q in zip(model.parameters(), together.parameters()):
            assert torch.allclose(p, q[i], rtol=0, atol=1e-6)


def test_parameters_of_no_unit_take_plain_steps():
    model = models.mlp(4, 3, hidden=(8,)).double()
    twin = models.mlp(4, 3, hidden=(8,)).double()
    optimizer = UPGD(model.parameters(), lr=0.1, sigma=1.0, scope="feature", features=find_unit_groups(model))
    plain = PerturbedSGD(twin.parameters(), lr=0.1, sigma=0.0)
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randint(3, (5,))
    for net, own in ((model, optimizer), (twin, plain)):
        F.cross_entropy(net(x), y).backward()
        own.step()
    assert torch.equal(model.head.weight, twin.head.weight)
    assert not torch.equal(model.body[1].weight, twin.body[1].weight)


def test_frozen_hidden_layers_have_no_gates():
    model = models.mlp(4, 3, hidden=(8, 6))
    groups = find_unit_groups(model)
    model.body[3].requires_grad_(False)
    optimizer = UPGD(model.parameters(), scope="feature", features=groups)
    F.cross_entropy(model(torch.randn(5, 4)), torch.randint(3, (5,))).backward()
    before = model.body[1].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model.body[1].weight, before)
    assert all("unit_utility" not in state for state in optimizer.state.values())


def test_settings_that_do_not_fit_together_are_refused():
    model = models.mlp(4, 3, hidden=(8, 6))
    params = list(model.parameters())
    with pytest.raises(ConfigError, match="needs second derivatives"):
        UPGD(params, order=2)
    with pytest.raises(ConfigError, match="needs to know the units"):
        UPGD(params, scope="feature")
    with pytest.raises(ConfigError, match="do not make the inputs"):
        UPGD(params, scope="feature", features=[(params[0], params[1], params[4])])
    with pytest.raises(ConfigError, match="does not belong to weights"):
        UPGD(params, scope="feature", features=[(params[0], params[3], params[2])])
    with pytest.raises(ConfigError, match="name each layer once"):
        UPGD(params, scope="feature", features=[(params[0], None, params[2])] * 2)
    with pytest.raises(ConfigError, match="there are none"):
        UPGD(params, scope="feature", features=[])
    with pytest.raises(ConfigError, match="order=3"):
        UPGD(params, order=3)
    for name in ("scope", "scaling", "noise", "variant"):
        with pytest.raises(ConfigError, match=f"unknown {name}"):
            UPGD(params, **{name: "other"})
    with pytest.raises(ConfigError, match="beta_utility"):
        UPGD(params, beta_utility=1.0)
