"""AdaNPC's memory: what adding a batch costs, by the number of entries, against joining tensors at each batch.

    python benchmarks/adanpc.py
    python benchmarks/adanpc.py --entries 50000,200000 --width 512 --device cuda

Joining is what the released code does: features and labels are concatenated with the newcomers at each batch, which
copies the whole memory. Times are medians over batches, all of one run; the bounded memories are full.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from driftline.adapters.feature_memory import FeatureMemory

CLASSES = 10


def joined(features: Tensor, labels: Tensor) -> Callable[[Tensor, Tensor], None]:
    """Return what adds by concatenating."""
    held = [features, labels]

    def add(more: Tensor, their: Tensor) -> None:
        held[0], held[1] = torch.cat((held[0], more)), torch.cat((held[1], their))

    return add


def seconds(add: Callable[[Tensor, Tensor], None], batch: tuple[Tensor, Tensor], repeats: int) -> list[float]:
    """Return the time of each of so many additions."""
    times = []
    for _ in range(repeats):
        wait(batch[0])
        start = time.perf_counter()
        add(*batch)
        wait(batch[0])
        times.append(time.perf_counter() - start)
    return times


def wait(x: Tensor) -> None:
    """Wait for the device."""
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", default="50000,200000", help="sizes of the memory, with commas")
    parser.add_argument("--batch", type=int, default=32, help="samples added at once")
    parser.add_argument("--width", type=int, default=512, help="values of a feature")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    random = torch.Generator().manual_seed(0)
    print(f"batches of {chosen.batch}, {chosen.width} values, {chosen.device}, {torch.get_num_threads()} threads\n")
    print("| entries | memory | median per batch | per sample | mean per batch | times faster (median) | (mean) |")
    print("|---|---|---|---|---|---|---|")
    for entries in map(int, chosen.entries.split(",")):
        features = torch.randn(entries, chosen.width, generator=random).to(chosen.device)
        labels = torch.randint(CLASSES, (entries,), generator=random).to(chosen.device)
        batch = (features[: chosen.batch].clone(), labels[: chosen.batch].clone())
        ways = {"joined at each batch": joined(features, labels)}
        # Not just built, so with room to grow: on the way to the size, as in a stream.
        unbounded = FeatureMemory(features[: entries // 2], labels[: entries // 2], CLASSES)
        unbounded.add(features[entries // 2 :], labels[entries // 2 :])
        ways["unbounded"] = unbounded.add
        for eviction in ("oldest", "reservoir", "balanced"):
            bounded = FeatureMemory(features[:1], labels[:1], CLASSES, entries - 1, eviction)
            bounded.add(features[1:], labels[1:])
            ways[f"bounded, {eviction}"] = bounded.add
        reference = None
        for name, add in ways.items():
            seconds(add, batch, 5)
            times = seconds(add, batch, chosen.repeats)
            median, mean = statistics.median(times), statistics.fmean(times)
            reference = reference or (median, mean)
            print(
                f"| {entries} | {name} | {1e6 * median:.0f} us | {1e6 * median / chosen.batch:.2f} us "
                f"| {1e6 * mean:.0f} us | {reference[0] / median:.0f} | {reference[1] / mean:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
