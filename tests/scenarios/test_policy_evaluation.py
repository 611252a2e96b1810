import sys

import numpy as np
import pytest
import torch

from driftline.errors import ConfigError, ScenarioError
from driftline.scenarios import policy_evaluation
from driftline.stream.transitions import Transitions


def played(**parameters):
    stream = policy_evaluation(seed=3, **{"samples": 600, **parameters})
    x, y = stream.read(0, len(stream))
    return x, Transitions.of(y)


def test_the_next_state_is_the_next_sample_until_an_episode_ends():
    x, seen = played()
    ends = (seen.discounts == 0).nonzero().flatten().tolist()
    assert len(ends) > 3
    inside = [i for i in range(len(x) - 1) if i not in ends]
    assert torch.equal(seen.following[inside], x[[i + 1 for i in inside]])
    # Every start of CartPole is within 0.05 of upright; every end is out of bounds.
    assert bool((x[[e + 1 for e in ends if e + 1 < len(x)]].abs() <= 0.05).all())
    last = seen.following[ends]
    assert bool(((last[:, 0].abs() > 2.4) | (last[:, 2].abs() > 0.2095)).all())


def test_returns_are_the_discounted_sums_of_what_follows():
    _, seen = played(gamma=0.9)
    for i in range(len(seen.rewards) - 1):
        expected = seen.rewards[i] + seen.discounts[i] * seen.returns[i + 1]
        torch.testing.assert_close(seen.returns[i], expected)


def test_an_episode_that_is_cut_off_counts_on_what_would_have_followed():
    x, seen = played(explore=0.0, longest=20, gamma=0.9)
    assert bool((seen.discounts == 0.9).all())
    # The pole stands much longer than 20 steps: the return is that of an endless episode, but for what is negligible.
    torch.testing.assert_close(seen.returns, torch.full((len(x),), 10.0), rtol=2e-3, atol=0)
    assert bool((x[20].abs() <= 0.05).all()) and not torch.equal(seen.following[19], x[20])


def test_less_exploring_keeps_the_pole_up_for_longer():
    _, seen = played(samples=2000, explore=(1.0, 0.0))
    ends = seen.discounts == 0
    assert ends[:500].sum() > 3 * ends[-500:].sum()


def test_segments_go_between_the_shares_of_exploring():
    stream = policy_evaluation(seed=0, samples=301, explore=(1, 0.5, 1, 0))
    assert [len(s) for s in stream.segments] == [100, 101, 100]
    assert [s.name for s in stream.segments] == ["explore 1 to 0.5", "explore 0.5 to 1", "explore 1 to 0"]
    assert len(policy_evaluation(seed=0, samples=50, explore=0.3).segments) == 1


def idle(observation):
    assert observation.shape == (3,)
    return np.zeros(1, dtype=np.float32)


def test_any_environment_with_arrays_and_any_policy_can_be_played():
    stream = policy_evaluation(seed=0, environment="Pendulum-v1", samples=60, policy=idle, explore=(0.5, 0), longest=25)
    assert stream.input_shape == (3,) and bool((Transitions.of(stream.read(0, 60)[1]).rewards <= 0).all())
    assert stream.describe()["parameters"]["policy"] == "idle"


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"environment": "CartPol-v1"}, ConfigError, "gymnasium does not make it"),
        ({"environment": "Blackjack-v1"}, ScenarioError, r"must be arrays \(Box\)"),
        ({"policy": "balanced"}, ScenarioError, "policy='balanced'"),
        ({"explore": 1.5}, ScenarioError, "explore=1.5"),
        ({"explore": ()}, ScenarioError, "at least two to go between"),
        ({"gamma": 1.0}, ScenarioError, "gamma=1.0"),
        ({"samples": 0}, ScenarioError, "samples=0"),
        ({"longest": 0}, ScenarioError, "longest=0"),
    ],
)
def test_bad_parameters_are_refused(parameters, error, message):
    with pytest.raises(error, match=message):
        policy_evaluation(**parameters)


def test_without_gymnasium_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ConfigError, match=r'pip install "driftline\[rl\]"'):
        policy_evaluation(samples=10)
