import copy

import pytest
import torch
from torch import nn

import driftline
from driftline import models
from driftline.errors import ConfigError, InputError
from driftline.learners import AdaptiveReplayRatio, GradientLearner, InputNormalizer, SlidingReplay, TDLoss
from driftline.metrics import CriticError
from driftline.stream.transitions import Transitions
from tests.learners.states import kept, same


def critic(seed=0):
    return models.mlp(3, 1, (8,), seed=seed)


def transitions(count=5, seed=0):
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(*shape, generator=rng)  # noqa: E731
    return draw(count, 3), Transitions(draw(count), draw(count), draw(count), draw(count, 3)).packed()


def test_the_loss_is_the_mean_squared_td_error_and_knows_no_returns():
    model = critic()
    loss = TDLoss(model)
    x, y = transitions()
    seen = Transitions.of(y)
    wanted = seen.rewards + seen.discounts * model(seen.following)[:, 0].detach()
    torch.testing.assert_close(loss(model(x), y), (model(x)[:, 0] - wanted).square().mean())
    other = y.clone()
    other[:, 2] = 99.0
    assert torch.equal(loss(model(x), other), loss(model(x), y))


def test_no_gradient_comes_through_the_target():
    model = critic()
    loss = TDLoss(model)
    x, y = transitions()
    loss(model(x), y).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in loss.target.parameters())


@pytest.mark.parametrize(("tau", "every"), [(1.0, 3), (0.1, 1), (0.5, 2)])
def test_the_target_follows_after_so_many_updates(tau, every):
    model = critic()
    expected = copy.deepcopy(model)
    loss = TDLoss(model, tau, every)
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.5), loss)
    for step in range(7):
        if step and step % every == 0:
            for old, new in zip(expected.parameters(), model.parameters()):
                old.data.lerp_(new.data, tau)
        learner.predict(transitions()[0])
        learner.learn(*transitions(seed=step))
        for old, new in zip(loss.target.parameters(), expected.parameters()):
            torch.testing.assert_close(old, new, rtol=0, atol=0)


def test_values_come_to_those_of_a_chain_with_a_loop():
    # Two states: 0 -> 1 with reward 1; 1 stays with reward 2. At a discount of 0.5: V(1) = 4, V(0) = 3.
    model = models.mlp(1, 1, (16,), seed=0)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    learner = GradientLearner(model, adam, TDLoss(model, 0.2), replay=SlidingReplay(10))
    x = torch.tensor([[0.0], [1.0]])
    y = torch.tensor([[1.0, 0.5, 0.0, 1.0], [2.0, 0.5, 0.0, 1.0]])
    for _ in range(400):
        learner.learn(x, y)
    torch.testing.assert_close(learner.predict(x), torch.tensor([[3.0], [4.0]]), rtol=0, atol=0.05)


def test_next_states_go_through_the_learners_normalizer():
    model, normalizer = critic(), InputNormalizer()
    loss = TDLoss(model, normalizer=normalizer)
    x, y = transitions()
    normalizer.update(5 + 3 * x)
    seen = Transitions.of(y)
    wanted = seen.rewards + seen.discounts * model(normalizer(seen.following))[:, 0].detach()
    torch.testing.assert_close(loss(model(x), y), (model(x)[:, 0] - wanted).square().mean())


def test_the_state_goes_on_to_the_same_bits():
    def build(seed):
        model = critic(seed)
        adam = torch.optim.Adam(model.parameters(), lr=0.01)
        ratio = AdaptiveReplayRatio(gap=0.1, every=20, window=10)
        return GradientLearner(model, adam, TDLoss(model, 0.1), replay=SlidingReplay(30), replay_ratio=ratio)

    first, second = build(0), build(1)
    for step in range(11):
        first.learn(*transitions(seed=step))
    second.load_state_dict(kept(first))
    for step in range(11, 30):
        first.learn(*transitions(seed=step))
        second.learn(*transitions(seed=step))
    assert first.replay_ratio.changes and same(first.state_dict(), second.state_dict())
    assert first.describe()["parameters"]["loss"] == {"name": "TDLoss", "tau": 0.1, "every": 1}


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: TDLoss(critic(), tau=0.0), ConfigError, "tau=0.0: must be above 0"),
        (lambda: TDLoss(critic(), tau=1.5), ConfigError, "tau=1.5"),
        (lambda: TDLoss(critic(), every=0), ConfigError, "every=0"),
        (lambda: TDLoss(critic())(torch.zeros(5, 1), torch.zeros(5)), InputError, r"shape \(5,\).* no transitions"),
        (lambda: TDLoss(critic())(torch.zeros(5, 2), torch.zeros(5, 6)), InputError, r"one value for each, \(5, 1\)"),
        (lambda: Transitions.of(torch.zeros(5, 3)), InputError, "reward, discount, return and next state"),
        (lambda: Transitions.of(torch.zeros(5, 7, dtype=torch.long)), InputError, "int64 are no transitions"),
    ],
)
def test_what_cannot_be_is_refused(act, error, message):
    with pytest.raises(error, match=message):
        act()


def test_a_critic_learns_the_values_of_cartpole_with_the_adaptive_ratio():
    stream = driftline.scenarios.policy_evaluation(seed=0, samples=1200, explore=1.0, gamma=0.9)
    model = models.mlp(stream.input_shape, 1, (32,), seed=0)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    ratio = AdaptiveReplayRatio(gap=0.02, every=200, window=100)
    memory = SlidingReplay(500)
    learner = GradientLearner(model, adam, TDLoss(model, 0.1), replay=memory, replay_batch=32, replay_ratio=ratio)
    results = driftline.run(stream, learner, batch_size=4, metrics=[CriticError(window=300)]).results
    returns = stream.read(900, 1200)[1][:, 2]
    assert ratio.changes
    assert results["critic_squared_error_window"] < 0.85 * float(returns.var())


def test_a_model_with_batch_norm_is_a_target_in_evaluation():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    loss = TDLoss(model, tau=0.5)
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1), loss)
    for step in range(3):
        learner.learn(*transitions(seed=step))
    assert not loss.target.training and model.training
    assert loss.target[1].running_mean.abs().sum() > 0
