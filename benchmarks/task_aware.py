"""Learners that are told the task: TAG beside its base optimizers, and sparse training beside dense, task-incremental.

    python benchmarks/task_aware.py --data digits --samples 1400 --jobs 8    # both streams, a table each
    DRIFTLINE_DATA=folder/of/MNIST python benchmarks/task_aware.py split --methods "SGD;TAG-RMSProp"

"split" is five tasks of two digits, each with a head of its own; "permuted" five permutations of the pixels with one
head. The samples of a task come in batches of 10, to an MLP with hidden layers of 100 and 100 units. The step size of
every method is chosen from the same grid by the average accuracy of four runs with seeds that are not used again; a
star says that the best one lies at the grid's edge. All seeds and step sizes of a method run in lockstep. Accuracies
are of up to 2000 test images.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import torch
from torch import nn

import driftline
from driftline.learners import GradientLearner, TaskCrossEntropy
from driftline.learners.optimizers import TAG
from driftline.learners.renewers import SparseTraining
from driftline.metrics import HeldOut

TASKS, TUNING_SEEDS = 5, (100, 101, 102, 103)
SHOWN = ("average_accuracy", "learning_accuracy", "forgetting")
Make = Callable[[nn.Module, int, float], dict[str, object]]
"""Parts of a gradient learner for a model, a seed and a step size."""


def plain(kind: type[torch.optim.Optimizer], **given: object) -> Make:
    return lambda model, seed, lr: {"optimizer": kind(model.parameters(), lr=lr, **given)}


def tag(**given: object) -> Make:
    return lambda model, seed, lr: {"optimizer": TAG(model.parameters(), lr=lr, **given)}


def sparse(samples: int, rescaled: bool = False, **given: object) -> Make:
    """SGD with 20 % of the weights, ten exchanges for each task; ``rescaled`` by how few a unit hears at first."""
    steps = samples // 10
    settings = {"density": 0.2, "every": steps // 10, "decay": steps - steps // 10, **given}

    def make(model: nn.Module, seed: int, lr: float) -> dict[str, object]:
        renewer = SparseTraining(model, seed=seed, **settings)
        if rescaled:
            with torch.no_grad():
                for name, mask in renewer.masks.items():
                    model.get_parameter(name).mul_(mask.float().mean() ** -0.5)
        return {"optimizer": torch.optim.SGD(model.parameters(), lr=lr), "renewers": [renewer]}

    return make


def methods(samples: int) -> dict[str, Make]:
    return {
        "SGD": plain(torch.optim.SGD),
        "RMSProp": plain(torch.optim.RMSprop),
        "TAG-RMSProp": tag(),
        "TAG-RMSProp, b = 1": tag(b=1.0),
        "Adagrad": plain(torch.optim.Adagrad),
        "TAG-Adagrad": tag(base="adagrad"),
        "Adam": plain(torch.optim.Adam),
        "TAG-Adam": tag(base="adam"),
        "TAG-Adam, released": tag(base="adam", variant="released"),
        "static sparse": sparse(samples, fraction=0.0),
        "sparse, random": sparse(samples, growth="random"),
        "sparse, unfired": sparse(samples, growth="unfired"),
        "sparse, gradient": sparse(samples, growth="gradient"),
        "sparse, momentum": sparse(samples, growth="momentum"),
        "sparse, random, uniform": sparse(samples, growth="random", allocation="uniform"),
        "sparse, random, isolated": sparse(samples, growth="random", tasks="isolated"),
        "static sparse, rescaled": sparse(samples, True, fraction=0.0),
        "sparse, random, rescaled": sparse(samples, True, growth="random"),
        "sparse, unfired, rescaled": sparse(samples, True, growth="unfired"),
        "sparse, gradient, rescaled": sparse(samples, True, growth="gradient"),
        "sparse, momentum, rescaled": sparse(samples, True, growth="momentum"),
        "sparse, random, isolated, rescaled": sparse(samples, True, growth="random", tasks="isolated"),
    }


RATES = {
    "SGD": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "adaptive": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
}


@driftline.scenario
def split(data, rng, samples=3000):
    """Five tasks of two digits."""
    for i in range(TASKS):
        task = data.classes(2 * i, 2 * i + 1).shuffle(rng)
        yield task.repeat(-(-samples // len(task))).take(samples).named(f"task {i}")


def load(name: str) -> driftline.Dataset:
    """Return data with the first 2000 of its test images."""
    data = driftline.load(name)
    return replace(data, splits={"test": replace(data.test, x=data.test.x[:2000], y=data.test.y[:2000])})


def stream(name: str, data: driftline.Dataset, samples: int, seed: int) -> driftline.Stream:
    if name == "split":
        return split(data, seed=seed, samples=samples)
    return driftline.scenarios.permuted_inputs(data, seed=seed, tasks=TASKS, samples=samples)


def play(
    name: str, data: driftline.Dataset, method: str, samples: int, seeds: Sequence[int], rates: Sequence[float]
) -> dict[str, list[float]]:
    """Return what each replica reached: seeds within step sizes."""
    make = methods(samples)[method]

    def learner(seed: int, lr: float) -> GradientLearner:
        model = driftline.models.mlp(data.input_shape, 10, (100, 100), seed=seed)
        loss = TaskCrossEntropy() if name == "split" else nn.functional.cross_entropy
        return GradientLearner(model, loss=loss, **make(model, seed, lr))

    report = driftline.run(
        lambda seed: stream(name, data, samples, seed),
        learner,
        seeds=seeds,
        grid={"lr": list(rates)},
        batch_size=10,
        metrics=[HeldOut(every=None, compete="task")],
        progress=False,
    )
    found = report.record["replicas"]["results"]
    transfer = found["backward_transfer"]
    learning = [a - b * (TASKS - 1) / TASKS for a, b in zip(found["average_accuracy"], transfer)]
    return {**{k: found[k] for k in ("average_accuracy", "forgetting")}, "learning_accuracy": learning}


def interval(values: Sequence[float]) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def measure(name: str, source: str, method: str, samples: int, seeds: int) -> str:
    """Return a line of the table: the step size chosen, and what the seeds reach with it."""
    torch.set_num_threads(1)
    start, data = time.perf_counter(), load(source)
    rates = RATES["SGD" if method == "SGD" or "sparse" in method else "adaptive"]
    tuned = play(name, data, method, samples, TUNING_SEEDS, rates)["average_accuracy"]
    each = len(TUNING_SEEDS)
    scores = [statistics.fmean(tuned[i * each : (i + 1) * each]) for i in range(len(rates))]
    best = rates[scores.index(max(scores))]
    result = play(name, data, method, samples, range(seeds), [best])
    cells = [f"{100 * statistics.fmean(result[k]):.1f} ± {100 * interval(result[k]):.1f}" for k in SHOWN]
    edge = "*" if best in (rates[0], rates[-1]) else ""
    return f"| {method} | {best:g}{edge} | {' | '.join(cells)} | {time.perf_counter() - start:.0f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("streams", nargs="*", metavar="stream", help="split, permuted")
    parser.add_argument("--data", choices=("mnist", "digits"), default="mnist")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--samples", type=int, default=3000, help="per task; smaller tasks come several times over")
    parser.add_argument("--methods", default="", help="names, with semicolons; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="methods at a time")
    chosen = parser.parse_args()
    if chosen.data == "mnist" and "DRIFTLINE_DATA" not in os.environ:
        parser.error("set DRIFTLINE_DATA to the folder that holds MNIST/raw")
    wanted = chosen.methods.split(";") if chosen.methods else list(methods(chosen.samples))
    with ProcessPoolExecutor(chosen.jobs) as pool:
        lines = {
            name: [pool.submit(measure, name, chosen.data, method, chosen.samples, chosen.seeds) for method in wanted]
            for name in chosen.streams or ("split", "permuted")
        }
        for name, futures in lines.items():
            print(f"\n{name}: {TASKS} tasks of {chosen.samples}, {chosen.seeds} seeds\n", flush=True)
            print(
                "| | step size | average accuracy | learning accuracy | forgetting | time |\n|---|---|---|---|---|---|"
            )
            for future in futures:
                print(future.result(), flush=True)


if __name__ == "__main__":
    main()
