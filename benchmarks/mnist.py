"""The basic learners on MNIST, one pass: class-incremental and Si-Blurry, mean and 95 % interval over seeds.

    DRIFTLINE_DATA=... python benchmarks/mnist.py --seeds 5     # about fifteen minutes on two cores

Prints one Markdown table per scenario; the runs are recorded under --out, for ``driftline report``.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch

from driftline.plan import Plan

SCENARIOS = {"class_incremental": {"tasks": 5}, "si_blurry": {"tasks": 5, "disjoint": 50, "blurry": 10}}
LEARNERS: dict[str, tuple[str, dict[str, object]]] = {
    "plain SGD": ("sgd", {"lr": 0.05}),
    "experience replay, 500": ("er", {"lr": 0.05, "capacity": 500}),
    "experience replay, 2000": ("er", {"lr": 0.05, "capacity": 2000}),
    "nearest class mean": ("ncm", {}),
    "streaming LDA": ("slda", {}),
}
COLUMNS = {
    "online_accuracy": "online",
    "near_future_accuracy": "near future",
    "blind_accuracy": "blind",
    "a_auc": "A_AUC",
    "a_last": "A_last",
    "forgetting": "forgetting",
}
# Two-sided 95 % points of Student's t for 1, 2, ... degrees of freedom.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def interval(values: list[float]) -> str:
    """Mean and half-width of the 95 % interval, in per cent."""
    mean = 100 * statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    half = STUDENT[min(len(values), 10) - 2] * 100 * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.1f} ± {half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--out", type=Path, default=Path("runs/mnist"))
    chosen = parser.parse_args()
    print(f"{chosen.data}, batch 10, MLP 784-256-256-10, seeds 1-{chosen.seeds}; torch {torch.__version__}, ", end="")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads\n")
    for scenario, parameters in SCENARIOS.items():
        print(f"| {scenario} {parameters} | shift | {' | '.join(COLUMNS.values())} | s/run |")
        print("|---" * (len(COLUMNS) + 3) + "|")
        for label, (learner, settings) in LEARNERS.items():
            results = []
            start = time.perf_counter()
            for seed in range(1, chosen.seeds + 1):
                plan = Plan(
                    scenario,
                    chosen.data,
                    learner,
                    seed=seed,
                    scenario_parameters=parameters,
                    learner_parameters=settings,
                )
                out = chosen.out / scenario / f"{label.replace(' ', '-').replace(',', '')}-{seed}"
                results.append(plan.run(out, name=label, overwrite=True, progress=False).results)
            took = (time.perf_counter() - start) / chosen.seeds
            cells = [interval([float(r[name] or 0.0) for r in results]) for name in COLUMNS]
            shifts = sorted({int(r["near_future_shift"] or 0) for r in results})
            print(f"| {label} | {'-'.join(map(str, shifts))} | {' | '.join(cells)} | {took:.0f} |", flush=True)
        print()


if __name__ == "__main__":
    main()
