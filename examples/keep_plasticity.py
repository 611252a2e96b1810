"""Continual backprop, spectral regularisation and replay in one learner, and how plastic it stays."""

import driftline
from driftline.learners import GradientLearner, ReservoirReplay
from driftline.learners.normalizer import InputNormalizer
from driftline.learners.optimizers import Adam
from driftline.learners.penalties import SpectralRegularization
from driftline.learners.renewers import ContinualBackprop
from driftline.metrics import OnlineAccuracy, Plasticity

stream = driftline.scenarios.permuted_inputs(driftline.load("digits"), tasks=5)
model = driftline.models.mlp(stream.input_shape, 10, hidden=(64, 64))
learner = GradientLearner(
    model,
    Adam(model.parameters(), lr=1e-3),  # forgets what it knew of renewed units
    penalties=[SpectralRegularization(model, strength=1e-4)],
    renewers=[ContinualBackprop(model, replacement_rate=1e-3, maturity=50)],
    replay=ReservoirReplay(200),
    normalizer=InputNormalizer(),
)
metrics = [OnlineAccuracy(), Plasticity(every=1000)]
report = driftline.run(stream, learner, batch_size=10, metrics=metrics)
for name, value in report.results.items():
    if value is not None:
        print(f"{name:24} {value:10.3f}   {report.record['definitions'][name]}")
