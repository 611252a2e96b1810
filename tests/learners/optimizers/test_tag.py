"""TAG against the plain optimizers, its own equations and the released code's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from driftline import models
from driftline.errors import ConfigError
from driftline.learners.optimizers import TAG

PLAIN = {
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.01, alpha=0.99, eps=1e-8),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=0.01, eps=1e-8),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
}


def gradients(count, seed=0, shape=(3, 4)):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw) for _ in range(count)]


def follow(optimizer, p, grads):
    for grad in grads:
        p.grad = grad.clone()
        optimizer.step()


def parameter():
    return nn.Parameter(torch.zeros(3, 4))


@pytest.mark.parametrize("base", PLAIN)
def test_one_task_is_the_plain_optimizer(base):
    p, q = parameter(), parameter()
    follow(TAG([p], lr=0.01, base=base), p, gradients(20))
    follow(PLAIN[base]([q]), q, gradients(20))
    assert torch.allclose(p, q, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("base", PLAIN)
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_three_tasks_follow_the_equations(base, variant):
    """The reference is the update written out for one tensor, all of a task's gradients at hand."""
    p = parameter()
    optimizer = TAG([p], lr=0.01, b=2.0, base=base, variant=variant)
    beta2 = 0.999 if base == "adam" else 0.99
    theta, done = torch.zeros(3, 4, dtype=torch.float64), []
    for task in range(3):
        optimizer.begin_task(task)
        m = v = torch.zeros(3, 4, dtype=torch.float64)
        for n, grad in enumerate(gradients(7, seed=task), 1):
            follow(optimizer, p, [grad])
            g = grad.double()
            m = 0.9 * m + 0.1 * g
            v = v + g**2 if base == "adagrad" else beta2 * v + (1 - beta2) * g**2
            correction = 1 - beta2**n if base == "adam" else 1.0
            own = v / (correction if variant == "paper" else 1.0)
            total = own * (math.exp(-2.0) if done else 1.0)
            for m_old, v_old in done:
                cosine = (m * m_old).sum() / (m.norm() * m_old.norm())
                finished = 1 - beta2**7 if base == "adam" and variant == "paper" else 1.0
                total = total + torch.exp(-2.0 * cosine) * v_old / finished
            divisor = total.sqrt() / (correction**0.5 if variant == "released" else 1.0) + 1e-8
            theta = theta - 0.01 * (m / (1 - 0.9**n) if base == "adam" else g) / divisor
        done.append((m, v))
        assert torch.allclose(p.double(), theta, rtol=1e-4, atol=1e-6)


def test_agreement_with_an_earlier_task_makes_steps_larger_and_conflict_smaller():
    moved = {}
    for sign in (1.0, -1.0):
        p = parameter()
        optimizer = TAG([p], lr=0.01)
        follow(optimizer, p, [torch.ones(3, 4)] * 30)
        optimizer.begin_task(1)
        before = p.detach().clone()
        follow(optimizer, p, [sign * torch.ones(3, 4)])
        moved[sign] = (p - before).abs().mean().item()
    assert moved[1.0] > math.exp(4) * moved[-1.0]  # sqrt(e^5 / e^-5), less what the first step's own v adds


def test_a_task_that_comes_back_goes_on_with_its_moments():
    p = parameter()
    optimizer = TAG([p], lr=0.01)
    follow(optimizer, p, gradients(5))
    kept = optimizer.state[p]["second 0"].clone()
    optimizer.begin_task(1)
    follow(optimizer, p, gradients(5, seed=1))
    assert torch.equal(optimizer.state[p]["second 0"], kept)
    optimizer.begin_task(0)
    follow(optimizer, p, [torch.zeros(3, 4)])
    assert torch.allclose(optimizer.state[p]["second 0"], 0.99 * kept)


def test_moments_of_zero_do_no_harm():
    p = parameter()
    optimizer = TAG([p])
    follow(optimizer, p, [torch.zeros(3, 4)] * 2)
    optimizer.begin_task(1)
    follow(optimizer, p, [torch.zeros(3, 4), torch.ones(3, 4)])
    assert p.isfinite().all()


def test_a_task_without_steps_weighs_nothing():
    p, q = parameter(), parameter()
    told, plain = TAG([p]), TAG([q])
    for task in (3, 1, 2):
        told.begin_task(task)
    follow(told, p, gradients(3))
    follow(plain, q, gradients(3))
    assert torch.equal(p, q)


def test_each_replica_has_its_own_agreement():
    together = nn.Parameter(torch.zeros(2, 3, 4))
    optimizer = TAG([together], lr=[0.01, 0.02], b=[5.0, 1.0], replicas=2)
    alone = [parameter(), parameter()]
    singles = [TAG([alone[0]], lr=0.01), TAG([alone[1]], lr=0.02, b=1.0)]
    for task in range(2):
        for one in (optimizer, *singles):
            one.begin_task(task)
        for a, b in zip(gradients(4, seed=2 * task), gradients(4, seed=2 * task + 1)):
            follow(optimizer, together, [torch.stack((a, b))])
            follow(singles[0], alone[0], [a])
            follow(singles[1], alone[1], [b])
    for i in range(2):
        assert torch.allclose(together[i], alone[i], atol=1e-6)


def test_names_and_numbers_are_checked():
    model = models.mlp(4, 3)
    with pytest.raises(ConfigError, match="unknown base 'rms'"):
        TAG(model.parameters(), base="rms")
    with pytest.raises(ConfigError, match="unknown variant"):
        TAG(model.parameters(), variant="code")
    with pytest.raises(ConfigError, match="b=-1"):
        TAG(model.parameters(), b=-1.0)
