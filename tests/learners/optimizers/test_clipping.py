from __future__ import annotations

import pytest
import torch

from driftline.errors import ConfigError
from driftline.learners.optimizers import UPGD, WeightClipping
from tests.golden import golden_names
from tests.learners.optimizers.replaying import FOLDER, Recorded


def base_of(case):
    method, settings = case.config["method"], dict(case.settings)
    del settings["zeta"], settings["clip_last_layer"]
    if method.startswith("upgd"):
        optimizer = UPGD(case.params, variant="released", **settings)
        optimizer.draws = case.draws(case.params)
        return optimizer
    return (torch.optim.Adam if method.endswith("adam") else torch.optim.SGD)(case.params, **settings)


@pytest.mark.parametrize("name", golden_names(FOLDER, "*weight_clipping_*"))
def test_follows_the_recorded_run(name):
    case = Recorded(name)
    optimizer = WeightClipping(
        base_of(case),
        kappa=case.settings["zeta"],
        clip_last_layer=case.settings["clip_last_layer"],
        measure=True,
    )
    case.train(optimizer, after=lambda step: case.check("clipped_proportion", step, optimizer.clipped_proportion()))


def network(**given):
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 5, **given),
        torch.nn.Linear(5, 3),
    )
    for p in model.parameters():
        torch.nn.init.normal_(p, std=3)
    return model


def clipped(model, **given):
    optimizer = WeightClipping(torch.optim.SGD(model.parameters(), lr=0.0), **given)
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    return optimizer


def largest(model):
    return [float(p.detach().abs().max()) for p in model.parameters()]


@pytest.mark.parametrize("bias", [True, False])
def test_bounds_follow_each_layers_fan_in(bias):
    model = network(bias=bias)
    clipped(model, kappa=0.5)
    fans = [18, 18, 16, *([16] if bias else []), 5, 5]
    assert largest(model) == pytest.approx([0.5 / fan**0.5 for fan in fans])


def test_the_last_layer_can_be_left_alone():
    model = network()
    before = [p.detach().clone() for p in model[-1].parameters()]
    clipped(model, clip_last_layer=False)
    assert all(torch.equal(p, old) for p, old in zip(model[-1].parameters(), before))
    assert largest(model)[0] == pytest.approx(18**-0.5)


def test_frozen_parameters_are_left_alone():
    model = network()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    clipped(model)
    assert torch.equal(model[0].weight, before)


def test_replicas_have_their_own_bounds():
    p = torch.nn.Parameter(torch.full((2, 3, 4), 9.0))
    p.grad = torch.zeros_like(p)
    optimizer = WeightClipping(torch.optim.SGD([p], lr=0.0), kappa=[1.0, 20.0], measure=True, replicas=2)
    optimizer.step()
    assert p[0].unique().tolist() == [0.5]
    assert p[1].unique().tolist() == [9.0]
    assert optimizer.clipped_proportion().tolist() == [1.0, 0.0]


def test_the_state_is_the_wrapped_optimizers_own():
    model = network()
    optimizer = WeightClipping(torch.optim.Adam(model.parameters()))
    model(torch.ones(1, 2, 4, 4)).sum().backward()
    optimizer.step()
    other = WeightClipping(torch.optim.Adam(model.parameters()))
    other.load_state_dict(optimizer.state_dict())
    p = next(model.parameters())
    assert torch.equal(other.state[p]["exp_avg"], optimizer.optimizer.state[p]["exp_avg"])
    assert other.param_groups is other.optimizer.param_groups


def test_what_is_not_measured_is_said():
    with pytest.raises(ConfigError, match="measure=True"):
        clipped(network()).clipped_proportion()


def test_settings_out_of_range_are_refused():
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="kappa"):
        WeightClipping(base, kappa=0.0)
    with pytest.raises(ConfigError, match="give a torch.optim.Optimizer"):
        WeightClipping(model)
    with pytest.raises(ConfigError, match="kappa has 2 values, but there are 3 replicas"):
        WeightClipping(base, kappa=[1.0, 2.0], replicas=3)
