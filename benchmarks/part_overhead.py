"""What the parts that keep plasticity cost beside a bare step of PyTorch, and what lockstep saves.

Run through overhead.py: ``python benchmarks/overhead.py lockstep parts wide metrics``.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

import driftline
from driftline.learners import GradientLearner
from driftline.learners.losses import squared_error
from driftline.learners.optimizers import UPGD, Adam
from driftline.learners.penalties import L2Init, SpectralRegularization, WassersteinRegularization
from driftline.learners.renewers import ContinualBackprop
from driftline.metrics import OnlineAccuracy, OnlineError
from driftline.metrics.plasticity import Plasticity
from driftline.stream import Dataset, Segment, Stream

Step = Callable[[], object]
SMALL, WIDE = (784, 300, 150, 10), (784, 2000, 2000, 2000, 10)


def network(sizes: tuple[int, ...]) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def stepper(sizes: tuple[int, ...], optimizer, penalty=None, renewer=None) -> Step:
    """One sample learned in a plain loop of PyTorch, with parts where they belong."""
    model = network(sizes)
    step = optimizer(model.parameters())
    term = penalty(model) if penalty else None
    after = renewer(model) if renewer else None
    rng = torch.Generator().manual_seed(0)
    x, y = torch.rand(256, 1, sizes[0], generator=rng), torch.randint(sizes[-1], (256, 1), generator=rng)
    state = {"i": 0}

    def once() -> None:
        i = state["i"] = (state["i"] + 1) % 256
        loss = F.cross_entropy(model(x[i]), y[i])
        step.zero_grad()
        loss.backward()
        if term is not None:
            term.add_gradients(model)
        step.step()
        if after is not None:
            after.renew(model, step)

    return once


def seconds(step: Step, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count


def beside(name: str, ours: Step, base: Step, count: int, asked: str, rounds: int = 15) -> None:
    """Median over alternating rounds of our time / theirs."""
    seconds(ours, 2 * count), seconds(base, count)
    ratios = []
    for turn in range(rounds):
        first, second = (ours, base) if turn % 2 else (base, ours)
        a, b = seconds(first, count), seconds(second, count)
        ratios.append(a / b if first is ours else b / a)
    middle = statistics.median(ratios)
    print(f"{name:<66} {middle:6.2f}   ({min(ratios):.2f} to {max(ratios):.2f}); asked {asked}", flush=True)


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3)


def parts() -> None:
    """Each part beside the bare SGD step, MLP 784-300-150-10, batch 1: time / time."""
    bare = stepper(SMALL, sgd)

    def upgd(**options) -> Step:
        return stepper(SMALL, lambda p: UPGD(p, lr=1e-3, sigma=0.1, beta_utility=0.9999, weight_decay=0.01, **options))

    cases = {
        "UPGD, fresh noise, fused": (upgd(fused=True), "<= 2.5"),
        "UPGD, fresh noise, torch operations": (upgd(), "<= 2.5"),
        "UPGD, noise from a pool": (upgd(noise="pool"), "-"),
        "UPGD, noise from a pool, fused": (upgd(noise="pool", fused=True), "-"),
        "continual backprop": (stepper(SMALL, sgd, renewer=ContinualBackprop), "<= 1.3"),
        "L2-init": (stepper(SMALL, sgd, penalty=lambda m: L2Init(m, 1e-3)), "<= 1.15"),
        "spectral": (stepper(SMALL, sgd, penalty=lambda m: SpectralRegularization(m, 1e-3)), "<= 1.5"),
        "Wasserstein": (stepper(SMALL, sgd, penalty=lambda m: WassersteinRegularization(m, 1e-3)), "<= 2"),
    }
    for name, (ours, asked) in cases.items():
        beside(f"784-300-150-10: {name} / SGD", ours, bare, 200, asked)


def wide() -> None:
    """Continual backprop on MLP 784-2000x3-10, batch 1: time / time."""
    bare = stepper(WIDE, sgd)
    beside(
        "784-2000x3-10: continual backprop + SGD / SGD",
        stepper(WIDE, sgd, renewer=ContinualBackprop),
        bare,
        12,
        "<= 1.3",
    )
    theirs = stepper(WIDE, lambda p: torch.optim.Adam(p, lr=1e-4))
    ours = stepper(WIDE, lambda p: Adam(p, lr=1e-4), renewer=ContinualBackprop)
    beside("784-2000x3-10: continual backprop + Adam / torch's Adam", ours, theirs, 8, "<= 1.3")


def lockstep(steps: int = 3000) -> None:
    """Run-steps per second of 30 seeds in lockstep beside single PyTorch runs, slowly-changing regression."""
    streams = [
        driftline.scenarios.slowly_changing_regression(seed=s, samples=400_000, variant="released") for s in range(30)
    ]
    x, y = streams[0].read(0, steps)

    def make(compiled: bool):
        def learner(seed: int) -> GradientLearner:
            model = driftline.models.mlp(20, 1, (5,), seed=seed)
            return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.01), squared_error, compile=compiled)

        return learner

    def single() -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 5), nn.ReLU(), nn.Linear(5, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        errors = torch.zeros(steps)
        start = time.perf_counter()
        for i in range(steps):
            loss = F.mse_loss(model(x[i]), y[i : i + 1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            errors[i] = loss.detach()
        return steps / (time.perf_counter() - start)

    def together(compiled: bool, count: int) -> float:
        part = [stream[:count] for stream in streams]
        start = time.perf_counter()
        driftline.run(
            part, make(compiled), seeds=range(30), metrics=[OnlineError()], record_every=10_000, progress=False
        )
        return 30 * count / (time.perf_counter() - start)

    single(), together(False, 1000), together(True, 1000)
    for name, compiled, count, asked in (("eager", False, 3 * steps, 25), ("compiled", True, 400_000, 100)):
        ratios = []
        for turn in range(5):
            # Alternating, so that the machine's mood hits both.
            if turn % 2:
                ours = together(compiled, count)
                theirs = single()
            else:
                theirs = single()
                ours = together(compiled, count)
            ratios.append(ours / theirs)
        print(
            f"{f'30 seeds in lockstep, {name}: run-steps per second / single runs':<66} "
            f"{statistics.median(ratios):6.1f}   ({min(ratios):.1f} to {max(ratios):.1f}); asked >= {asked}",
            flush=True,
        )


def metrics() -> None:
    """Plasticity metrics every 1000 steps: run with them / run without, MLP 784-300-150-10, batch 1."""
    rng = torch.Generator().manual_seed(0)
    data = Dataset(torch.rand(4000, 784, generator=rng), torch.randint(10, (4000,), generator=rng))
    stream = Stream([Segment.of(data)])

    def play(*more) -> Callable[[], object]:
        def run() -> object:
            model = driftline.models.mlp(784, 10, (300, 150))
            learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=1e-3))
            return driftline.run(stream, learner, metrics=[OnlineAccuracy(), *(m() for m in more)], progress=False)

        return run

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        beside("plasticity metrics every 1000 steps: run with / without", play(Plasticity), play(), 1, "< 1.02", 9)


PARTS = (lockstep, parts, wide, metrics)
