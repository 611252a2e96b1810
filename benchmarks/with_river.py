"""River beside driftline: a forest of River's in our runtime, and a network of ours in River's, with what it costs.

    python benchmarks/with_river.py accuracy    River's adaptive random forest: its own evaluation, and driftline's
    python benchmarks/with_river.py speed       RiverClassifier against bare torch, and deep-river if it is installed

Speed: the parties take turns on blocks of samples, predicting and learning one at a time; the CPU time of each one's
fastest blocks (the lower decile) counts, since the machine has other work.
"""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Callable, Iterator

import numpy as np
import torch
from river import anomaly, base, datasets, evaluate, forest, metrics
from torch.nn import functional as F

import driftline
from driftline.interop import river
from driftline.learners import GradientLearner
from driftline.models import mlp

BLOCK = 50
ROUNDS = 30


def accuracy() -> None:
    for data in (datasets.Phishing(), datasets.ImageSegments()):
        theirs = evaluate.progressive_val_score(data, forest.ARFClassifier(seed=1), metrics.Accuracy()).get()
        labels = sorted({y for _, y in data})
        features = list(next(iter(data))[0])
        learner = river.RiverLearner(forest.ARFClassifier(seed=1), labels, features)
        measured = [river.RiverMetric(metrics.Accuracy(), labels), driftline.metrics.OnlineAccuracy(window=None)]
        ours = driftline.run(river.stream(data), learner, metrics=measured).results
        print(f"{type(data).__name__:14} River {theirs!r}  driftline {ours['river_accuracy']!r}", end="  ")
        print(f"online_accuracy {ours['online_accuracy']:.6f}  equal: {theirs == ours['river_accuracy']}")


def make_learner(features: int, classes: int) -> GradientLearner:
    model = mlp(features, classes, hidden=(32,))
    return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.05))


def bare(rows: list[tuple[dict, str]], names: list[str], labels: list[str]) -> Callable[[int], None]:
    """Predict and learn in plain torch, from tensors made beforehand."""
    model = mlp(len(names), len(labels), hidden=(32,))
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    tensors = [(torch.tensor([[x[n] for n in names]]), torch.tensor([labels.index(y)])) for x, y in rows]

    def step(i: int) -> None:
        x, y = tensors[i]
        with torch.no_grad():
            model(x)
        sgd.zero_grad()
        F.cross_entropy(model(x), y).backward()
        sgd.step()

    return step


def estimator(model: object, rows: list[tuple[dict, str]]) -> Callable[[int], None]:
    def step(i: int) -> None:
        x, y = rows[i]
        model.predict_one(x)
        model.learn_one(x, y)

    return step


def deep_river(features: int, classes: int) -> object | None:
    """Return deep-river's classifier around the same network; None when deep-river is not installed."""
    # deep-river 0.3.4 uses a module that River has moved; it is given back its place, and nothing of it is changed.
    moved = types.ModuleType("river.anomaly.base")
    moved.AnomalyDetector = base.AnomalyDetector
    moved.SupervisedAnomalyDetector = base.SupervisedAnomalyDetector
    anomaly.base = sys.modules["river.anomaly.base"] = moved
    try:
        from deep_river.classification import Classifier
    except (ImportError, AttributeError) as error:
        print(f"deep-river is left out: {error}")
        return None
    network = mlp(features, classes, hidden=(32,))
    return Classifier(network, loss_fn="cross_entropy", optimizer_fn="sgd", lr=0.05, is_feature_incremental=False)


def blocks(steps: dict[str, Callable[[int], None]], samples: int) -> Iterator[tuple[str, float]]:
    for step in steps.values():
        for i in range(samples):
            step(i)
    for turn in range(ROUNDS):
        for name, step in steps.items():
            first = turn * BLOCK % (samples - BLOCK)
            begun = time.process_time()
            for i in range(first, first + BLOCK):
                step(i)
            yield name, (time.process_time() - begun) / BLOCK * 1e6


def speed() -> None:
    torch.set_num_threads(1)
    rows = list(datasets.ImageSegments().take(300))
    names, labels = sorted(rows[0][0]), []
    for _, label in rows:
        if label not in labels:
            labels.append(label)
    steps = {
        "bare torch": bare(rows, names, labels),
        "RiverClassifier": estimator(river.RiverClassifier(make_learner), rows),
    }
    rival = deep_river(len(names), len(labels))
    if rival is not None:
        steps["deep-river"] = estimator(rival, rows)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for name, microseconds in blocks(steps, len(rows)):
        times[name].append(microseconds)
    low = {name: float(np.quantile(values, 0.1)) for name, values in times.items()}
    for name, values in times.items():
        print(f"{name:16} {low[name]:8.1f} us (median {np.median(values):8.1f})")
    print(f"overhead of RiverClassifier: {low['RiverClassifier'] - low['bare torch']:.1f} us")
    if rival is not None:
        print(f"deep-river takes {low['deep-river'] / low['RiverClassifier']:.2f} times as long")


if __name__ == "__main__":
    for part in sys.argv[1:] or ["accuracy", "speed"]:
        {"accuracy": accuracy, "speed": speed}[part]()
