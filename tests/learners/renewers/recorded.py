"""Recorded cases of continual backprop and ReDo: their networks, and their random numbers in place of drawn ones."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from driftline.learners.renewers.continual_backprop import COINS, RANKS, ROWS

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


class RecordedDraws:
    """Gives what was drawn when the case was recorded; has the methods of ``Draws``."""

    def __init__(self, arrays, bounds, layer=0, lanes=3):
        self.arrays, self.bounds, self.layer, self.lanes = arrays, bounds, layer, lanes
        self.used = {}

    def uniform(self, step, count, lane=0, device="cpu", dtype=torch.float32):
        layer, what = divmod(lane, self.lanes)
        layer += self.layer
        if what == ROWS:
            recorded = torch.from_numpy(self.arrays[f"replace/new_in_weight/layer{layer}"])
            first = self.used.get(layer, 0)
            rows = count // recorded[0].numel()
            self.used[layer] = first + rows
            return (recorded[first : first + rows].flatten() / self.bounds[layer] + 1) / 2
        if what == RANKS:
            return torch.from_numpy(self.arrays[f"draws/random_util/layer{layer}"])[step - 1]
        assert what == COINS
        coins = torch.full((count,), torch.nan, dtype=torch.float64)
        recorded = torch.from_numpy(self.arrays["draws/bernoulli_uniform"])[:, layer]
        ours = torch.arange(count) + step * count  # numbers of the steps that this block serves, the first is 1
        inside = (ours >= 1) & (ours <= len(recorded))
        coins[inside] = recorded[ours[inside] - 1]
        return coins


def mlp(sizes, activation, norm=None):
    """fc1, [n1,] act, fc2, ..., without activation after the last."""
    layers = OrderedDict()
    for i, (before, after) in enumerate(zip(sizes, sizes[1:]), start=1):
        layers[f"fc{i}"] = nn.Linear(before, after)
        if i < len(sizes) - 1:
            if norm:
                layers[f"n{i}"] = {"bn": nn.BatchNorm1d, "ln": nn.LayerNorm}[norm](after)
            layers[f"act{i}"] = ACTIVATIONS[activation]()
    return nn.Sequential(layers)


def convolutional(activation, norm=None):
    """The recorded cases' network for images of 10x10 pixels."""
    act = ACTIVATIONS[activation]
    layers = OrderedDict(conv1=nn.Conv2d(1, 3, 3))
    if norm:
        layers["bn"] = nn.BatchNorm2d(3)
    layers.update(act1=act(), pool=nn.MaxPool2d(2), conv2=nn.Conv2d(3, 4, 3), act2=act(), flatten=nn.Flatten())
    layers.update(fc3=nn.Linear(16, 5), act3=act(), fc4=nn.Linear(5, 3))
    return nn.Sequential(layers)


def initialised(model, arrays, dtype):
    """Load the recorded initial parameters and buffers."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    model.to(dtype)
    with torch.no_grad():
        for key, value in arrays.items():
            if key.startswith("init/"):
                own[key.removeprefix("init/")].copy_(torch.from_numpy(value))
    return model


def close(ours, recorded, tolerance):
    """Largest absolute difference within tolerance."""
    return (ours - torch.from_numpy(recorded)).abs().max() <= tolerance
