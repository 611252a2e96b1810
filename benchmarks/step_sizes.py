"""Step sizes under shift: the best constant one, and the schedule, on linear regression that drifts.

    python benchmarks/step_sizes.py                 # three minutes on one core

Fahrbach et al., "Learning Rate Schedules in the Presence of Distribution Shift" (ICML 2023): optimal schedules rise
with the shift. Regret is the sum over the stream of the squared error above the noise's variance, halved. Every
constant step size and every schedule plays the same streams; constant ones run in lockstep.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from functools import partial

import torch

import driftline
from driftline.learners import GradientLearner, squared_error
from driftline.learners.schedules import StepSizes, convex_step_sizes, regression_step_sizes
from driftline.metrics import OnlineError

GRID = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.09)


def learner(dimension: int, lr: float, rates: list[float] | None = None) -> GradientLearner:
    model = torch.nn.Linear(dimension, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    # squared_error has no half in front, so that half of a step size is the same step.
    step = torch.optim.SGD(model.parameters(), lr=lr / 2)
    schedule = None if rates is None else partial(StepSizes, rates=[rate / 2 for rate in rates])
    return GradientLearner(model, step, squared_error, schedule=schedule, compile=rates is None)


def regret(error: float | None, noise: float, samples: int) -> float:
    return math.inf if error is None or math.isnan(error) else samples * (error - noise**2) / 2


def constant(streams: list, dimension: int, noise: float) -> dict[float, list[float]]:
    """Regret of each seed for each constant step size."""
    report = driftline.run(
        streams,
        lambda seed, lr: learner(dimension, lr),
        seeds=range(len(streams)),
        grid={"lr": GRID},
        metrics=[OnlineError(window=None)],
        progress=False,
    )
    errors = report.record["replicas"]["results"]["online_squared_error"]
    by_rate = [errors[i * len(streams) : (i + 1) * len(streams)] for i in range(len(GRID))]
    return {lr: [regret(e, noise, len(streams[0])) for e in found] for lr, found in zip(GRID, by_rate)}


def scheduled(streams: list, rates: list[float], dimension: int, noise: float) -> list[float]:
    found = []
    for stream in streams:
        report = driftline.run(
            stream, learner(dimension, rates[0], rates), metrics=[OnlineError(window=None)], progress=False
        )
        found.append(regret(report.results["online_squared_error"], noise, len(stream)))
    return found


def cell(values: list[float]) -> str:
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.0f} ± {half:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--dimension", type=int, default=10)
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=8)
    chosen = parser.parse_args()
    start, d, noise = time.perf_counter(), chosen.dimension, chosen.noise
    quiet, burst = chosen.samples // 2 - chosen.samples // 40, chosen.samples // 20
    parts = {f"{shift:g}": [shift] * chosen.samples for shift in (0.0, 0.01, 0.03, 0.1, 0.3)}
    parts["bursts of 0.3"] = ([0.0] * quiet + [0.3] * burst + [0.0] * chosen.samples)[: chosen.samples]
    print("| shift | best constant | its regret | schedule, first / middle / last step | its regret | from the bound |")
    print("|---" * 6 + "|")
    for name, shift in parts.items():
        settings = {"samples": chosen.samples, "dimension": d, "noise": noise}
        # Forty equal segments, so that the burst is whole ones.
        given = [shift[i * chosen.samples // 40] for i in range(40)]
        streams = [
            driftline.scenarios.drifting_regression(seed=seed, shift=given, **settings) for seed in range(chosen.seeds)
        ]
        by_rate = constant(streams, d, noise)
        best = min(by_rate, key=lambda rate: statistics.fmean(by_rate[rate]))
        rates = regression_step_sizes(shift, noise, d)
        bound = convex_step_sizes(shift, gradient=math.sqrt(d * (noise**2 + 1)), diameter=1.0, largest=1 / (d + 2))
        middle = quiet + burst if "burst" in name else chosen.samples // 2
        cells = [
            name,
            f"{best:g}",
            cell(by_rate[best]),
            f"{rates[0]:.3f} / {rates[middle]:.3f} / {rates[-1]:.4f}",
            cell(scheduled(streams, rates, d, noise)),
            cell(scheduled(streams, bound, d, noise)),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\n{chosen.seeds} seeds, ± 95 %, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
