"""Streams on which networks lose plasticity, and what keeps it: online accuracy and plasticity per method.

    DRIFTLINE_DATA=folder/of/MNIST python benchmarks/plasticity.py                   # everything
    DRIFTLINE_DATA=... python benchmarks/plasticity.py input-permuted --seeds 5
    DRIFTLINE_DATA=... python benchmarks/plasticity.py combination --methods sgd,cbp+spectral+replay

Parts: input-permuted (Elsayed & Mahmood's input-permuted MNIST, 60 of its 200 tasks), label-permuted (the same on
labels, with MNIST in place of EMNIST, 40 tasks of 2500 samples), online-permuted (Dohare et al.'s online permuted
MNIST, three layers of 100 units, 30 tasks of 10 000 samples) and combination (parts that nobody ships together, on ten
short tasks). Samples come one at a time; all seeds of a method run in lockstep; every method runs with and without the
input normaliser. Hyper-parameters are the published ones.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import driftline
from driftline.learners import GradientLearner, ReservoirReplay
from driftline.learners.normalizer import InputNormalizer
from driftline.learners.optimizers import UPGD, Adam, ShrinkAndPerturb
from driftline.learners.penalties import L2Init, SpectralRegularization
from driftline.learners.renewers import ContinualBackprop, LayerReset, ReDo, ReGraMa, SelfNormalizedReset
from driftline.metrics import OnlineAccuracy
from driftline.metrics.plasticity import Plasticity

Make = Callable[[nn.Module, int], dict[str, object]]
"""Parts of a gradient learner for a model and a seed."""


def sgd(lr: float, decay: float = 0.0) -> Make:
    return lambda model, seed: {"optimizer": torch.optim.SGD(model.parameters(), lr=lr, weight_decay=decay)}


def adamw(lr: float, betas: tuple[float, float] = (0.9, 0.999), decay: float = 0.0, **more: object) -> Make:
    def make(model: nn.Module, seed: int) -> dict[str, object]:
        optimizer = Adam(model.parameters(), lr=lr, beta1=betas[0], beta2=betas[1], weight_decay=decay, decoupled=True)
        return {"optimizer": optimizer}

    return make


def upgd(lr: float, sigma: float, beta: float, decay: float) -> Make:
    return lambda model, seed: {
        "optimizer": UPGD(
            model.parameters(), lr=lr, sigma=sigma, beta_utility=beta, weight_decay=decay, seed=seed, fused=True
        )
    }


def shrink(lr: float, sigma: float, decay: float, form: str = "scaled") -> Make:
    return lambda model, seed: {
        "optimizer": ShrinkAndPerturb(model.parameters(), lr=lr, sigma=sigma, decay=decay, form=form, seed=seed)
    }


def renewed(base: Make, rate: float, maturity: int = 100) -> Make:
    return lambda model, seed: {
        **base(model, seed),
        "renewers": [ContinualBackprop(model, replacement_rate=rate, maturity=maturity, seed=seed)],
    }


def resets(base: Make, kind: Callable[..., object], **settings: object) -> Make:
    return lambda model, seed: {**base(model, seed), "renewers": [kind(model, seed=seed, **settings)]}


def others(base: Make) -> dict[str, Make]:
    """Renewers by other rules, with their usual settings, on the same base."""
    return {
        "ReDo + SGD": resets(base, ReDo, tau=0.025, every=1000),
        "SNR + SGD": resets(base, SelfNormalizedReset),
        "ReGraMa + SGD": resets(base, ReGraMa, tau=0.01, every=1000),
        "layer reset + SGD": resets(base, LayerReset, layers=1, every=10_000),
    }


def penalised(base: Make, *penalties: Callable[[nn.Module, int], object]) -> Make:
    return lambda model, seed: {**base(model, seed), "penalties": [p(model, seed) for p in penalties]}


def replayed(base: Make, capacity: int) -> Make:
    return lambda model, seed: {**base(model, seed), "replay": ReservoirReplay(capacity, seed=seed)}


def spectral(strength: float) -> Callable[[nn.Module, int], object]:
    return lambda model, seed: SpectralRegularization(model, strength=strength, seed=seed)


def l2_init(strength: float) -> Callable[[nn.Module, int], object]:
    return lambda model, seed: L2Init(model, strength=strength)


@dataclass(frozen=True)
class Part:
    """A benchmark: its stream for a seed, its network's hidden layers, and the methods."""

    stream: Callable[[int], driftline.Stream]
    hidden: tuple[int, ...]
    methods: dict[str, Make]


def mnist(low: float = -1.0) -> driftline.Dataset:
    return driftline.load("mnist", input_range=(low, 1.0))


def input_permuted(tasks: int, samples: int) -> Part:
    methods = {
        "SGD": sgd(0.01),
        "L2-init": penalised(sgd(0.01), l2_init(1e-3)),
        "CBP + SGD": renewed(sgd(0.01), 1e-4),
        **others(sgd(0.01)),
        "UPGD-W": upgd(0.01, 0.1, 0.9999, 0.01),
        "shrink and perturb": shrink(0.001, 0.1, 0.01),
        "SGDW": sgd(0.001, 0.001),
        "AdamW": adamw(1e-4, (0.0, 0.99)),
        "CBP + AdamW": renewed(adamw(1e-4, (0.0, 0.99)), 1e-4),
    }
    data = mnist()
    return Part(
        lambda seed: driftline.scenarios.permuted_inputs(
            data, seed=seed, tasks=tasks or 60, samples=samples or 5000, first_identity=False, draw="passes"
        ),
        (300, 150),
        methods,
    )


def label_permuted(tasks: int, samples: int) -> Part:
    methods = {
        "SGDW": sgd(0.01, 1e-4),
        "L2-init": penalised(sgd(0.01), l2_init(1e-3)),
        "CBP + SGD": renewed(sgd(0.01), 1e-4),
        **others(sgd(0.01)),
        "UPGD-W": upgd(0.01, 0.001, 0.9, 0.0),
        "shrink and perturb": shrink(0.01, 0.01, 0.001),
        "AdamW": adamw(1e-4, (0.0, 0.9999), 0.1),
        "CBP + AdamW": renewed(adamw(1e-4, (0.0, 0.9999), 0.1), 1e-4),
    }
    data = mnist()
    return Part(
        lambda seed: driftline.scenarios.permuted_labels(
            data, seed=seed, tasks=tasks or 40, samples=samples or 2500, first_identity=False, draw="passes"
        ),
        (300, 150),
        methods,
    )


def online_permuted(tasks: int, samples: int) -> Part:
    methods = {
        "SGD": sgd(0.003),
        "Adam": adamw(1e-3),
        "L2": sgd(0.003, 1e-4),
        "shrink and perturb": shrink(0.003, 1e-5, 1e-4, "unscaled"),
        "L2-init": penalised(sgd(0.003), l2_init(1e-3)),
        "UPGD-W": upgd(0.01, 0.1, 0.9999, 0.01),
        "CBP + SGD": renewed(sgd(0.003), 1e-4),
        **others(sgd(0.003)),
    }
    data = mnist(0.0)
    return Part(
        lambda seed: driftline.scenarios.permuted_inputs(
            data,
            seed=seed,
            tasks=tasks or 30,
            samples=samples or 10_000,
            first_identity=False,
            draw="passes",
            compound=True,
        ),
        (100, 100, 100),
        methods,
    )


def combination(tasks: int, samples: int) -> Part:
    base = sgd(0.01)
    methods = {
        "SGD": base,
        "CBP": renewed(base, 1e-4),
        "spectral": penalised(base, spectral(1e-3)),
        "replay": replayed(base, 1000),
        "CBP + spectral": renewed(penalised(base, spectral(1e-3)), 1e-4),
        "CBP + spectral + replay": replayed(renewed(penalised(base, spectral(1e-3)), 1e-4), 1000),
    }
    data = mnist()
    return Part(
        lambda seed: driftline.scenarios.permuted_inputs(
            data, seed=seed, tasks=tasks or 10, samples=samples or 2500, first_identity=False, draw="passes"
        ),
        (300, 150),
        methods,
    )


PARTS = {
    "input-permuted": input_permuted,
    "label-permuted": label_permuted,
    "online-permuted": online_permuted,
    "combination": combination,
}
EAGER = ("spectral", "replay", "ReDo", "SNR", "ReGraMa", "layer reset")
"""What is in the names of methods that have no compiled form."""
SHOWN = ("dormant_units", "effective_rank", "weight_magnitude", "sample_plasticity")


def build(part: Part, make: Make, stream: driftline.Stream, normalised: bool, compiled: bool):
    def learner(seed: int) -> GradientLearner:
        model = driftline.models.mlp(stream.input_shape, 10, part.hidden, seed=seed)
        normalizer = InputNormalizer() if normalised else None
        return GradientLearner(model, **make(model, seed), normalizer=normalizer, compile=compiled)

    return learner


def interval(values: Sequence[float]) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def measure(part: Part, name: str, normalised: bool, seeds: int, out: Path) -> dict[str, object]:
    stream = part.stream(0)
    task = len(stream.segments[0])
    metrics = [OnlineAccuracy(window=task), Plasticity(every=min(10, len(stream.segments)) * task)]
    start = time.perf_counter()
    compiled = not any(word in name for word in EAGER)
    report = driftline.run(
        part.stream,
        build(part, part.methods[name], stream, normalised, compiled),
        seeds=range(seeds),
        name=name + (" + normaliser" if normalised else ""),
        metrics=metrics,
        record_every=task,
        out=out,
        overwrite=True,
        progress=False,
    )
    each = report.record["replicas"]["results"]
    _, tasks = report.curves("online_accuracy_window")
    fifth = max(1, len(tasks[0]) // 5)
    row = {
        "online": each["online_accuracy"],
        "first": [statistics.fmean(t[:fifth]) for t in tasks],
        "last": [statistics.fmean(t[-fifth:]) for t in tasks],
        **{q: [v if v is not None else math.nan for v in each[q]] for q in SHOWN if q in each},
    }
    seconds = time.perf_counter() - start
    cells = [
        f"{100 * statistics.fmean(row[k]):.1f} ± {100 * interval(row[k]):.1f}" for k in ("online", "first", "last")
    ]
    cells += [f"{statistics.fmean(row[q]):.3g}" for q in SHOWN if q in row]
    print(f"| {name} | {'yes' if normalised else 'no'} | {' | '.join(cells)} | {seconds:.0f} s |", flush=True)
    return {"name": name, "normalised": normalised, "seconds": seconds, **row}


def keep(path: Path, row: dict[str, object]) -> None:
    """Put a row beside those of other methods, in place of an older one of the same."""
    rows = json.loads(path.read_text()) if path.exists() else []
    rows = [r for r in rows if (r["name"], r["normalised"]) != (row["name"], row["normalised"])]
    path.write_text(json.dumps([*rows, row], indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=0)
    parser.add_argument("--samples", type=int, default=0, help="per task")
    parser.add_argument("--methods", default="", help="names, with commas; default: all")
    parser.add_argument("--normaliser", choices=("with", "without"), help="default: both")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    chosen = parser.parse_args()
    if "DRIFTLINE_DATA" not in os.environ:
        parser.error("set DRIFTLINE_DATA to the folder that holds MNIST/raw")
    torch.set_num_threads(chosen.threads)
    warnings.simplefilter("once")
    for wanted in chosen.parts or PARTS:
        part = PARTS[wanted](chosen.tasks, chosen.samples)
        stream = part.stream(0)
        print(f"\n{wanted}: {len(stream.segments)} tasks of {len(stream.segments[0])}, {chosen.seeds} seeds\n")
        print(f"| | normaliser | online | first fifth | last fifth | {' | '.join(SHOWN)} | time |", flush=True)
        print("|---" * (6 + len(SHOWN)) + "|", flush=True)
        for name in [n for n in part.methods if not chosen.methods or n in chosen.methods.split(",")]:
            for normalised in [n for n in (False, True) if chosen.normaliser in (None, "with" if n else "without")]:
                folder = chosen.out / wanted / f"{name}{'-normalised' if normalised else ''}".replace(" ", "-")
                row = measure(part, name, normalised, chosen.seeds, folder)
                keep(chosen.out / f"{wanted}.json", row)


if __name__ == "__main__":
    main()
