"""Hard ASH and adaptive step sizes against ReLU and SGD on split MNIST, class-incremental, one pass.

    DRIFTLINE_DATA=folder/of/MNIST python benchmarks/hard_ash.py
    DRIFTLINE_DATA=... python benchmarks/hard_ash.py --samples 60000 --seeds 5 --methods "Hard ASH + Adagrad"

Five tasks of two classes each, in an order by the seed, batches of 64, one hidden layer of 1000 units. Nothing knows of
tasks: one head, no replay, no masking. Every method gets the same number of step sizes, chosen by accuracy on the last
10 000 training images with seeds of their own; then it runs on the test images with other seeds. "Paper's net": no
biases, the hidden layer's rows centred and of length one after each step, and no step of a weight above 0.01.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import driftline
from driftline.learners import GradientLearner
from driftline.learners.optimizers.wrapper import Wrapper
from driftline.metrics import OnlineAccuracy

TUNING_SEEDS = (101, 102)
OPTIMIZERS = {
    "SGD": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
    "Adagrad": lambda parameters, lr: torch.optim.Adagrad(parameters, lr=lr),
    "Adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, betas=(0.98, 0.9995)),
}
GRIDS = {
    "SGD": (1e-3, 2e-3, 3e-3, 5e-3, 1e-2),
    "Adagrad": (2e-4, 3e-4, 5e-4, 7e-4, 1e-3),
    "Adam": (3e-5, 5e-5, 1e-4, 2e-4, 3e-4),
}
PUBLISHED_GRID = (5e-4, 7e-4, 1e-3, 1.5e-3, 2e-3)


@dataclass(frozen=True)
class Method:
    """An activation and an optimizer, and whether the network and the steps are the paper's."""

    activation: str
    optimizer: str
    published: bool = False


ACTIVATIONS = {"ReLU": "relu", "Hard ASH": "hard-ash"}
METHODS = {f"{title} + {o}": Method(activation, o) for title, activation in ACTIVATIONS.items() for o in OPTIMIZERS}
METHODS |= {f"{title} + Adagrad (paper's net)": Method(a, "Adagrad", True) for title, a in ACTIVATIONS.items()}


class SmallSteps(Wrapper):
    """Clips each entry of a step, whatever the optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer, largest: float) -> None:
        super().__init__(optimizer)
        self.largest = largest

    def before_step(self) -> None:
        self._before = [p.detach().clone() for p in self.parameters()]

    def after_step(self) -> None:
        for p, before in zip(self.parameters(), self._before):
            p.copy_(torch.clamp(p, before - self.largest, before + self.largest))


class UnitRows:
    """Centres the rows of a layer's weight and makes them as long as one, after each step."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        self.layer = layer

    @torch.no_grad()
    def renew(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        weight = self.layer.weight
        weight.sub_(weight.mean(1, keepdim=True))
        weight.div_(weight.norm(dim=1, keepdim=True))


def build(method: Method, lr: float, input_shape: tuple[int, ...], seed: int) -> GradientLearner:
    model = driftline.models.mlp(input_shape, 10, (1000,), activation=method.activation, seed=seed)
    if not method.published:
        return GradientLearner(model, OPTIMIZERS[method.optimizer](model.parameters(), lr))
    hidden = model.body[1]
    hidden.bias = model.head.bias = None
    rows = UnitRows(hidden)
    optimizer = SmallSteps(OPTIMIZERS[method.optimizer](model.parameters(), lr), 0.01)
    rows.renew(model, optimizer)
    return GradientLearner(model, optimizer, renewers=[rows])


def first(data: driftline.Dataset, start: int, stop: int, test: driftline.Dataset) -> driftline.Dataset:
    """Return some of the training images, with what they are judged on."""
    return driftline.Dataset(data.x[start:stop], data.y[start:stop], data.classes, data.name, {"test": test})


def final(method: Method, lr: float, data: driftline.Dataset, seeds: Sequence[int]) -> tuple[list[float], list[float]]:
    """Return held-out accuracy on all classes after the stream, and online accuracy, of each seed."""
    ends, onlines = [], []
    for seed in seeds:
        stream = driftline.scenarios.class_incremental(data, seed=seed, tasks=5)
        trained, test = build(method, lr, data.input_shape, seed), data.test
        report = driftline.run(stream, trained, batch_size=64, metrics=[OnlineAccuracy()], progress=False)
        hits = [(trained.predict(x).argmax(1) == y).sum() for x, y in zip(test.x.split(1000), test.y.split(1000))]
        ends.append(int(sum(hits)) / len(test))
        onlines.append(report.results["online_accuracy"])
    return ends, onlines


def interval(values: Sequence[float]) -> str:
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{100 * statistics.fmean(values):.1f} ± {100 * half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=12_000, help="of the stream, for tuning and for the result")
    parser.add_argument("--methods", default="", help="names, with commas; default: all")
    parser.add_argument("--step-sizes", default="", help="to choose from, with commas; default: five by optimizer")
    chosen = parser.parse_args()
    given = tuple(float(lr) for lr in chosen.step_sizes.split(",") if lr)
    torch.set_num_threads(1)
    data = driftline.load("mnist", input_range=(0.0, 1.0))
    tuning = first(data, 0, min(chosen.samples, 50_000), first(data, 50_000, 60_000, data.test))
    measured = first(data, 0, chosen.samples, data.test)
    print(f"{len(measured)} samples, {chosen.seeds} seeds; step sizes by {len(TUNING_SEEDS)} other seeds\n")
    print("| | step size | accuracy at the end | online | accuracy while tuning, by step size | time |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in [n for n in METHODS if not chosen.methods or n in chosen.methods.split(",")]:
        method, start = METHODS[name], time.perf_counter()
        grid = given or (PUBLISHED_GRID if method.published else GRIDS[method.optimizer])
        tried = {lr: statistics.fmean(final(method, lr, tuning, TUNING_SEEDS)[0]) for lr in grid}
        best = max(grid, key=tried.__getitem__)
        ends, onlines = final(method, best, measured, range(chosen.seeds))
        found = ", ".join(f"{lr:g}: {100 * tried[lr]:.1f}" for lr in grid)
        seconds = f"{time.perf_counter() - start:.0f} s"
        print(f"| {name} | {best:g} | {interval(ends)} | {interval(onlines)} | {found} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
