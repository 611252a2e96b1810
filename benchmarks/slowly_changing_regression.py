"""Loss of plasticity in a minute: six learners on slowly-changing regression, 30 seeds of each in lockstep.

    make plasticity                   # 200 000 steps: a few minutes on two cores
    STEPS=1000000 make plasticity     # as published

Backpropagation gets worse than a linear learner as its inputs keep changing; continual backprop does not (Dohare et
al., "Loss of plasticity in deep continual learning", Nature 2024). Writes a figure (PNG), a page (HTML) and the table.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from pathlib import Path

import torch

import driftline
from driftline.learners import GradientLearner
from driftline.learners.losses import squared_error
from driftline.learners.optimizers import UPGD, ShrinkAndPerturb
from driftline.learners.penalties import L2Init
from driftline.learners.renewers import ContinualBackprop
from driftline.metrics.online_error import OnlineError
from driftline.report import Run, write_html

LR = 0.01
HIDDEN = 5
BINS = 50


def learner(seed: int, hidden: int = HIDDEN, optimizer=None, penalty=None, renewer=None) -> GradientLearner:
    model = driftline.models.mlp(20, 1, (hidden,) if hidden else (), seed=seed)
    step = optimizer(model.parameters(), seed) if optimizer else torch.optim.SGD(model.parameters(), lr=LR)
    return GradientLearner(
        model,
        step,
        squared_error,
        penalties=[penalty(model)] if penalty else [],
        renewers=[renewer(model, seed)] if renewer else [],
        compile=True,
    )


METHODS = {
    "backprop": lambda seed: learner(seed),
    "continual backprop": lambda seed: learner(
        seed, renewer=lambda model, seed: ContinualBackprop(model, replacement_rate=1e-3, seed=seed)
    ),
    "UPGD-W": lambda seed: learner(
        seed, optimizer=lambda p, seed: UPGD(p, lr=LR, sigma=0.1, beta_utility=0.999, weight_decay=0.01, seed=seed)
    ),
    "shrink and perturb": lambda seed: learner(
        seed, optimizer=lambda p, seed: ShrinkAndPerturb(p, lr=LR, sigma=0.1, decay=0.01, seed=seed)
    ),
    "L2-init": lambda seed: learner(seed, penalty=lambda model: L2Init(model, strength=1e-3)),
    "linear": lambda seed: learner(seed, hidden=0),
}
COLOURS = ("#c0392b", "#1f618d", "#239b56", "#7d3c98", "#d68910", "#616a6b")


def interval(values: list[float]) -> float:
    """Half of a 95 % confidence interval of the mean (Student's t)."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def play(steps: int, seeds: int, out: Path) -> dict[str, driftline.Report]:
    streams = [
        driftline.scenarios.slowly_changing_regression(seed=s, samples=steps, variant="released") for s in range(seeds)
    ]
    reports = {}
    for name, make in METHODS.items():
        start = time.perf_counter()
        reports[name] = driftline.run(
            streams,
            make,
            seeds=range(seeds),
            name=name,
            metrics=[OnlineError(window=steps // BINS)],
            record_every=steps // BINS,
            out=out / name.replace(" ", "-"),
            overwrite=True,
        )
        print(f"{name:<20} {seeds} x {steps} steps in {time.perf_counter() - start:6.1f} s", flush=True)
    return reports


def bins(report: driftline.Report, first: int, last: int) -> list[float]:
    """Mean squared error of each replica over the samples after ``first`` and up to ``last``."""
    positions, curves = report.curves("online_squared_error_window")
    inside = [i for i, p in enumerate(positions) if first < p <= last]
    return [statistics.fmean(curve[i] for i in inside) for curve in curves]


def table(reports: dict[str, driftline.Report], steps: int) -> str:
    """Mean squared error over the tenth of the stream that ends at each of four places."""
    ends = [steps * tenth // 10 for tenth in (1, 3, 6, 10)]
    lines = ["| | " + " | ".join(f"up to {end:,}" for end in ends) + " |", "|---" * (len(ends) + 1) + "|"]
    for name, report in reports.items():
        cells = [bins(report, end - steps // 10, end) for end in ends]
        values = " | ".join(f"{statistics.fmean(c):.3f} ± {interval(c):.3f}" for c in cells)
        lines.append(f"| {name} | {values} |")
    return "\n".join(lines)


def figure(reports: dict[str, driftline.Report], path: Path, seeds: int) -> None:
    """Mean over seeds and its 95 % interval, over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawing, axes = plt.subplots(figsize=(8, 4.5), dpi=150)
    for (name, report), colour in zip(reports.items(), COLOURS):
        positions, curves = report.curves("online_squared_error_window")
        means = [statistics.fmean(at) for at in zip(*curves)]
        half = [interval(list(at)) for at in zip(*curves)]
        axes.plot(positions, means, color=colour, label=name, linewidth=1.6)
        low, high = ([m + sign * h for m, h in zip(means, half)] for sign in (-1, 1))
        axes.fill_between(positions, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set(xlabel="samples", ylabel="squared error", ylim=(0.2, 1.8))
    axes.set_title(f"Slowly-changing regression: {seeds} seeds, mean and 95 % interval", fontsize=11)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f}k")
    axes.legend(frameon=False, ncols=3, loc="upper left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    drawing.tight_layout()
    drawing.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=int(os.environ.get("STEPS", 200_000)))
    parser.add_argument("--seeds", type=int, default=int(os.environ.get("SEEDS", 30)))
    parser.add_argument("--out", type=Path, default=Path("runs/plasticity"))
    chosen = parser.parse_args()
    start = time.perf_counter()
    reports = play(chosen.steps, chosen.seeds, chosen.out)
    figure(reports, chosen.out / "plasticity.png", chosen.seeds)
    write_html([Run.load(r.path) for r in reports.values()], chosen.out / "plasticity.html")
    text = table(reports, chosen.steps)
    (chosen.out / "plasticity.md").write_text(text + "\n")
    print(f"\n{text}\n\nmean squared error over a tenth of the stream, {chosen.seeds} seeds, ± 95 %")
    print(f"{chosen.out / 'plasticity.png'}, {chosen.out / 'plasticity.html'}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
