"""A trained network meets corrupted images one by one: what adapters make of it, and what prevents a collapse."""

import warnings

import torch
from torch import nn

import driftline
from driftline.adapters import BatchNormAdapter, CollapseGuard, SlidingWindow, Source, Tent
from driftline.metrics import DomainError, Rollbacks


def train(data: driftline.Dataset, epochs: int = 12) -> nn.Module:
    """A small convolutional network with batch normalisation, trained on clean images."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, len(data.classes))),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(data)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.x[rows]), data.y[rows]).backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    data = driftline.load("digits")
    source = train(data)
    order = ["contrast", "brightness", "gaussian_noise"]
    stream = driftline.scenarios.continual_tta(data.test, seed=0, order=order, severity=3, samples=120)
    adapters = {
        "source": Source(source),
        "batch norm": BatchNormAdapter(source),
        "Tent": Tent(source, lr=0.1),
        "guarded Tent": CollapseGuard(Tent(source, lr=0.1)),
        "Tent in a window": SlidingWindow(Tent(source, lr=0.1), size=50),
    }
    for name, adapter in adapters.items():
        # Single samples: a batch of one has hardly any statistics, and Tent takes a step on each.
        report = driftline.run(stream, adapter, batch_size=1, metrics=[DomainError(), Rollbacks()])
        errors = [report.results["domain_error"], *(report.results[f"domain_error/{d}"] for d in stream.domain_names)]
        print(f"{name:18}", *(f"{error:.2f}" for error in errors), "rollbacks:", report.results["rollbacks"])
    print("columns: mean over the domains,", ", ".join(stream.domain_names))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "Tent has collapsed")  # the guard says so at its first rollback
    main()
