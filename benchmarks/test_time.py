"""Test-time adaptation on corrupted and naturally shifted images: error of each method, as the literature's tables.

    DRIFTLINE_DATA=folder python benchmarks/test_time.py                               # everything
    DRIFTLINE_DATA=... python benchmarks/test_time.py continual --model released       # the 1 000 lossless test images
    DRIFTLINE_DATA=... python benchmarks/test_time.py continual --samples 1000 --methods source,batch-norm,tent

Parts: continual (15 corruptions in the standard order at severity 5, batches of 200, never reset), single (the same,
one image at a time), mixed (all domains shuffled), gradual (severity rises and falls), correlated (labels in runs, by
Dirichlet draws), and the natural shifts: jpeg (CIFAR-10's test images as JPEG), writer (MNIST's digits by staff of the
census, then by pupils) and usps (MNIST's test images, then USPS's). Models: own (ResNet-20 trained on data_batch_1 by
source_model.py, adapted on the 5 000 images of data_batch_5_first5000) and released (ResNet-20 that has seen all
training images, adapted on the first 1 000 test images); for digits a small network trained here on 10 000 images.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rotated_mnist import network
from source_model import cifar, source_model
from torch import nn
from torch.nn import functional as F

import driftline
from driftline import adapters, scenarios
from driftline.adapters import Adapter
from driftline.adapters.cotta import confidence_threshold
from driftline.data.cifar import CLASSES
from driftline.metrics import Calibration, DomainError
from driftline.stream import Stream
from driftline.stream.dataset import as_input

Make = Callable[[nn.Module, driftline.Dataset], Adapter]

METHODS: dict[str, Make] = {
    "source": lambda model, source: adapters.Source(model),
    "batch-norm": lambda model, source: adapters.BatchNormAdapter(model),
    "tent": lambda model, source: adapters.Tent(model),
    "eta": lambda model, source: adapters.ETA(model),
    "eata": lambda model, source: adapters.EATA(model, source=taken(source, 2000), fisher_alpha=1.0),
    "sar": lambda model, source: adapters.SAR(model, exclude=["*layer3*"]),
    "rdumb": lambda model, source: adapters.RDumb(model),
    "deyo": lambda model, source: adapters.DeYO(model, exclude=["*layer3*"]),
    "roid": lambda model, source: adapters.ROID(model),
    "rotta": lambda model, source: adapters.RoTTA(model),
    "note": lambda model, source: adapters.NOTE(model),
    "petta": lambda model, source: adapters.PeTTA(model, taken(source, 2000)),
    "mecta": lambda model, source: adapters.MECTA(model),
    "rmt": lambda model, source: adapters.RMT(model, source=taken(source, 2000)),
    "lame": lambda model, source: adapters.LAME(model),
    "lame knn": lambda model, source: adapters.LAME(model, affinity="knn"),
    "t3a": lambda model, source: adapters.T3A(model),
    "adanpc": lambda model, source: adapters.AdaNPC(model, taken(source, 2000)),
    "cotta": lambda model, source: adapters.CoTTA(model, threshold=confidence(model, source)),
    "cotta 0.92": lambda model, source: adapters.CoTTA(model),
}
SINGLE: dict[str, Make] = {
    "source": METHODS["source"],
    "batch-norm": METHODS["batch-norm"],
    "batch-norm mix": lambda model, source: adapters.BatchNormAdapter(model, "mix"),
    "batch-norm prior": lambda model, source: adapters.BatchNormAdapter(model, "prior"),
    "batch-norm running": lambda model, source: adapters.BatchNormAdapter(model, "running", momentum=0.01),
    "tent": METHODS["tent"],
    "tent in a window": lambda model, source: adapters.SlidingWindow(adapters.Tent(model), size=64),
    "rotta": METHODS["rotta"],
    "note": METHODS["note"],
    "petta": METHODS["petta"],
    "mecta": METHODS["mecta"],
}


def confidence(model: nn.Module, source: driftline.Dataset) -> float:
    """Return CoTTA's threshold by its published rule."""
    return confidence_threshold(model, as_input(source.x[:1000]))


def continual(data: driftline.Dataset, seed: int) -> Stream:
    return scenarios.continual_tta(data, seed=seed, severity=5)


def mixed(data: driftline.Dataset, seed: int) -> Stream:
    return scenarios.mixed_tta(data, seed=seed, severity=5)


def gradual(data: driftline.Dataset, seed: int) -> Stream:
    return scenarios.gradual_tta(data, seed=seed)


def correlated(data: driftline.Dataset, seed: int) -> Stream:
    return scenarios.continual_tta(data, seed=seed, severity=5, correlation="note", concentration=0.1)


def jpeg(data: driftline.Dataset, seed: int) -> Stream:
    return scenarios.iid(driftline.load("cifar-10-jpeg"), seed=seed)


def writer(data: driftline.Dataset, seed: int) -> Stream:
    return scenarios.by_writer(driftline.load("qmnist"), seed=seed)


def usps(data: driftline.Dataset, seed: int) -> Stream:
    return scenarios.dataset_shift(driftline.load("mnist-usps"), parts=["test", "usps"], seed=seed)


PARTS: dict[str, Callable[[driftline.Dataset, int], Stream]] = {
    "continual": continual,
    "single": continual,
    "mixed": mixed,
    "gradual": gradual,
    "correlated": correlated,
    "jpeg": jpeg,
    "writer": writer,
    "usps": usps,
}
DIGITS = ("writer", "usps")


def taken(data: driftline.Dataset, samples: int) -> driftline.Dataset:
    """Return the first samples of a dataset, as bytes."""
    assert data.y is not None
    return driftline.Dataset(data.x[:samples], data.y[:samples], classes=CLASSES, name=data.name, source=data.source)


def digits(part: str, images: int = 10_000, epochs: int = 3, seed: int = 0) -> tuple[nn.Module, driftline.Dataset]:
    """Return a small network trained on digits, of hsf_0's writers or of MNIST, and what it was trained on."""
    data = driftline.load("qmnist").splits["hsf_0"] if part == "writer" else driftline.load("mnist-usps")
    assert data.y is not None
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(data), generator=rng)[:images]
    source = driftline.Dataset(data.x[rows], data.y[rows], classes=data.classes, name=data.name, source=data.source)
    torch.manual_seed(seed)
    model = network().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(images, generator=rng).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(source.rows(batch)), source.y[batch]).backward()
            optimizer.step()
    return model.eval(), source


def error(
    part: str, make: Make, model: nn.Module, source: driftline.Dataset, chosen: argparse.Namespace, seed: int
) -> dict[str, float | None]:
    """Run a method over a stream; return its results."""
    data = cifar("data_batch_5", 5000) if chosen.model == "own" else cifar("test_batch", 1000, "test")
    stream = PARTS[part](taken(data, chosen.samples or len(data)), seed)
    report = driftline.run(
        stream,
        make(model, source),
        batch_size=1 if part == "single" else chosen.batch,
        metrics=[DomainError(), Calibration()],
        seed=seed,
        progress=False,
    )
    return report.results


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--model", choices=("own", "released"), default="own")
    parser.add_argument("--samples", type=int, default=0, help="images in each domain; default: all")
    parser.add_argument("--batch", type=int, default=200, help="images at a time; single: always one")
    parser.add_argument("--seeds", type=int, default=1, help="orders of the images")
    parser.add_argument("--methods", default="", help="names, with commas; default: all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--source", type=Path, default=Path("runs/source"), help="folder of the trained source model")
    chosen = parser.parse_args()
    if "DRIFTLINE_DATA" not in os.environ:
        parser.error("set DRIFTLINE_DATA to the folder that holds cifar-10-batches-bin and weights")
    torch.set_num_threads(chosen.threads)
    warnings.simplefilter("once")
    pictures = source_model(chosen.source) if chosen.model == "own" else driftline.weights.load_weights("resnet20")
    for part in chosen.parts or PARTS:
        model, source = digits(part) if part in DIGITS else (pictures, cifar("data_batch_1", 10_000))
        table = SINGLE if part == "single" else METHODS
        print(f"\n{part}, {'own' if part in DIGITS else chosen.model} model\n", flush=True)
        for number, name in enumerate(n for n in table if not chosen.methods or n in chosen.methods.split(",")):
            begun = time.perf_counter()
            runs = [error(part, table[name], model, source, chosen, seed) for seed in range(chosen.seeds)]
            domains = [key for key in runs[0] if key.startswith("domain_error/")]
            if number == 0:
                names = [key.partition("/")[2] for key in domains] if len(domains) <= 15 else []
                print(f"| | mean error | ECE | {' | '.join([*names, 'time'])} |\n{'|---' * (4 + len(names))}|")
            shown = domains if len(domains) <= 15 else []
            values = [statistics.fmean(float(run[key] or 0.0) for run in runs) for key in ("domain_error", *shown)]
            ece = statistics.fmean(float(run["calibration_error"] or 0.0) for run in runs)
            cells = [f"{100 * values[0]:.1f}", f"{100 * ece:.1f}", *(f"{100 * v:.1f}" for v in values[1:])]
            print(f"| {name} | {' | '.join(cells)} | {time.perf_counter() - begun:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
