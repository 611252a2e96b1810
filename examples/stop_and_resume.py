"""Stopping and going on: the resumed run ends with the same numbers, to the last bit."""

import tempfile
from pathlib import Path

import torch

import driftline
from driftline.learners import GradientLearner, ReservoirReplay


def play(out: Path, **options: object) -> driftline.Report:
    data = driftline.load("digits")
    model = driftline.models.convnet(data.input_shape, len(data.classes), width=8)
    learner = GradientLearner(model, torch.optim.Adam(model.parameters()), replay=ReservoirReplay(100))
    stream = driftline.scenarios.si_blurry(data, seed=3)
    return driftline.run(stream, learner, batch_size=10, out=out, checkpoint_every=200, **options)


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    whole = play(folder / "whole")
    stopped = play(folder / "parts", until=lambda step: step.position >= 500)
    resumed = play(folder / "parts", resume=True)
    print("stopped at", stopped.record["position"], "of", whole.record["position"])
    print("weights equal:", resumed.record["weights"] == whole.record["weights"])
    print("series equal:", resumed.series == whole.series)


if __name__ == "__main__":
    main()
