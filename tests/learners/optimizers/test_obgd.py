from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from driftline.errors import ConfigError, InputError
from driftline.learners.optimizers import ObGD
from tests.golden import golden_names
from tests.learners.optimizers.replaying import FOLDER, Recorded


@pytest.mark.parametrize("name", golden_names(FOLDER, "*obgd_*"))
def test_follows_the_recorded_run(name):
    case = Recorded(name)
    optimizer = ObGD(case.params, **case.settings)
    gamma = case.settings["gamma"]
    for step in range(len(case.arrays["reward"])):
        value = case.forward(case.tensor("x", step))
        case.check("logits", step, value)
        with torch.no_grad():
            following = case.forward(case.tensor("x", step + 1))
            done, reward = case.tensor("done", step), case.tensor("reward", step)
            delta = reward + gamma * following * ~done - value
        case.check("delta", step, delta)
        optimizer.zero_grad()
        (-value).sum().backward()
        optimizer.step(delta, reset=bool(done))
        for label, p in zip(case.names, case.params):
            case.check(f"param/{label}", step + 1, p)
            case.check(f"state/eligibility_trace/{label}", step, optimizer.state[p]["eligibility_trace"])
            if "adaptive" in name:
                case.check(f"state/v/{label}", step, optimizer.state[p]["exp_avg_sq"])


def made(replicas=None, **given):
    torch.manual_seed(0)
    lead = () if replicas is None else (replicas,)
    params = [torch.nn.Parameter(torch.randn(*lead, *shape)) for shape in ((4, 3), (4,), (1, 4))]
    return params, ObGD(params, replicas=replicas, **given)


def test_a_step_of_a_loss_is_its_gradient_with_a_bounded_norm():
    params, optimizer = made(lr=1.0, kappa=2.0)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    total = sum(float(p.grad.abs().sum()) for p in params)
    for p, old in zip(params, before):
        assert torch.allclose(old - p, p.grad / (2 * total), atol=1e-6)


def test_a_small_step_is_plain_gradient_descent():
    params, optimizer = made(lr=1e-4)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    for p, old in zip(params, before):
        assert torch.allclose(old - 1e-4 * p.grad, p, atol=1e-7)


@pytest.mark.parametrize("beta2", [None, 0.99])
def test_replicas_do_what_each_would_alone(beta2):
    settings = [
        {"lr": 1.0, "gamma": 0.9, "lamda": 0.8, "kappa": 2.0},
        {"lr": 0.5, "gamma": 0.8, "lamda": 0.5, "kappa": 3.0},
    ]
    merged = {name: [s[name] for s in settings] for name in settings[0]}
    together, both = made(2, beta2=beta2, **merged)
    alone = [[torch.nn.Parameter(p.detach()[i].clone()) for p in together] for i in range(2)]
    single = [ObGD(params, beta2=beta2, **s) for params, s in zip(alone, settings)]
    draw = torch.Generator().manual_seed(1)
    for step in range(10):
        delta, ended = torch.randn(2, generator=draw), torch.tensor([step == 4, step == 7])
        for k, p in enumerate(together):
            p.grad = torch.randn(p.shape, generator=draw)
            for i in range(2):
                alone[i][k].grad = p.grad[i].clone()
        both.step(delta, reset=ended)
        for i in range(2):
            single[i].step(delta[i], reset=bool(ended[i]))
    for k, p in enumerate(together):
        for i in range(2):
            assert torch.allclose(p[i], alone[i][k], rtol=1e-5, atol=1e-6)


def test_infinite_gradients_leave_all_other_weights_where_they_are():
    params, optimizer = made()
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.randn_like(p)
    params[0].grad[1, 2] = float("inf")
    optimizer.step()
    assert params[0][1, 2].isnan()
    assert torch.equal(params[1], before[1])
    assert torch.equal(params[2], before[2])


def test_a_delta_for_each_of_the_wrong_number_of_replicas_is_refused_before_anything_changes():
    params, optimizer = made(3)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(InputError, match="delta has 2 values for 3 replicas"):
        optimizer.step(torch.ones(2))
    assert all(torch.equal(p, old) for p, old in zip(params, before))


def test_groups_must_agree_since_they_are_bounded_together():
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    with pytest.raises(ConfigError, match="bounds all parameters together"):
        ObGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.5}])


def test_a_closure_is_understood_in_torchs_place():
    params, optimizer = made(lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(params[2] @ params[0], torch.zeros(1, 3))
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(50)]
    assert losses[-1] < losses[0]
