"""Scanned digits, class by class: one pass, two new classes at a time, and a held-out part."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor


def split_digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training samples and labels in order of arrival, then test samples and labels; pixels in [0, 1]."""
    bunch = load_digits()
    x, y = torch.tensor(bunch.data / 16, dtype=torch.float32), torch.tensor(bunch.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:1400], order[1400:]
    train = train[torch.argsort(y[train] // 2, stable=True)]
    return x[train], y[train], x[test], y[test]


def final_accuracy(learner, seed: int, batch: int = 10) -> float:
    """Accuracy on the held-out digits after one pass."""
    x, y, x_test, y_test = split_digits(seed)
    for start in range(0, len(x), batch):
        learner.learn(x[start : start + batch], y[start : start + batch])
    return (learner.predict(x_test).argmax(1) == y_test).double().mean().item()
