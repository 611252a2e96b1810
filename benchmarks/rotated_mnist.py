"""Rotated MNIST: a network that has seen five angles meets a series of angles that it has not; error of each method.

    DRIFTLINE_DATA=folder/of/MNIST python benchmarks/rotated_mnist.py
    DRIFTLINE_DATA=... python benchmarks/rotated_mnist.py --seeds 3 --methods source,adanpc --samples 500

A small convolutional network is trained on 0, 15, 30, 45 and 60 degrees (2 000 images of each), as in the benchmarks of
domain generalisation. Then come 75, 90, ..., 150 degrees, one after the other and without a reset, in batches of 32
images of the test set. AdaNPC's memory starts with all images it was trained on.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import driftline
from driftline import adapters
from driftline.adapters import Adapter
from driftline.stream.dataset import as_input

SEEN = (0, 15, 30, 45, 60)
UNSEEN = (75, 90, 105, 120, 135, 150)
BATCH = 32
# Student's t, two-sided 95 %, by degrees of freedom.
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}

Pair = tuple[Tensor, Tensor]
METHODS: dict[str, Callable[[nn.Module, Pair], Adapter]] = {
    "source": lambda model, source: adapters.Source(model),
    "batch-norm": lambda model, source: adapters.BatchNormAdapter(model),
    "tent": lambda model, source: adapters.Tent(model, lr=1e-3),
    "t3a": lambda model, source: adapters.T3A(model, filter_k=100),
    "adanpc": lambda model, source: adapters.AdaNPC(model, source),
    "adanpc, surer": lambda model, source: adapters.AdaNPC(model, source, beta=0.9),
    "adanpc, never": lambda model, source: adapters.AdaNPC(model, source, beta=1.1),
    "adanpc, bounded": lambda model, source: adapters.AdaNPC(model, source, capacity=1000, eviction="balanced"),
}


def rotated(x: Tensor, degrees: float) -> Tensor:
    """Return images (N, 1, H, W) turned by an angle."""
    turn = math.radians(degrees)
    rows = torch.tensor([[math.cos(turn), math.sin(turn), 0.0], [-math.sin(turn), math.cos(turn), 0.0]])
    grid = F.affine_grid(rows.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def images(data: driftline.Dataset, count: int, seed: int) -> Pair:
    """Return some images (count, 1, 28, 28), and their labels."""
    assert data.y is not None
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count]
    return as_input(data.x[rows]).reshape(-1, 1, 28, 28), data.y[rows]


def network() -> nn.Module:
    """Return an untrained network, small enough for one core."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10)),
    )


def trained(source: Pair, epochs: int, seed: int) -> nn.Module:
    """Return a network trained on the angles that are seen."""
    torch.manual_seed(seed)
    model = network().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = source
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def interval(values: list[float]) -> str:
    """Return mean and half-width of the 95 % interval, in per cent."""
    mean = 100 * statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    half = 100 * T95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.1f} +- {half:.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, 11), metavar="1..10")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--samples", type=int, default=1000, help="images at each angle that was not seen")
    parser.add_argument("--methods", default="", help="names, with semicolons; default: all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    if "DRIFTLINE_DATA" not in os.environ:
        parser.error("set DRIFTLINE_DATA to the folder that holds MNIST")
    torch.set_num_threads(chosen.threads)
    names = [name for name in METHODS if not chosen.methods or name in chosen.methods.split(";")]
    data = driftline.load("mnist")
    assert data.test is not None
    errors: dict[str, list[list[float]]] = {name: [] for name in names}
    seconds = dict.fromkeys(names, 0.0)
    for seed in range(chosen.seeds):
        x, y = images(data, 2000 * len(SEEN), seed)
        source = (torch.cat([rotated(part, angle) for part, angle in zip(x.split(2000), SEEN, strict=True)]), y)
        model = trained(source, chosen.epochs, seed)
        x, y = images(data.test, chosen.samples * len(UNSEEN), seed)
        series = [rotated(part, angle) for part, angle in zip(x.split(chosen.samples), UNSEEN, strict=True)]
        for name in names:
            adapter = METHODS[name](model, source)
            begun = time.perf_counter()
            found = []
            for part, truth in zip(series, y.split(chosen.samples), strict=True):
                scores = torch.cat([adapter.adapt(batch) for batch in part.split(BATCH)])
                found.append(float((scores.argmax(1) != truth).float().mean()))
            errors[name].append(found)
            seconds[name] += time.perf_counter() - begun
    print(f"\n| | mean | {' | '.join(f'{angle} deg' for angle in UNSEEN)} | time |\n{'|---' * (3 + len(UNSEEN))}|")
    for name in names:
        cells = [interval([statistics.fmean(run) for run in errors[name]])]
        cells += [interval([run[i] for run in errors[name]]) for i in range(len(UNSEEN))]
        print(f"| {name} | {' | '.join(cells)} | {seconds[name] / chosen.seeds:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
