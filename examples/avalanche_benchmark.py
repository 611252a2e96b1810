"""An Avalanche benchmark, played here: its experiences are segments, its test stream is held out."""

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset as tensor_dataset

import driftline
from driftline.interop.avalanche import from_avalanche
from driftline.learners import GradientLearner, ReservoirReplay
from driftline.metrics import HeldOut, NearFutureAccuracy, OnlineAccuracy


def main() -> None:
    digits = driftline.load("digits")
    train, test = tensor_dataset(digits.x, digits.y), tensor_dataset(digits.test.x, digits.test.y)
    benchmark = nc_benchmark(train, test, n_experiences=5, task_labels=False, seed=1)

    stream = from_avalanche(benchmark, shuffle=True, seed=1)
    model = driftline.models.mlp(stream.input_shape, len(stream.classes), seed=1)
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1), replay=ReservoirReplay(200))
    metrics = [OnlineAccuracy(), NearFutureAccuracy(shift=100), HeldOut(every=200)]
    report = driftline.run(stream, learner, batch_size=10, metrics=metrics)
    for name in ("online_accuracy", "near_future_accuracy", "a_auc", "forgetting"):
        print(f"{name:22} {report.results[name]:.3f}")


if __name__ == "__main__":
    main()
