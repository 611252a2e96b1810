"""Small networks for the penalties' tests, alone and in lockstep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def filled(model: nn.Module, seed: int, scale: float = 0.5) -> nn.Module:
    """The model in float64, its parameters drawn from the seed."""
    rng = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng, dtype=torch.float64) * scale)
    return model


def mlp(seed: int = 0) -> nn.Module:
    return filled(
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)), seed
    )


def convnet(seed: int = 0) -> nn.Module:
    layers = nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 3)
    return filled(nn.Sequential(*layers), seed)


BUILDERS = {"mlp": (mlp, (6,)), "convnet": (convnet, (2, 3, 3))}


def batches(shape: tuple[int, ...], steps: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn((steps, 4, *shape), generator=rng, dtype=torch.float64)
    return list(zip(x, torch.randint(3, (steps, 4), generator=rng)))


def from_golden(arrays, config, prefix: str = "init/") -> nn.Sequential:
    """The recorded multilayer perceptron, its layers called fc1, fc2, ..."""
    sizes = config["layer_sizes"]
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh, None: nn.Identity}[config.get("activation")]
    model = nn.Sequential()
    for i, (inputs, outputs) in enumerate(zip(sizes, sizes[1:]), 1):
        model.add_module(f"fc{i}", nn.Linear(inputs, outputs, dtype=torch.float64))
        if i < len(sizes) - 1:
            model.add_module(f"act{i}", activation())
    move_to(model, arrays, prefix)
    return model


@torch.no_grad()
def move_to(model: nn.Module, arrays, prefix: str, index: int | None = None) -> None:
    """Set the parameters to recorded ones."""
    for name, p in model.named_parameters():
        value = arrays[f"{prefix}{name}"]
        p.copy_(torch.from_numpy(value if index is None else value[index]))


def assert_as_recorded(model, penalty, arrays, by_hand: bool, suffix: str = "", share_of_largest: bool = False) -> None:
    """Value and gradient are those of the record at each of its points, to 1e-9; entries near 0 absolutely.

    Parameters
    ----------
    by_hand : bool
        Whether the penalty adds its gradient, or autograd finds it.
    suffix : str
        Of the record's keys ``penalty`` and ``grad``.
    share_of_largest : bool
        Whether entries near 0 may be off by 1e-9 of the largest (what iterates gets no closer), not by 1e-12.
    """
    for point, value in enumerate(arrays[f"penalty{suffix}"]):
        move_to(model, arrays, "param/", point)
        model.zero_grad()
        assert penalty(model).item() == pytest.approx(value, rel=1e-9)
        if by_hand:
            penalty.add_gradients(model)
        else:
            penalty(model).backward()
        for name, p in model.named_parameters():
            expected = torch.from_numpy(arrays[f"grad{suffix}/{name}"][point])
            atol = 1e-9 * expected.abs().max().item() if share_of_largest else 1e-12
            torch.testing.assert_close(p.grad, expected, rtol=1e-9, atol=atol)


def train(model, penalty, data, optimizer=None, autograd: bool = False) -> list[dict[str, Tensor]]:
    """Parameters after each step of a plain loop with the penalty in its place; the sum over replicas is minimised."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05)
    replicas = getattr(model, "replicas", None)
    trail = []
    for x, y in data:
        scores = model(x)
        loss = F.cross_entropy(scores.flatten(0, -2), y.flatten()) * (replicas or 1)
        after = getattr(penalty, "after_step", False)
        before = penalty is not None and not after
        if autograd and before:
            loss = loss + penalty(model)
        optimizer.zero_grad()
        loss.backward()
        if not autograd and before:
            penalty.add_gradients(model)
        optimizer.step()
        if after:
            penalty.renew(model, optimizer)
        trail.append({name: p.detach().clone() for name, p in model.named_parameters()})
    return trail


def stacked_batches(data):
    """The batches of several runs as those of one in lockstep."""
    return [(torch.stack([x for x, _ in step]), torch.stack([y for _, y in step])) for step in zip(*data)]
