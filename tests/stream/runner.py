"""A run in its own process, for tests that kill it: ``python -m tests.stream.runner OUT [--resume]``."""

from __future__ import annotations

import sys

import torch

import driftline
from driftline.learners import GradientLearner, ReservoirReplay
from driftline.metrics import HeldOut, NearFutureAccuracy, OnlineAccuracy


@driftline.scenario
def noisy_tasks(data, rng):
    """Tasks with random transforms, late and missing labels: everything that has state."""
    for task in range(5):
        part = data.classes(2 * task, 2 * task + 1).shuffle(rng)
        if task % 2:
            part = part.transform(add_noise, random=True).delay_labels(37)
        if task == 2:
            part = part.label_fraction(0.5)
        yield part.named(f"task {task}")


def add_noise(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def play(out, resume=False, checkpoint_every=50, hidden=48, **options) -> driftline.Report:
    stream = noisy_tasks(driftline.load("digits"), seed=3)
    torch.default_generator.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, hidden),
        torch.nn.BatchNorm1d(hidden),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(hidden, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    learner = GradientLearner(model, optimizer, replay=ReservoirReplay(100, seed=1))
    return driftline.run(
        stream,
        learner,
        batch_size=4,
        metrics=[OnlineAccuracy(window=200), NearFutureAccuracy(64), HeldOut(every=150)],
        seed=5,
        out=out,
        resume=resume,
        checkpoint_every=checkpoint_every,
        progress=False,
        **options,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("ready", flush=True)
    play(sys.argv[1], resume="--resume" in sys.argv)
