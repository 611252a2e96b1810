"""A scenario of your own: segments in plain Python, with labels that come late or not at all."""

import torch

import driftline
from driftline.learners import GradientLearner, ReservoirReplay
from driftline.metrics import HeldOut, NearFutureAccuracy, OnlineAccuracy
from driftline.stream import interleave


@driftline.scenario
def warehouse(data, rng, night_shift=400):
    """A camera over a belt: known goods, then new ones in the dark with late labels, then everything, half labelled."""
    yield data.classes(0, 1, 2, 3, 4).shuffle(rng).named("opening")
    old = data.classes(0, 1, 2).shuffle(rng).take(night_shift // 2)
    new = data.classes(5, 6, 7).shuffle(rng).take(night_shift // 2).transform(darken)
    yield interleave(old, new, rng=rng).delay_labels(50).named("night")
    yield data.shuffle(rng).label_fraction(0.5).named("peak")


def darken(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x


def main() -> None:
    data = driftline.load("digits")
    stream = warehouse(data, seed=1)
    model = driftline.models.mlp(data.input_shape, len(data.classes))
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1), replay=ReservoirReplay(200))
    metrics = [OnlineAccuracy(), NearFutureAccuracy(shift=100), HeldOut(every=200)]
    report = driftline.run(stream, learner, batch_size=10, metrics=metrics)
    for segment in stream.infos():
        print(f"{segment.name:10} samples {segment.start} to {segment.stop}")
    for name in ("online_accuracy", "near_future_accuracy", "blind_accuracy", "a_last"):
        print(f"{name:22} {report.results[name]:.3f}")


if __name__ == "__main__":
    main()
