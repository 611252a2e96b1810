"""States of a simulated environment, whose values under a policy are to be predicted (reinforcement learning)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from driftline.errors import ConfigError, ScenarioError
from driftline.scenarios.checks import between, choice, whole
from driftline.stream.dataset import Dataset
from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment
from driftline.stream.transitions import Transitions

if TYPE_CHECKING:
    import gymnasium

Policy = Callable[[np.ndarray], Any]
"""The action for an observation."""
NEGLIGIBLE = 1e-3
"""Weight below which later rewards are left out of a return."""


def balance(observation: np.ndarray) -> int:
    """Push the cart of CartPole to the side to which its pole is falling."""
    return int(observation[2] + observation[3] > 0)


POLICIES: dict[str, Policy] = {"balance": balance}


@scenario
def policy_evaluation(
    rng: torch.Generator,
    environment: str = "CartPole-v1",
    samples: int = 20_000,
    policy: str | Policy = "balance",
    explore: float | Sequence[float] = (1.0, 0.2),
    gamma: float = 0.99,
    longest: int = 500,
) -> Iterator[Segment]:
    """Predict the return from each state of a simulated environment, while the policy that acts in it changes slowly.

    Makes its own data, by playing an environment of gymnasium: called without a dataset. A label holds what followed:
    see :class:`~driftline.stream.transitions.Transitions`, :class:`~driftline.learners.TDLoss`, which learns from it,
    and :class:`~driftline.metrics.CriticError`, which compares predictions with the returns.

    Parameters
    ----------
    rng : seed
        Of the environment and of random actions.
    environment : str
        Name for ``gymnasium.make``; its observations must be arrays. Its own limit of steps is left out.
    samples : int
        Length of the stream, in steps of the environment.
    policy : str or callable
        ``"balance"`` (for CartPole), or ``policy(observation)``, which gives an action.
    explore : float or sequence of float
        Share of random actions, 0 to 1. Several: it goes from each to the next in a straight line; between two of
        them is a segment, all of the same length.
    gamma : float
        Discount, 0 to below 1.
    longest : int
        Steps after which an episode is cut off and another begins. The state there is not the last one: its value
        still counts, and returns go on to what would have followed.

    Raises
    ------
    ConfigError
        When gymnasium is not installed, or does not know the environment.
    ScenarioError
        For a number out of range, or observations that are not arrays of numbers.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.policy_evaluation(seed=0, samples=200, explore=(1.0, 0.5, 1.0))
    >>> [len(segment) for segment in stream.segments], stream.input_shape, stream.classes
    ([100, 100], (4,), ())
    >>> x, y = stream.read(0, 3)
    >>> y.shape, bool((y[0, 3:] == x[1]).all())
    (torch.Size([3, 7]), True)
    """
    shares = [explore, explore] if isinstance(explore, (int, float)) else list(explore)
    if len(shares) < 2:
        raise ScenarioError(f"explore={explore!r}: give one share of random actions, or at least two to go between")
    for share in shares:
        between("explore", share, 0, 1)
    whole("samples", samples, len(shares) - 1)
    whole("longest", longest, 1)
    between("gamma", gamma, 0, 1 - 1e-6)
    if isinstance(policy, str):
        choice("policy", policy, [*POLICIES])
        policy = POLICIES[policy]

    env = _made(environment, rng)
    places = np.linspace(0, 1, len(shares))

    def act(observation: np.ndarray, step: int) -> object:
        share = np.interp(step / samples, places, shares)
        explores = float(torch.rand((), generator=rng)) < share
        return env.action_space.sample() if explores else policy(observation)

    try:
        episodes = _episodes(env, act, samples, gamma, longest)
    finally:
        env.close()
    states = torch.cat([states for states, _ in episodes])[:samples]
    y = torch.cat([seen.packed() for _, seen in episodes])[:samples]
    data = Segment.of(Dataset(states, y, name=str(environment)))
    ends = [round(samples * i / (len(shares) - 1)) for i in range(len(shares))]
    for i, (start, stop) in enumerate(itertools.pairwise(ends)):
        yield data.take(stop - start, start).named(f"explore {shares[i]:g} to {shares[i + 1]:g}")


def _made(environment: str, rng: torch.Generator) -> gymnasium.Env[Any, Any]:
    """Return the environment, its randomness seeded."""
    try:
        import gymnasium
    except ImportError as error:
        raise ConfigError('policy_evaluation needs gymnasium; pip install "driftline[rl]"') from error
    try:
        env = gymnasium.make(environment, max_episode_steps=-1)
    except gymnasium.error.Error as error:
        raise ConfigError(f"environment={environment!r}: gymnasium does not make it: {error}") from error
    if not isinstance(env.observation_space, gymnasium.spaces.Box):
        raise ScenarioError(f"{environment}: its observations are {env.observation_space}; they must be arrays (Box)")
    seeds = torch.randint(2**31, (2,), generator=rng).tolist()
    env.reset(seed=seeds[0])
    env.action_space.seed(seeds[1])
    return env


def _episodes(
    env: gymnasium.Env[Any, Any],
    act: Callable[[np.ndarray, int], object],
    samples: int,
    gamma: float,
    longest: int,
) -> list[tuple[torch.Tensor, Transitions]]:
    """Play episodes until there are enough samples; each goes on beyond what is kept of it as far as returns need."""
    tail = 0 if gamma == 0 else int(np.ceil(np.log(NEGLIGIBLE) / np.log(gamma)))
    episodes: list[tuple[torch.Tensor, Transitions]] = []
    played = 0
    while played < samples:
        observation, _ = env.reset()
        observations, ended = [np.ravel(observation)], False
        rewards: list[float] = []
        while not ended and len(rewards) < longest + tail:
            observation, reward, ended, cut, _ = env.step(act(observation, played + len(rewards)))
            observations.append(np.ravel(observation))
            rewards.append(float(reward))
            if cut:
                break
        kept = min(len(rewards), longest)
        returns = np.zeros(len(rewards) + 1)
        for i in reversed(range(len(rewards))):
            returns[i] = rewards[i] + gamma * returns[i + 1]
        states = torch.from_numpy(np.stack(observations).astype(np.float32))
        discounts = torch.full((kept,), gamma)
        if ended and kept == len(rewards):
            discounts[-1] = 0.0
        seen = (torch.tensor(rewards[:kept]), discounts, torch.from_numpy(returns[:kept]).float())
        episodes.append((states[:kept], Transitions(*seen, states[1 : kept + 1])))
        played += kept
    return episodes
