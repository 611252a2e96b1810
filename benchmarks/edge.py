"""The edge loop on single images whose corruption changes gradually: latency, memory, accuracy of each preset; kills.

    DRIFTLINE_DATA=folder python benchmarks/edge.py                      # 100 000 images for each preset, then 30 kills
    DRIFTLINE_DATA=... python benchmarks/edge.py presets --samples 2000 --presets fixed,statistics
    DRIFTLINE_DATA=... python benchmarks/edge.py presets --cpu-quota 1 --memory-limit 300
    DRIFTLINE_DATA=... python benchmarks/edge.py presets --cpu-quota 0.26 --cpu-period 5  # as a Raspberry Pi 5's core
    DRIFTLINE_DATA=... python benchmarks/edge.py kills --kills 30
    DRIFTLINE_DATA=... python benchmarks/edge.py int8

ResNet-20 with the released weights meets CIFAR-10's first 1 000 test images, drawn at random and one at a time, under
six corruptions in turn, each of which rises from severity 1 to 5 and falls again within ``--period`` images. Presets
run in a process each; a name with a suffix, such as affine-background, says what happens when there is no time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from source_model import cifar
from torch import nn

from driftline.scenarios.corruptions import get
from driftline.stream.edge import AdaptationLoop, StateStore, read_events
from driftline.stream.edge.int8 import Int8
from driftline.stream.edge.presets import preset
from driftline.weights import load_weights

ORDER = ("gaussian_noise", "brightness", "contrast", "defocus_blur", "impulse_noise", "pixelate")
PRESETS = "fixed,statistics,last-layer,affine,affine-background,low-rank"
SHAPE = (3, 32, 32)
CHUNK = 20
BYTES = 3 * 32 * 32


class Recording:
    """Images on disk, as a camera's would come: read one at a time, from any position on, for ever anew if asked."""

    def __init__(self, folder: Path, samples: int, period: int) -> None:
        self.path, self.samples = folder / f"edge-{samples}-{period}.bin", samples
        images = cifar("test_batch", 1000, "test")
        rng = torch.Generator().manual_seed(0)
        index = torch.randint(len(images), (samples,), generator=rng)
        self.labels = images.y[index].tolist()
        self.start = 0
        if not self.path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = self.path.with_suffix(".unfinished")
            with unfinished.open("wb") as file:
                for begin in range(0, samples, CHUNK):
                    x = images.rows(index[begin : begin + CHUNK])
                    phase = begin % period / period
                    name = ORDER[begin // period % len(ORDER)]
                    corrupt = get(name, 1 + 8 * min(phase, 1 - phase))
                    x = corrupt(x, torch.Generator().manual_seed(begin))
                    file.write((x * 255).round().clamp(0, 255).byte().numpy().tobytes())
            unfinished.replace(self.path)

    def seek(self, position: int) -> None:
        self.start = position

    def __iter__(self) -> Iterator[torch.Tensor]:
        with self.path.open("rb") as file:
            file.seek(self.start % self.samples * BYTES)
            while content := file.read(BYTES):
                yield torch.frombuffer(bytearray(content), dtype=torch.uint8).view(SHAPE)


def make(name: str, source: Recording, folder: Path, latency: float, **settings) -> AdaptationLoop:
    base, _, when_late = name.rpartition("-") if name.endswith(("-background", "-skip")) else (name, "", "smaller")
    way = preset(base)
    network = load_weights("resnet20")
    return AdaptationLoop(
        way.make(network),
        source,
        latency_budget=latency,
        state_dir=folder,
        shipped=network,
        batch_size=way.batch_size,
        window=way.window,
        when_late=when_late,
        **settings,
    )


@contextlib.contextmanager
def control_groups(chosen: argparse.Namespace) -> Iterator[list[Path]]:
    """Make control groups (version 1) with the limits that are asked for; the files that a process joins them by."""
    limits: list[tuple[str, str, int]] = []
    if chosen.cpu_quota:
        period = int(1000 * chosen.cpu_period)
        limits += [("cpu", "cpu.cfs_period_us", period), ("cpu", "cpu.cfs_quota_us", int(period * chosen.cpu_quota))]
    if chosen.memory_limit:
        limits += [("memory", "memory.limit_in_bytes", chosen.memory_limit * 2**20)]
    groups = {kind: Path(f"/sys/fs/cgroup/{kind}/driftline-edge-{os.getpid()}") for kind, _, _ in limits}
    try:
        for group in groups.values():
            group.mkdir()
        for kind, name, value in limits:
            (groups[kind] / name).write_text(str(value))
        yield [group / "cgroup.procs" for group in groups.values()]
    finally:
        for group in groups.values():
            with contextlib.suppress(OSError):
                group.rmdir()


def memory_now() -> tuple[int, int]:
    """Bytes of this process: all that is resident, and what of it is its own rather than pages of files."""
    status = Path("/proc/self/status").read_text()
    everything, own = (1024 * int(status.split(f"{kind}:")[1].split()[0]) for kind in ("VmRSS", "RssAnon"))
    return everything, own


def one(name: str, chosen: argparse.Namespace) -> dict[str, object]:
    """Run one preset here; return what it took."""
    source = Recording(chosen.out, chosen.samples, chosen.period)
    if chosen.data_limit:
        resource.setrlimit(resource.RLIMIT_DATA, (chosen.data_limit * 2**20,) * 2)
    right = 0
    memory: list[tuple[int, int]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        make(name, source, Path(folder), chosen.latency, example=next(iter(source)), checkpoint_every=10) as loop,
    ):
        began, cpu = time.perf_counter(), time.process_time()
        for answer in loop:
            right += answer.label == source.labels[answer.position]
            if answer.position % max(1, chosen.samples // 10) == 0:
                memory.append(memory_now())
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    counts = loop.health.counts
    # Fewer when it was asked to stop.
    answered, latency = counts["predictions"], loop.health.latency
    return {
        "preset": name,
        "samples": answered,
        "accuracy": 100 * right / answered,
        "p50": 1000 * latency.quantile(0.5),
        "p99": 1000 * latency.quantile(0.99),
        "late": 100 * counts["late"] / answered,
        "adapted": 100 * counts["adapted_samples"] / answered,
        "cpu": 1000 * cpu / answered,
        "rss": [memory[1][0] / 1e6, max(rss for rss, _ in memory[2:]) / 1e6],
        "own": [memory[1][1] / 1e6, max(own for _, own in memory[2:]) / 1e6],
        "rollbacks": counts["rollbacks"],
        "checkpoints": counts["checkpoints"],
        "out_of_memory": counts["out_of_memory"],
        "planned": loop.plan.total / 1e6,
        "seconds": seconds,
    }


def presets(chosen: argparse.Namespace) -> None:
    Recording(chosen.out, chosen.samples, chosen.period)
    columns = "preset, accuracy %, p50 ms, p99 ms, late %, adapted to %, CPU ms a sample, RSS MB, own MB, rollbacks"
    print(f"| {columns.replace(', ', ' | ')} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in chosen.presets.split(","):
        with control_groups(chosen) as groups:
            # From its birth: memory belongs to the group in which it was first touched.
            command = ["sh", "-c", 'for g in $GROUPS_TO_JOIN; do echo $$ > $g; done; exec "$@"', "sh", sys.executable]
            joined = {**os.environ, "GROUPS_TO_JOIN": " ".join(map(str, groups))}
            command += [*sys.argv, "--one", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=joined)
        if done.returncode:
            print(f"| {name} | ended by signal or error {done.returncode} | | | | | | | | |", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        (chosen.out / f"edge-{name}.json").write_text(json.dumps(found))
        memory = " | ".join(f"{first:.0f} to {most:.0f}" for first, most in (found["rss"], found["own"]))
        print(
            f"| {name} | {found['accuracy']:.1f} | {found['p50']:.1f} | {found['p99']:.1f} | {found['late']:.2f} "
            f"| {found['adapted']:.0f} | {found['cpu']:.1f} | {memory} | {found['rollbacks']} |",
            flush=True,
        )


def kills(chosen: argparse.Namespace) -> None:
    """Kill a process that runs the loop, again and again, and look at what it leaves."""
    source = Recording(chosen.out, chosen.samples, chosen.period)
    draw = random.Random(0)
    delivered: set[int] = set()
    worst_samples, worst_seconds, damaged, starts = 0, 0.0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(chosen.kills):
            ours, theirs = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(ours)
                every = {"checkpoint_every": chosen.interval, "report_every": chosen.interval}
                loop = make("statistics", source, Path(folder), chosen.latency, **every)
                for answer in loop:
                    os.write(theirs, b"%d\n" % answer.position)
                os._exit(0)
            os.close(theirs)
            with os.fdopen(ours) as answers:
                first = int(answers.readline())
                began = time.time()
                delay = draw.uniform(0, 10 * chosen.interval)
                killer = subprocess.Popen(["sh", "-c", f"sleep {delay:.3f}; kill -9 {child}"])
                got = [first, *(int(line) for line in answers if line.endswith("\n"))]
            killed = time.time()
            assert os.waitpid(child, 0)[1] == signal.SIGKILL, "the recording was over before it could be killed"
            killer.wait()
            delivered.update(got)
            starts.append(first)
            with StateStore(folder) as store:
                number, state = store.newest()
                damaged += len(store.damaged)
                # What was lost before this life began is another's.
                age = killed - max(began, store.files()[-1].stat().st_mtime)
            # The last answer may have been taken without the loop being asked for the next one.
            worst_samples = max(worst_samples, got[-1] + 1 - state["position"])
            worst_seconds = max(worst_seconds, age)
            assert state["position"] <= got[-1] + 1
        writes = [event.get("slowest_write", 0.0) for event in read_events(Path(folder) / "events.jsonl")]
    missing = set(range(max(delivered) + 1)) - delivered
    print(
        f"{chosen.kills} kills at random instants, a state every {chosen.interval} s: {number} states written, "
        f"{damaged} damaged; {max(delivered) + 1} images answered, {len(missing)} missing; answers after the last "
        f"state, to be given again: at most {worst_samples}; seconds of adapting lost: at most {worst_seconds:.2f}; "
        f"slowest write of a state: {max(writes):.2f} s"
    )


def plain_network(channels: Sequence[int]) -> nn.Module:
    """Two convolutions for each number of channels; after the first of them half the size."""
    layers: list[nn.Module] = []
    before = 3
    for i, after in enumerate(channels):
        for stride in (1 if i == 0 else 2, 1):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)).eval()


def processor_ms(run: Callable[[], object], times: int) -> float:
    """Median processor time of one call: what others do on the machine counts less than in wall time."""
    found = []
    for _ in range(times + 5):
        began = time.thread_time()
        run()
        found.append(time.thread_time() - began)
    return 1000 * sorted(found[5:])[times // 2]


@torch.no_grad()
def int8(chosen: argparse.Namespace) -> None:
    """Time predictions in float and in eight bits, and compare their classes."""
    images = cifar("test_batch", 1000, "test")
    x = images.rows(torch.arange(1000))
    small = load_weights("resnet20").eval()
    with Int8(small) as bits:
        rounded = torch.cat([small(row[None]) for row in x])
    exact = torch.cat([small(batch) for batch in x.split(100)])
    right = [100 * float((scores.argmax(1) == images.y).double().mean()) for scores in (exact, rounded)]
    same = 100 * float((exact.argmax(1) == rounded.argmax(1)).double().mean())
    print(
        f"ResNet-20, 1 000 images: right {right[0]:.1f} % in float, {right[1]:.1f} % in int8; same class {same:.1f} %"
    )
    wide = plain_network((64, 128, 256, 512))
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU())
    print("| network | batch | float ms | int8 ms | nothing changed ms | all rounded anew ms |")
    print("|---|---|---|---|---|---|")
    for name, network in {"ResNet-20": small, "8 convolutions, 64 to 512": wide, "2 linear, 2048": linear}.items():
        for size in (1, 8):
            batch = x[:size]
            in_float = processor_ms(lambda net=network, some=batch: net(some), 60)
            with Int8(network) as bits:
                in_int8 = processor_ms(lambda net=network, some=batch: net(some), 60)
            unchanged = processor_ms(bits.refresh, 20)
            weights = list(network.parameters())

            def change(weights=weights, bits=bits) -> None:
                torch._foreach_mul_(weights, 1.0001)
                bits.refresh()

            changed = processor_ms(change, 10)
            print(f"| {name} | {size} | {in_float:.1f} | {in_int8:.1f} | {unchanged:.1f} | {changed:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["presets", "kills"], choices=["presets", "kills", "int8"])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--period", type=int, default=500, help="images in which a corruption rises and falls")
    parser.add_argument("--presets", default=PRESETS)
    parser.add_argument("--latency", type=float, default=0.5, help="seconds")
    parser.add_argument("--cpu-quota", type=float, help="share of a core (control group)")
    parser.add_argument(
        "--cpu-period",
        type=float,
        default=100.0,
        help="milliseconds; if short, a quota is like a slower core",
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--memory-limit", type=int, help="MiB of memory in all (control group)")
    parser.add_argument("--data-limit", type=int, help="MiB of data (ulimit -d)")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--interval", type=float, default=0.5, help="seconds between states, for kills")
    parser.add_argument("--out", type=Path, default=Path("runs/edge"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.one:
        print(json.dumps(one(chosen.one, chosen)))
        return
    for part in chosen.parts:
        {"presets": presets, "kills": kills, "int8": int8}[part](chosen)


if __name__ == "__main__":
    main()
