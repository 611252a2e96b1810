"""What runs on the device: the model as it was shipped, and a camera. ``python model.py`` trains and ships one."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import driftline
from driftline.learners import GradientLearner

WEIGHTS = Path(__file__).with_name("model.pt")


def network() -> nn.Module:
    convolutions = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
    layers = [layer for conv in convolutions for layer in (conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def ship() -> None:
    data = driftline.load("digits")
    torch.manual_seed(0)
    model = network()
    learner = GradientLearner(model, torch.optim.Adam(model.parameters(), lr=0.003))
    for epoch in range(5):
        driftline.run(driftline.scenarios.iid(data, seed=epoch), learner, batch_size=20, metrics=[])
    torch.save(model.state_dict(), WEIGHTS)


def model() -> nn.Module:
    """What ``--model model.py:model`` asks for: the shipped model, the same at every start."""
    shipped = network()
    shipped.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return shipped


def camera(frames_a_second: float = 20.0, day: float = 600.0) -> Iterator[torch.Tensor]:
    """What ``--source model.py:camera`` asks for: frames, here digits in a light that comes and goes."""
    images = driftline.load("digits").test.x
    while True:
        light = 0.6 + 0.4 * math.cos(2 * math.pi * time.time() / day)
        yield light * images[int(time.time() * frames_a_second) % len(images)]
        time.sleep(1 / frames_a_second)


if __name__ == "__main__":
    ship()
    print("shipped", WEIGHTS.name)
