"""Data whose samples can be told apart, and learners that show what they were given."""

from __future__ import annotations

import torch

from driftline.adapters import Adapter
from driftline.learners import Learner
from driftline.stream import Dataset


def numbered(samples=60, classes=3, width=2, name="numbered", first=0, **given):
    """Sample i is the number i, ``width`` times; its class is i modulo ``classes``."""
    x = torch.arange(first, first + samples, dtype=torch.float32).unsqueeze(1).expand(-1, width).contiguous()
    names = [str(c) for c in range(classes)]
    return Dataset(x, torch.arange(samples) % classes, names, name=name, **given)


def points(samples=400, classes=4, seed=0, spread=0.6, test=0):
    """Clouds of points around one centre for each class, in random order; ``test`` more of them are a test split."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 3, generator=rng)
    y = torch.randint(classes, (samples + test,), generator=rng)
    x = centres[y] + spread * torch.randn(len(y), 3, generator=rng)
    names = [str(c) for c in range(classes)]
    splits = {"test": Dataset(x[samples:], y[samples:], names, name="points test")} if test else {}
    return Dataset(x[:samples], y[:samples], names, name="points", splits=splits)


def add_draw(x, generator):
    """A random transform that shows every draw."""
    return x + torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)


class Recorder(Learner):
    """Scores all classes alike, and notes the first value of each sample it meets."""

    def __init__(self, classes=3):
        self.num_classes = classes
        self.calls: list[tuple[str, list[float]]] = []
        self.labels: list[int] = []

    def predict(self, x):
        self.calls.append(("predict", x.flatten(1)[:, 0].tolist()))
        return torch.zeros(len(x), self.num_classes)

    def learn(self, x, y):
        self.calls.append(("learn", x.flatten(1)[:, 0].tolist()))
        self.labels += y.tolist()

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        return

    @property
    def learned(self) -> list[float]:
        """Samples learned, in order."""
        return [sample for what, samples in self.calls if what == "learn" for sample in samples]


class Watcher(Adapter):
    """Notes every argument of every call."""

    num_classes = 3

    def __init__(self):
        self.calls: list[tuple[str, tuple[object, ...]]] = []

    def predict(self, *given):
        self.calls.append(("predict", given))
        return torch.zeros(len(given[0]), self.num_classes)

    def adapt(self, *given):
        self.calls.append(("adapt", given))
        return torch.zeros(len(given[0]), self.num_classes)

    def reset(self):
        self.calls.append(("reset", ()))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        return
