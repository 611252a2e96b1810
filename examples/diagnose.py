"""Is this model losing plasticity on this stream, and what helps? The answer in words and as a figure."""

import torch

import driftline
from driftline.learners import GradientLearner, InputNormalizer

stream = driftline.scenarios.permuted_inputs(driftline.load("digits"), tasks=8, samples=250)


def make():
    model = driftline.models.mlp(stream.input_shape, 10, hidden=(32,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    return GradientLearner(model, optimizer, normalizer=InputNormalizer())


found = driftline.diagnose(make, stream, batch_size=10, remedies=["shrink and perturb", "layer norm"])
print(found)
print("drawn to", found.figure("diagnosis.png"))
