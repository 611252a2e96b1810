"""A critic of CartPole, learned by temporal differences; it makes more updates once its plasticity has settled."""

import torch

import driftline
from driftline.learners import AdaptiveReplayRatio, GradientLearner, SlidingReplay, TDLoss
from driftline.metrics import CriticError

# The policy explores less and less, so the values of states change.
stream = driftline.scenarios.policy_evaluation(seed=0, samples=2000, explore=(1.0, 0.3), gamma=0.9)
critic = driftline.models.mlp(stream.input_shape, 1, hidden=(64, 64))
ratio = AdaptiveReplayRatio(levels=(0.5, 2), gap=0.02, every=400, window=100)
learner = GradientLearner(
    critic,
    torch.optim.Adam(critic.parameters(), lr=1e-3),
    TDLoss(critic, tau=0.05),
    replay=SlidingReplay(1000),
    replay_batch=32,
    replay_ratio=ratio,
)
report = driftline.run(stream, learner, batch_size=4, metrics=[CriticError(window=500)])
for name, value in report.results.items():
    print(f"{name:32} {value:8.3f}")
print("updates per batch:", ratio.levels[0], *(f"-> {to} at sample {at}" for at, to in ratio.changes))
