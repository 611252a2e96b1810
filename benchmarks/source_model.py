"""A source model for test-time adaptation that has not seen the images it adapts to.

    DRIFTLINE_DATA=... python benchmarks/source_model.py --out runs/source

ResNet-20 trained on CIFAR-10's ``data_batch_1`` (10 000 images) with random crops and flips; ``data_batch_5_first5000``
and the test images stay unseen. The released ResNet-20 and ResNet-56 have seen all of the training images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import driftline
from driftline.data.cifar import cifar_10
from driftline.data.files import data_root
from driftline.stream.seeds import generator

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def cifar(part: str, rows: int, split: str = "train") -> driftline.Dataset:
    """Return some rows of one file of CIFAR-10."""
    wanted = {part: rows} if split == "train" else {"data_batch_1": 1, part: rows}
    data = cifar_10(data_root(None), partial=wanted)
    return data if split == "train" else data.splits[split]


def augmented(x: Tensor, rng: torch.Generator) -> Tensor:
    """Shift each image by up to four pixels and flip half of them."""
    places = torch.randint(0, 9, (len(x), 2), generator=rng)
    padded = F.pad(x, (4, 4, 4, 4))
    rows = places[:, 0, None] + torch.arange(32)
    columns = places[:, 1, None] + torch.arange(32)
    flip = torch.rand(len(x), generator=rng) < 0.5
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    numbers = torch.arange(len(x))[:, None, None]
    return padded.permute(0, 2, 3, 1)[numbers, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def train(epochs: int = 20, seed: int = 0, batch: int = 128, lr: float = 0.2) -> nn.Module:
    """Return a trained ResNet-20 that takes images in [0, 1]."""
    data = cifar("data_batch_1", 10_000)
    x, y = data.x.float() / 255 if data.x.dtype == torch.uint8 else data.x, data.y
    assert y is not None
    normalize = driftline.weights.Normalize(MEAN, STD)
    model = nn.Sequential(normalize, driftline.models.resnet20(seed=seed))
    rng = generator(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    begun = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        hits = 0
        for part in torch.randperm(len(x), generator=rng)[: len(x) // batch * batch].split(batch):
            scores = model(augmented(x[part], rng))
            hits += int((scores.argmax(1) == y[part]).sum())
            optimizer.zero_grad()
            F.cross_entropy(scores, y[part], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch}: {100 * hits / len(x):.1f} % in {time.perf_counter() - begun:.0f} s", flush=True)
    return model.eval()


def source_model(folder: Path, epochs: int = 20, seed: int = 0) -> nn.Module:
    """Return the trained model, from a file of an earlier call where there is one."""
    path = folder / f"resnet20-data_batch_1-epochs{epochs}-seed{seed}.pt"
    if path.is_file():
        model = nn.Sequential(driftline.weights.Normalize(MEAN, STD), driftline.models.resnet20(seed=seed))
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    model = train(epochs, seed)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model


def main() -> None:
    """Train it, and say how good it is on what it has not seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/source"))
    chosen = parser.parse_args()
    model = source_model(chosen.out, chosen.epochs, chosen.seed)
    for name, unseen in {
        "data_batch_5_first5000": cifar("data_batch_5", 5000),
        "test_batch_first1000": cifar("test_batch", 1000, "test"),
    }.items():
        x = unseen.x.float() / 255 if unseen.x.dtype == torch.uint8 else unseen.x
        with torch.no_grad():
            right = torch.cat([model(part).argmax(1) for part in x.split(500)]) == unseen.y
        print(f"{name}: {100 * right.double().mean():.1f} %")


if __name__ == "__main__":
    main()
