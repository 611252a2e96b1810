"""What the runtime costs beside hand-written PyTorch: ratios measured within one run, alternating, on this machine.

    python benchmarks/overhead.py            # everything; about four minutes on two cores
    python benchmarks/overhead.py throughput # one part

Parts: throughput, replay, near-future, position, buffer, memory, scenario, imports, avalanche (when it is there); and,
for what keeps plasticity, lockstep, parts, wide, metrics.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import part_overhead
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import driftline
from driftline.learners import GradientLearner, ReservoirReplay
from driftline.metrics import Metric, NearFutureAccuracy, OnlineAccuracy
from driftline.stream import Dataset, Segment, Stream
from driftline.stream.step import Step

BATCH = 10
SIZES = (784, 256, 256, 10)


def samples(count: int, inputs: int = 784) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels and an order: random numbers, since the cost does not depend on them."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(min(count, 60_000), inputs, generator=rng)
    y = torch.randint(10, (len(x),), generator=rng)
    return x, y, torch.randint(len(x), (count,), generator=rng)


def network(sizes: tuple[int, ...] = SIZES) -> nn.Sequential:
    """A plain MLP."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def stream_of(x: Tensor, y: Tensor, order: Tensor) -> Stream:
    return Stream([Segment.of(Dataset(x, y)).at(order)])


def by_hand(x: Tensor, y: Tensor, order: Tensor, memory: int = 0) -> float:
    """The same as a researcher would write it in one loop: test, then train, reservoir replay if asked for."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rng = torch.Generator().manual_seed(0)
    correct = torch.zeros((), dtype=torch.long)
    kept_x, kept_y, seen = torch.empty(memory, x.shape[1]), torch.empty(memory, dtype=torch.long), 0
    for start in range(0, len(order), BATCH):
        index = order[start : start + BATCH]
        new_x, new_y = x[index], y[index]
        inputs, targets = new_x, new_y
        if memory and seen:
            drawn = torch.randperm(min(seen, memory), generator=rng)[:BATCH]
            inputs, targets = torch.cat([new_x, kept_x[drawn]]), torch.cat([new_y, kept_y[drawn]])
        scores = model(inputs)
        correct += (scores[: len(new_x)].argmax(1) == new_y).sum()
        loss = F.cross_entropy(scores, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if memory:
            for i in range(len(new_x)):
                slot = seen if seen < memory else int(torch.randint(seen + 1, (1,), generator=rng))
                if slot < memory:
                    kept_x[slot], kept_y[slot] = new_x[i], new_y[i]
                seen += 1
    return float(correct) / len(order)


def by_us(x: Tensor, y: Tensor, order: Tensor, memory: int = 0, extra: Sequence[Metric] = ()) -> float:
    model = network()
    replay = ReservoirReplay(memory) if memory else None
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.01), replay=replay)
    metrics = [OnlineAccuracy(window=None), *extra]
    report = driftline.run(stream_of(x, y, order), learner, batch_size=BATCH, metrics=metrics, progress=False)
    return float(report.results["online_accuracy"] or 0)


def seconds(function: Callable[[], object]) -> float:
    gc.collect()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def paired(name: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 7) -> float:
    """Median over alternating rounds of theirs/ours: our share of their throughput."""
    ours(), theirs()
    ratios = []
    for turn in range(rounds):
        first, second = (ours, theirs) if turn % 2 else (theirs, ours)
        a, b = seconds(first), seconds(second)
        ratios.append(a / b if first is theirs else b / a)
    middle = statistics.median(ratios)
    print(f"{name:<58} {middle:6.3f}   ({min(ratios):.3f} to {max(ratios):.3f}, {rounds} rounds)", flush=True)
    return middle


def throughput() -> None:
    """run() with online accuracy beside a bare loop with the same."""
    x, y, order = samples(20_000)
    paired(
        "throughput, MLP 784-256-256-10: run() / hand-written", lambda: by_us(x, y, order), lambda: by_hand(x, y, order)
    )


def replay() -> None:
    """The same with a memory of 500 and 10 + 10 samples per step."""
    x, y, order = samples(20_000)
    ours, theirs = (lambda: by_us(x, y, order, memory=500)), (lambda: by_hand(x, y, order, memory=500))
    paired("throughput with replay 500: run() / hand-written", ours, theirs)


class ForwardOnly(Metric):
    """Predicts the batch 100 samples ahead and forgets it: one more forward pass per step, and nothing else."""

    looks_first = True
    definitions = {}

    def begin(self, stream: Stream, batch_size: int) -> None:
        self.reader = stream.reader(batch_size)

    def before(self, step: Step) -> None:
        start = step.batch.position + 100
        if start + BATCH <= len(step.stream):
            with torch.no_grad():
                step.learner.model(self.reader.read(start, start + BATCH)[0])

    def update(self, step: Step) -> None: ...

    def value(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None: ...


def near_future() -> None:
    """Near-future accuracy, blind baseline included, beside one more forward pass."""
    x, y, order = samples(60_000)
    ours, theirs = (
        lambda metric=metric: by_us(x, y, order, extra=[metric()])
        for metric in (lambda: NearFutureAccuracy(100), ForwardOnly)
    )
    paired("near-future accuracy: run + one forward / run with it", ours, theirs, rounds=5)


def small_stream(count: int) -> Stream:
    x, y, order = samples(count, inputs=16)
    return stream_of(x, y, order)


def small_learner(memory: int) -> GradientLearner:
    model = network((16, 32, 10))
    return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.01), replay=ReservoirReplay(memory))


def per_step(steps: Iterator[object], count: int = 1500) -> float:
    start = time.perf_counter()
    for _ in range(count):
        next(steps)
    return (time.perf_counter() - start) / count


def position() -> None:
    """Cost of a step around sample 1 000 000 beside around sample 1000 (two playbacks of one stream, alternating)."""
    stream = small_stream(1_200_000)
    early = iter(driftline.play(stream, small_learner(500), batch_size=BATCH, metrics=[OnlineAccuracy()]))
    late = driftline.play(stream, small_learner(500), batch_size=BATCH, metrics=[OnlineAccuracy()])
    walk = iter(late)
    while late.position < 1_000_000:
        next(walk)
    for _ in range(100):
        next(early)
    ratios = [per_step(walk) / per_step(early) for _ in range(9)]
    print(f"{'cost of a step: position 1 000 000 / position 1000':<58} {statistics.median(ratios):6.3f}", flush=True)


def buffer() -> None:
    """Cost of a step with a full memory of 100 000 beside one of 500."""
    stream = small_stream(1_000_000)
    walks = {}
    for memory in (500, 100_000):
        playback = driftline.play(stream, small_learner(memory), batch_size=BATCH)
        walks[memory] = iter(playback)
        while playback.position < 150_000:
            next(walks[memory])
    ratios = [per_step(walks[100_000]) / per_step(walks[500]) for _ in range(15)]
    print(f"{'cost of a step: memory 100 000 / memory 500':<58} {statistics.median(ratios):6.3f}", flush=True)


def memory() -> None:
    """Resident memory at the end of 1 000 000 samples beside after 20 000."""
    import psutil

    process = psutil.Process()
    stream = small_stream(1_000_000)
    sizes = []
    for step in driftline.play(
        stream, small_learner(500), batch_size=BATCH, metrics=[OnlineAccuracy(), NearFutureAccuracy(100)]
    ):
        if step.position % 20_000 == 0:
            sizes.append(process.memory_info().rss)
    print(f"{'resident memory: 1 000 000 samples / 20 000 samples':<58} {sizes[-1] / sizes[0]:6.3f}", flush=True)


def scenario() -> None:
    """Generating si_blurry over 1 000 000 samples."""
    data = Dataset(torch.zeros(1_000_000, 1), torch.arange(1_000_000) % 100)
    took = statistics.median(seconds(lambda: driftline.scenarios.si_blurry(data, seed=1)) for _ in range(3))
    print(f"{'si_blurry over 1 000 000 samples, seconds':<58} {took:6.3f}", flush=True)


def imports() -> None:
    """What ``import driftline`` takes after ``import torch``."""
    code = "import time, torch; start = time.perf_counter(); import driftline; print(time.perf_counter() - start)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(5)
    ]
    print(f"{'import driftline beyond import torch, seconds':<58} {statistics.median(times):6.3f}", flush=True)


def avalanche() -> None:
    """Avalanche's online mode (one experience per batch) beside the hand-written loop, on fewer samples."""
    try:
        from avalanche.benchmarks import benchmark_from_datasets
        from avalanche.benchmarks.scenarios.online import split_online_stream
        from avalanche.benchmarks.utils import as_classification_dataset
        from avalanche.evaluation.metrics import accuracy_metrics
        from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
        from avalanche.training.storage_policy import ReservoirSamplingBuffer
        from avalanche.training.supervised import Naive
    except ImportError as error:
        print(f"avalanche: left out ({error})")
        return
    import logging

    logging.disable(logging.WARNING)
    x, y, order = samples(2_000)

    def strategy(memory: int) -> None:
        rows = torch.utils.data.TensorDataset(x[order], y[order])
        rows.targets = y[order].tolist()  # type: ignore[attr-defined]
        data = as_classification_dataset(rows)
        benchmark = benchmark_from_datasets(train=[data])
        model = network()
        plugins = [ReplayPlugin(mem_size=memory, storage_policy=ReservoirSamplingBuffer(memory))] if memory else []
        trainer = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=BATCH,
            plugins=plugins,
            evaluator=EvaluationPlugin(accuracy_metrics(minibatch=True), loggers=[]),
        )
        for experience in split_online_stream(benchmark.streams["train"], experience_size=BATCH):
            trainer.train(experience, num_workers=0)

    # It warns at every step that a method of its own is deprecated.
    with contextlib.redirect_stderr(io.StringIO()):
        for size in (0, 500):
            hand, online = (lambda size=size: by_hand(x, y, order, size)), (lambda size=size: strategy(size))
            paired(
                f"Avalanche online{', replay 500' if size else ''}: its throughput / hand-written",
                online,
                hand,
                rounds=3,
            )
            paired(
                f"  driftline{', replay 500' if size else ''}, the same samples",
                lambda size=size: by_us(x, y, order, size),
                hand,
                3,
            )


PARTS = (
    throughput,
    replay,
    near_future,
    position,
    buffer,
    memory,
    scenario,
    imports,
    avalanche,
    *part_overhead.PARTS,
)


def main() -> None:
    names = {part.__name__.replace("_", "-"): part for part in PARTS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(names))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads, batch {BATCH}\n")
    for name in chosen.parts or names:
        if name not in names:
            parser.error(f"no part {name!r}; there are {', '.join(names)}")
        names[name]()


if __name__ == "__main__":
    main()
