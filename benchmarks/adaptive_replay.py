"""The adaptive replay ratio beside fixed ones: online error and plasticity on streams of classes and of values.

    DRIFTLINE_DATA=folder/of/MNIST python benchmarks/adaptive_replay.py
    DRIFTLINE_DATA=... python benchmarks/adaptive_replay.py label-permuted --seeds 10
    python benchmarks/adaptive_replay.py values --samples 20000

Parts: class-incremental (MNIST in five tasks of two classes, reservoir memory), label-permuted (MNIST, ten tasks,
memory of the most recent samples) and values (a critic of CartPole under a slowly changing policy, learned by temporal
differences). Each with half an update per batch, two, and the adaptive ratio between them, with one check in twentieth
parts of the stream.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import driftline
from driftline.learners import AdaptiveReplayRatio, GradientLearner, ReservoirReplay, SlidingReplay, TDLoss
from driftline.metrics import CriticError, HeldOut, Metric, OnlineAccuracy, Plasticity

LOW, HIGH = 0.5, 2


@dataclass(frozen=True)
class Part:
    """A benchmark: its stream and learner for a seed, its metrics, batch size and the results that are shown."""

    stream: Callable[[int], driftline.Stream]
    learner: Callable[[driftline.Stream, int, object], GradientLearner]
    metrics: Callable[[int], list[Metric]]
    batch_size: int
    shown: dict[str, float]
    """Results, and what they are multiplied by."""
    gap: float


def classifier(memory: type, capacity: int, lr: float):
    def make(stream: driftline.Stream, seed: int, ratio: object) -> GradientLearner:
        model = driftline.models.mlp(stream.input_shape, 10, (100, 100), seed=seed)
        sgd = torch.optim.SGD(model.parameters(), lr=lr)
        return GradientLearner(model, sgd, replay=memory(capacity, seed=seed), replay_ratio=ratio)

    return make


def critic(stream: driftline.Stream, seed: int, ratio: object) -> GradientLearner:
    model = driftline.models.mlp(stream.input_shape, 1, (64, 64), seed=seed)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    memory = SlidingReplay(2000, seed=seed)
    return GradientLearner(model, adam, TDLoss(model, 0.05), replay=memory, replay_batch=32, replay_ratio=ratio)


def class_incremental(samples: int) -> Part:
    data, samples = driftline.load("mnist"), samples or 10_000

    def stream(seed: int) -> driftline.Stream:
        return driftline.scenarios.class_incremental(part_of(data, samples, seed), seed=seed, tasks=5)

    metrics = lambda n: [OnlineAccuracy(n // 5), HeldOut(every=n), Plasticity(every=n // 10)]  # noqa: E731
    shown = {"online_accuracy": 100, "a_last": 100, "active_units": 1, "effective_rank": 1}
    return Part(stream, classifier(ReservoirReplay, 500, 0.05), metrics, 10, shown, 0.01)


def label_permuted(samples: int) -> Part:
    data, samples = driftline.load("mnist"), samples or 20_000

    def stream(seed: int) -> driftline.Stream:
        return driftline.scenarios.permuted_labels(data, seed=seed, tasks=10, samples=samples // 10, draw="passes")

    metrics = lambda n: [OnlineAccuracy(n // 5), Plasticity(every=n // 10)]  # noqa: E731
    shown = {"online_accuracy": 100, "online_accuracy_window": 100, "active_units": 1, "effective_rank": 1}
    return Part(stream, classifier(SlidingReplay, 200, 0.05), metrics, 10, shown, 0.01)


def values(samples: int) -> Part:
    samples = samples or 4000

    def stream(seed: int) -> driftline.Stream:
        return driftline.scenarios.policy_evaluation(seed=seed, samples=samples, gamma=0.95)

    metrics = lambda n: [CriticError(n // 5), Plasticity(every=n // 10)]  # noqa: E731
    shown = {"critic_squared_error": 1, "critic_squared_error_window": 1, "active_units": 1, "effective_rank": 1}
    return Part(stream, critic, metrics, 4, shown, 0.01)


PARTS = {"class-incremental": class_incremental, "label-permuted": label_permuted, "values": values}


def part_of(data: driftline.Dataset, samples: int, seed: int) -> driftline.Dataset:
    """A random part of a dataset's training samples; the test split stays whole."""
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:samples]
    return driftline.Dataset(data.x[chosen], data.y[chosen], data.classes, data.name, data.splits)


def ratios(part: Part, length: int) -> dict[str, Callable[[], object]]:
    every = length // 20

    def adaptive(**settings: object) -> Callable[[], object]:
        return lambda: AdaptiveReplayRatio((LOW, HIGH), part.gap, every, every // 5, **settings)

    return {
        f"{LOW}": lambda: LOW,
        f"{HIGH}": lambda: HIGH,
        "adaptive": adaptive(),
        "adaptive, back off": adaptive(back_off=3 * part.gap),
    }


def interval(found: Sequence[float]) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, len(found) - 1)) * statistics.stdev(found) / math.sqrt(len(found))


def measure(part: Part, name: str, seeds: int) -> dict[str, object]:
    results: list[dict[str, float]] = []
    changes = []
    start = time.process_time()
    for seed in range(seeds):
        stream = part.stream(seed)
        ratio = ratios(part, len(stream))[name]()
        learner = part.learner(stream, seed, ratio)
        report = driftline.run(
            stream, learner, batch_size=part.batch_size, metrics=part.metrics(len(stream)), seed=seed, progress=False
        )
        results.append({key: report.results[key] for key in part.shown})
        changes.append([[position / len(stream), to] for position, to in getattr(ratio, "changes", [])])
    return {"ratio": name, "results": results, "changes": changes, "seconds": time.process_time() - start}


def row(part: Part, found: dict[str, object]) -> str:
    cells = []
    for key, scale in part.shown.items():
        each = [scale * result[key] for result in found["results"]]
        digits = 3 if key == "active_units" else 1
        cells.append(f"{statistics.mean(each):.{digits}f} ± {interval(each):.{digits}f}")
    first = [f"{100 * own[0][0]:.0f} %" if own else "never" for own in found["changes"]]
    switched = ", ".join(first) if "adaptive" in found["ratio"] else ""
    return f"| {found['ratio']} | {' | '.join(cells)} | {switched} | {found['seconds']:.0f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=0, help="length of the stream; 0: the benchmark's")
    parser.add_argument("--ratios", help="such as 0.5;adaptive; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/adaptive-replay"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("once")
    chosen.out.mkdir(parents=True, exist_ok=True)
    for wanted in chosen.parts or PARTS:
        part = PARTS[wanted](chosen.samples)
        print(f"\n{wanted}: {len(part.stream(0))} samples, {chosen.seeds} seeds\n")
        print(f"| updates per batch | {' | '.join(part.shown)} | first switch at | seconds of CPU |", flush=True)
        print("|---" * (3 + len(part.shown)) + "|", flush=True)
        found = []
        for name in [n for n in ratios(part, 20) if not chosen.ratios or n in chosen.ratios.split(";")]:
            found.append(measure(part, name, chosen.seeds))
            print(row(part, found[-1]), flush=True)
            (chosen.out / f"{wanted}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
