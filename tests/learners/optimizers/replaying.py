"""Replays recorded runs of reference optimizers."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.golden import golden

FOLDER = "learners"
ACTIVATIONS = {"relu": F.relu, "tanh": torch.tanh, "leaky_relu": F.leaky_relu}


def tolerance(config):
    """As the records recommend: a faithful implementation is at rounding, over 40 steps."""
    return 1e-9 if config["dtype"] == "float64" else 2e-5


class Recorded:
    """One recorded case and the network that starts where it started."""

    def __init__(self, name):
        self.arrays, self.config = golden(FOLDER, name)
        self.settings = dict(self.config["hyperparameters"])
        sizes, self.dtype = self.config["layer_sizes"], getattr(torch, self.config["dtype"])
        self.names = [f"fc{i + 1}.{part}" for i in range(len(sizes) - 1) for part in ("weight", "bias")]
        self.layers = nn.ModuleList(nn.Linear(m, n, dtype=self.dtype) for m, n in zip(sizes, sizes[1:]))
        self.params = list(self.layers.parameters())
        for name, p in zip(self.names, self.params):
            p.data.copy_(torch.from_numpy(self.arrays[f"init/{name}"]))
        self.activation = ACTIVATIONS[self.config["activation"].split()[0]]
        self.loss = F.mse_loss if self.config["loss"] == "mse" else F.cross_entropy

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)

    def tensor(self, name, step):
        return torch.from_numpy(np.asarray(self.arrays[name][step]))

    def check(self, name, step, found):
        expected = self.arrays[name][step]
        difference = np.abs(found.detach().numpy() - expected).max()
        assert difference <= tolerance(self.config), f"{name} at step {step}: off by {difference}"

    def draws(self, params):
        """A source of random numbers that gives the recorded ones for these parameters, in their order."""
        named = [name for p in params for name, own in zip(self.names, self.params) if own is p]
        return RecordedDraws([self.arrays[f"noise/{name}"] for name in named if f"noise/{name}" in self.arrays])

    def train(self, optimizer, states=None, after=None):
        """Play the record to the optimizer and compare parameters, outputs and named states at every step.

        ``states`` maps a record's state name to a function (parameter) -> tensor.
        """
        for step in range(len(self.arrays["x"])):
            out = self.forward(self.tensor("x", step))
            self.check("logits", step, out)
            optimizer.zero_grad()
            self.loss(out, self.tensor("y", step)).backward()
            optimizer.step()
            for name, p in zip(self.names, self.params):
                self.check(f"param/{name}", step + 1, p)
                for state, find in (states or {}).items():
                    self.check(f"state/{state}/{name}", step, find(p))
            if after is not None:
                after(step)


class RecordedDraws:
    """Gives recorded standard normal numbers, step by step."""

    def __init__(self, arrays):
        self.arrays = arrays

    def normal(self, step, count, lane=0, device="cpu", dtype=None):
        flat = torch.from_numpy(np.concatenate([a[step].reshape(-1) for a in self.arrays]))
        assert flat.numel() == count
        return flat.to(dtype)
