"""What the tests of the edge loop run on: a small model, a source that can seek, a clock that is set by hand."""

from __future__ import annotations

import threading

import torch
from torch import nn

from driftline.adapters import BatchNormAdapter, Source
from driftline.adapters.wrapper import Wrapper
from driftline.stream.edge import AdaptationLoop, read_events


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def __deepcopy__(self, memo):
        return self


class Tape:
    """Samples that were recorded, from any position on."""

    def __init__(self, items):
        self.items = items
        self.position = 0

    def seek(self, position):
        self.position = position

    def __iter__(self):
        return iter(self.items[self.position :])


class Costly(Wrapper):
    """Takes time on a clock: so many seconds for a prediction, and for each sample adapted to."""

    def __init__(self, inner, clock, predict=0.0, adapt=0.0):
        super().__init__(inner)
        self.clock, self.seconds, self.per_sample = clock, predict, adapt
        self.batches = []

    def predict(self, x):
        self.clock.now += self.seconds
        return super().predict(x)

    def adapt(self, x):
        self.batches.append(len(x))
        self.clock.now += self.per_sample * len(x)
        return super().adapt(x)


class Wrong(Wrapper):
    """Answers with the least likely class once it has adapted ``after`` times."""

    def __init__(self, inner, after=1):
        super().__init__(inner)
        self.after, self.times = after, 0

    def predict(self, x):
        return super().predict(x) * (-1 if self.times >= self.after else 1)

    def adapt(self, x):
        self.times += 1
        return super().adapt(x)


class Raising(Wrapper):
    """Raises at each adaptation."""

    error: BaseException = ValueError("no")

    def adapt(self, x):
        raise self.error


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()


def samples(count, seed=0):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)) + 1


def adapter():
    return BatchNormAdapter(network(), "running")


def fixed():
    return Source(network())


def make(folder, source, player=None, **settings):
    """A loop with a budget that nothing exceeds, unless settings say otherwise."""
    defaults = {"latency_budget": 1e6, "shipped": network(), "batch_size": 8, "guard": False, "reconnect": (0.0, 0.0)}
    return AdaptationLoop(player or adapter(), source, state_dir=folder, **(defaults | settings))


def told(folder, kind):
    """The events of a kind in the log."""
    return [event for event in read_events(folder / "events.jsonl") if event["event"] == kind]


def released_later(folder):
    """A source that gives three samples, then nothing until the event is set."""
    gate = threading.Event()

    def source():
        yield from samples(3)
        gate.wait(60)
        yield from samples(2)

    return source, gate
