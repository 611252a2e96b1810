"""The recorded cases of the reference implementations: their models, and playing them."""

import inspect
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from tests.golden import golden

LOGITS = {"f32": 1e-4, "f64": 1e-9}
STATE = {"f32": 1e-5, "f64": 1e-9}


class Recorded(nn.Module):
    """The network of the recorded cases, with batch or group normalisation."""

    def __init__(self, norm="bn"):
        super().__init__()
        make = nn.BatchNorm2d if norm == "bn" else lambda channels: nn.GroupNorm(4, channels)
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 16, 3, 2, 1, bias=False)
        setattr(self, f"{norm}1", make(8))
        setattr(self, f"{norm}2", make(16))
        self.norms = (f"{norm}1", f"{norm}2")
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        first, second = (getattr(self, name) for name in self.norms)
        z = first(self.conv1(x)).relu()
        return self.fc(second(self.conv2(z)).relu().mean((2, 3)))


class Layered(nn.Module):
    """The same network under the names of a residual network's stages."""

    def __init__(self):
        super().__init__()
        self.layer1, self.layer4 = nn.Module(), nn.Module()
        self.layer1.conv, self.layer1.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.layer4.conv, self.layer4.bn = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        z = self.layer1.bn(self.layer1.conv(x)).relu()
        return self.fc(self.layer4.bn(self.layer4.conv(z)).relu().mean((2, 3)))


class Case:
    """One recorded case: ``arrays`` as tensors, its configuration, and its source model."""

    def __init__(self, name: str) -> None:
        arrays, self.config = golden("adapters", name)
        self.name, self.dtype = name, name[-3:]
        self.arrays = {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}
        self.hparams, self.optimizer = self.config["hparams"], self.config.get("optimizer")

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return the arrays under a prefix such as ``"init/"``, without it."""
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}

    def model(self) -> nn.Module:
        model = Layered() if self.config["model"]["names"] == "layer4" else Recorded(self.config["model"]["norm"])
        state = self.part("init/")
        model = model.to(next(iter(state.values())).dtype)
        model.load_state_dict(state)
        return model

    def step(self) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
        """Return what makes the recorded optimizer."""
        given = {**self.optimizer}
        kind = getattr(torch.optim, given.pop("name"))
        if kind is torch.optim.Adam and "beta" in given:
            given["betas"] = (given.pop("beta"), 0.999)
        known = inspect.signature(kind).parameters
        assert set(given) <= set(known), given
        return lambda parameters: kind(parameters, **given)

    def play(self, adapter, logits: float | None = None, to=None) -> None:
        """Adapt to the stream and compare what is returned (through ``to``) at each batch."""
        tolerance = LOGITS[self.dtype] if logits is None else logits
        for number, x in enumerate(self.arrays["x"]):
            found = adapter.adapt(x)
            found = found if to is None else to(found)
            wanted = self.arrays["logits"][number]
            torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance, msg=f"batch {number}: ".__add__)

    def compare(self, model: nn.Module, prefix: str = "final/") -> None:
        """Compare a model's state with a recorded one (which may leave statistics out)."""
        state, wanted = model.state_dict(), self.part(prefix)
        assert wanted
        for key, value in wanted.items():
            if not key.endswith("num_batches_tracked"):
                torch.testing.assert_close(state[key], value, rtol=0, atol=STATE[self.dtype], msg=f"{key}: ".__add__)
