"""Six runs at once: three seeds of two step sizes in lockstep, with a mean and an interval at the end."""

import torch

import driftline
from driftline.learners import GradientLearner
from driftline.metrics import OnlineAccuracy

stream = driftline.scenarios.permuted_inputs(driftline.load("digits"), tasks=4)


def make(seed, lr):
    """One learner; every argument but the seed comes from the grid."""
    model = driftline.models.mlp(stream.input_shape, 10, hidden=(64,), seed=seed)
    return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=lr))


report = driftline.run(
    stream, make, seeds=range(3), grid={"lr": [0.02, 0.1]}, batch_size=10, metrics=[OnlineAccuracy()]
)
replicas = report.record["replicas"]
for settings, seed, accuracy in zip(replicas["settings"], replicas["seeds"], replicas["results"]["online_accuracy"]):
    print(f"lr {settings['lr']:<5} seed {seed}: {accuracy:.3f}")
