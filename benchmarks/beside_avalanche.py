"""Beside Avalanche 0.6.0: the same numbers both ways, and what a step of online replay costs in each.

    DRIFTLINE_DATA=... nice -n 10 python benchmarks/beside_avalanche.py            # everything
    DRIFTLINE_DATA=... nice -n 10 python benchmarks/beside_avalanche.py speed      # one part

Parts: incoming (an Avalanche benchmark played here beside our own scenario), strategies (Avalanche's strategies here
beside there), speed (our experience replay here beside Avalanche's there, on the same stream, in seconds of
the processor, which others on the machine do not lengthen much). One thread.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import platform
import random
import statistics
import time
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

import driftline
from driftline.learners import GradientLearner, NearestClassMean, ReservoirReplay
from driftline.metrics import HeldOut, OnlineAccuracy

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

from avalanche.benchmarks import benchmark_from_datasets  # noqa: E402
from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset as tensor_dataset  # noqa: E402
from avalanche.evaluation.metrics import accuracy_metrics  # noqa: E402
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin  # noqa: E402
from avalanche.training.storage_policy import ReservoirSamplingBuffer  # noqa: E402
from avalanche.training.supervised import EWC, Naive, Replay  # noqa: E402

from driftline.interop.avalanche import AvalancheLearner, from_avalanche, to_avalanche  # noqa: E402

ORDER = list(range(10))


def mnist(count: int | None = None):
    """MNIST as floats in [0, 1], the first so many training images."""
    data = driftline.load("mnist")
    test = (data.test.x.float() / 255, data.test.y)
    return driftline.data.tensors(data.x[:count].float() / 255, data.y[:count], test=test, name="mnist")


def split(data):
    """SplitMNIST as an Avalanche benchmark: two classes at a time, in the dataset's order."""
    parts = []
    for part in (data, data.test):
        whole = tensor_dataset(part.x, part.y)
        pairs = [torch.tensor(ORDER[i : i + 2]) for i in range(0, 10, 2)]
        parts.append([whole.subset(torch.isin(part.y, pair).nonzero().flatten().tolist()) for pair in pairs])
    return benchmark_from_datasets(train=parts[0], test=parts[1])


def ours(data):
    return driftline.scenarios.class_incremental(data, tasks=5, order=ORDER, shuffle=False)


def network(hidden: tuple[int, ...] = (256, 256), inputs: tuple[int, ...] = (1, 28, 28)):
    return driftline.models.mlp(inputs, 10, hidden=hidden, seed=0)


def experience_replay(capacity: int = 500, compiled: bool = False, **shape):
    model = network(**shape)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    return GradientLearner(model, sgd, replay=ReservoirReplay(capacity), compile=compiled)


def incoming() -> None:
    """All of SplitMNIST, one pass, batches of 10."""
    data = mnist()
    start = time.process_time()
    theirs = from_avalanche(split(data))
    seconds = time.process_time() - start
    print(f"reading the benchmark of {len(theirs)} samples into memory: {seconds:.1f} s of the processor")
    print("| learner | stream | online accuracy | A_last | average accuracy | forgetting |\n|---|---|---|---|---|---|")
    for name, make in (("experience replay, 500", experience_replay), ("nearest class mean", NearestClassMean)):
        for title, stream in (("from_avalanche", theirs), ("class_incremental", ours(data))):
            metrics = [OnlineAccuracy(window=None), HeldOut(every=None)]
            [*_, step] = driftline.play(stream, make(), batch_size=10, metrics=metrics)
            values = step.metrics()
            wanted = ("online_accuracy", "a_last", "average_accuracy", "forgetting")
            print(f"| {name} | `{title}` | {' | '.join(f'{values[w]:.6f}' for w in wanted)} |", flush=True)


def strategy(kind: str, evaluator=None, **more):
    model = network((64,))
    made = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": 64,
        "eval_mb_size": 512,
        "evaluator": evaluator or EvaluationPlugin(loggers=[]),
    }
    kinds = {"Naive": (Naive, {}), "Replay": (Replay, {"mem_size": 500}), "EWC": (EWC, {"ewc_lambda": 10.0})}
    cls, own = kinds[kind]
    return cls(**made, **own, **more)


def strategies(count: int = 20_000) -> None:
    """The accuracy of each strategy on each experience after the last, there and here; same data, same seed."""
    data = mnist(count)
    benchmark = split(data)
    stream = from_avalanche(benchmark)
    print(
        "| strategy | played by | accuracy on the test parts of experiences 0 to 4, at the end | largest difference |"
    )
    print("|---|---|---|---|")
    for kind in ("Naive", "Replay", "EWC"):
        there = strategy(kind, EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]))
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        rows = []
        with quietly():
            for experience in benchmark.train_stream:
                there.train(experience)
                with torch.random.fork_rng():  # an evaluation draws a seed for its loader
                    found = there.eval(benchmark.test_stream)
                rows.append([found[f"Top1_Acc_Exp/eval_phase/test_stream/Exp{i:03d}"] for i in range(5)])
        metric = HeldOut(every=None, compete="all")
        list(driftline.play(stream, AvalancheLearner(strategy(kind)), batch_size=count, metrics=[metric]))
        difference = np.nanmax(np.abs(np.tril(metric.matrix - np.array(rows))))
        for who, row in (("Avalanche", rows[-1]), ("driftline", metric.matrix[-1])):
            print(f"| {kind} | {who} | {', '.join(f'{a:.4f}' for a in row)} | {difference:.1e} |", flush=True)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def theirs_per_step(experiences, trained, steps: int) -> float:
    taken = []
    with quietly():
        for experience in experiences:
            start = time.process_time()
            trained.train(experience, eval_streams=[])
            taken.append(time.process_time() - start)
            if len(taken) == steps:
                break
    return statistics.mean(taken[3:])


def ours_per_step(stream, learner, chunk: int = 1) -> float:
    start = time.process_time()
    for _ in driftline.play(stream, learner, batch_size=10, chunk=chunk, metrics=[OnlineAccuracy(window=None)]):
        pass
    return (time.process_time() - start) / (len(stream) / 10)


def network_per_step(stream, **shape) -> float:
    """What PyTorch takes for the network alone: 20 samples that lie ready, no memory, no stream, no metric."""
    model = network(**shape)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.cat((part.x, part.x)), torch.cat((part.y, part.y))) for part in stream.batches(10)]
    start = time.process_time()
    for x, y in batches:
        sgd.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        sgd.step()
    return (time.process_time() - start) / len(batches)


def theirs(stream, policy, size: int, steps: int, **shape) -> float:
    model = network(**shape)
    memory = {"storage_policy": policy(size)} if policy else {}
    trained = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10,
        plugins=[ReplayPlugin(mem_size=size, **memory)],
        evaluator=EvaluationPlugin(accuracy_metrics(minibatch=True), loggers=[], collect_all=False),
    )
    return theirs_per_step(to_avalanche(stream, experience_size=10).train_stream, trained, steps)


def speed(rounds: int = 3, steps: int = 200) -> None:
    """Milliseconds for a step of 10 new and 10 replayed samples, online accuracy measured in all but the network alone.

    The ratios are Avalanche's time over ours; the last column is Avalanche's over that of the network alone, which no
    loop around a PyTorch network can pass.
    """
    data = mnist(10 * steps)
    pooled = driftline.data.tensors(nn.functional.avg_pool2d(data.x, 3), data.y)
    cases = [
        (f"{name}, {title}, memory {size}", played, hidden, policy, size)
        for name, played, hidden in (("MLP 81-32-10", pooled, (32,)), ("MLP 784-256-256-10", data, (256, 256)))
        for title, policy, size in (
            ("`Replay` as it comes", None, 500),
            ("`ReplayPlugin` with a reservoir", ReservoirSamplingBuffer, 500),
            ("`ReplayPlugin` with a reservoir", ReservoirSamplingBuffer, 5000),
        )
    ]
    parties = ("Avalanche", "driftline", "`compile=True`", "network alone")
    print(f"mean over {steps} steps, the first three of Avalanche left out\n")
    print(f"| net and replay | {', ms | '.join(parties)}, ms | ratio | ratio, `compile=True` | limit in PyTorch |")
    print("|---|---|---|---|---|---|---|---|")
    for title, played, hidden, policy, size in cases:
        stream = driftline.scenarios.iid(played, seed=0)
        shape = {"hidden": hidden, "inputs": stream.input_shape}
        ways = (
            lambda: theirs(stream, policy, size, steps, **shape),  # noqa: B023 (called within the turn)
            lambda: ours_per_step(stream, experience_replay(size, **shape)),  # noqa: B023
            lambda: ours_per_step(stream, experience_replay(size, compiled=True, **shape), chunk=steps),  # noqa: B023
            lambda: network_per_step(stream, **shape),  # noqa: B023
        )
        for way in ways[1:]:
            way()
        found = np.zeros((rounds, len(ways)))
        for turn in range(rounds):
            for i in range(len(ways)):
                who = (turn + i) % len(ways)
                found[turn, who] = 1000 * ways[who]()
        ratios = found[:, :1] / found[:, 1:]
        cells = [f"{ms:.3f}" for ms in np.median(found, 0)]
        cells += [f"{np.median(r):.0f} ({r.min():.0f} – {r.max():.0f})" for r in ratios.T]
        print(f"| {title} | {' | '.join(cells)} |", flush=True)


PARTS = {"incoming": incoming, "strategies": strategies, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread\n")
    for name in parser.parse_args().parts or PARTS:
        if name not in PARTS:
            parser.error(f"no part {name!r}; there are {', '.join(PARTS)}")
        PARTS[name]()
        print()


if __name__ == "__main__":
    main()
