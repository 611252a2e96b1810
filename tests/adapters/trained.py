"""A source model that has really been trained, in a second, and a shift that it suffers from."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import driftline
from driftline.adapters import Adapter
from driftline.stream.dataset import as_input


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the source's images and labels, and the others', (N, 1, 8, 8) in [0, 1]."""
    data = driftline.load("digits")
    x = as_input(data.x).reshape(-1, 1, 8, 8)
    x = x / x.max()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], data.y[order]
    return x[:700], y[:700], x[700:], y[700:]


@cache
def source_state() -> dict[str, Tensor]:
    x, y, _, _ = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network().train()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(12):
            for rows in torch.randperm(len(x)).split(50):
                optimizer.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    return model.state_dict()


def source_model() -> nn.Module:
    """Return the trained model."""
    model = network()
    model.load_state_dict(source_state())
    return model.eval()


def shifted() -> tuple[Tensor, Tensor]:
    """Return images that are brighter and paler than the source's, three times over, and their labels."""
    _, _, x, y = digits()
    return (0.5 * x**0.3 + 0.3).repeat(3, 1, 1, 1), y.repeat(3)


def correlated() -> tuple[Tensor, Tensor]:
    """Shifted images in runs: each batch of 50 is mostly of three classes."""
    x, y = shifted()
    random = torch.Generator().manual_seed(0)
    batches = []
    for number in range(60):
        classes = torch.tensor([number % 10, (number + 1) % 10, (number + 2) % 10])
        rows = torch.isin(y, classes).nonzero().flatten()
        batches.append(rows[torch.randint(len(rows), (50,), generator=random)])
    order = torch.cat(batches)
    return x[order], y[order]


def error(adapter: Adapter, batch: int = 50) -> float:
    """Return the error, from 0 to 1, of what an adapter returns over the last third of the shifted images."""
    x, y = shifted()
    wrong = torch.cat([adapter.adapt(part).argmax(1) for part in x.split(batch)]) != y
    return float(wrong[-len(x) // 3 :].float().mean())
