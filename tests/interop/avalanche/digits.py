"""Scanned digits as Avalanche has them: items (x, y, task label), five experiences of two classes."""

from __future__ import annotations

import warnings

import torch
from torch import nn

import driftline

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the libraries that Avalanche imports
    from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark
    from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset as tensor_dataset
    from avalanche.training.plugins import EvaluationPlugin

ORDER = [3, 7, 1, 0, 9, 4, 2, 8, 5, 6]
DATA = driftline.load("digits")


def datasets(count=300):
    """The first so many training digits, and held-out ones, for Avalanche."""
    return tensor_dataset(DATA.x[:count], DATA.y[:count]), tensor_dataset(DATA.test.x[:100], DATA.test.y[:100])


def benchmark(count=300, tasks=False):
    """Two classes at a time, in the dataset's order; with tasks, each numbers its classes from 0."""
    if tasks:
        return nc_benchmark(
            *datasets(count), 5, task_labels=True, fixed_class_order=ORDER, class_ids_from_zero_in_each_exp=True
        )
    pairs = [torch.tensor(ORDER[i : i + 2]) for i in range(0, 10, 2)]
    parts = [
        [part.subset(torch.isin(torch.tensor(list(part.targets)), pair).nonzero().flatten().tolist()) for pair in pairs]
        for part in datasets(count)
    ]
    return benchmark_from_datasets(train=parts[0], test=parts[1])


def stream(count=300):
    """The same, made here."""
    data = driftline.data.tensors(DATA.x[:count], DATA.y[:count], test=(DATA.test.x[:100], DATA.test.y[:100]))
    return driftline.scenarios.class_incremental(data, tasks=5, order=ORDER, shuffle=False)


def network(seed=0, hidden=16):
    return driftline.models.mlp(DATA.input_shape, 10, hidden=(hidden,), seed=seed)


def settings(model, **more):
    """What every strategy is made with: SGD, batches of 10, no logging."""
    quiet = EvaluationPlugin(loggers=[]) if "evaluator" not in more else more.pop("evaluator")
    return {
        "model": model,
        "optimizer": more.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.1),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": 10,
        "eval_mb_size": 100,
        "evaluator": quiet,
        **more,
    }
