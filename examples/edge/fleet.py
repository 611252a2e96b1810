"""Three devices adapt the same shipped model, each in its own light; offline their states become the next one to ship.

First the statistics of normalisation, adapted without labels; then the last layer, learned from labels that came back.
``driftline merge next.pt DIR DIR DIR`` does the same from folders that were collected.
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from model import WEIGHTS, model, ship

import driftline
from driftline.learners import GradientLearner
from driftline.stream.edge import AdaptationLoop, merge, preset

LIGHTS = {"cellar": lambda x: 0.35 * x, "yard": lambda x: 0.3 * x + 0.05, "hall": lambda x: 0.5 * x}


def device(shipped: torch.nn.Module, folder: Path, x: torch.Tensor, y: torch.Tensor | None) -> None:
    """Let a device run over what it sees; with labels it learns its last layer, without it adapts statistics."""
    if y is None:
        way = preset("statistics")
        player, size, source = way.make(shipped), way.batch_size, x
    else:
        own = copy.deepcopy(shipped)
        player, size, source = GradientLearner(own, torch.optim.SGD(own[-1].parameters(), lr=0.1)), 16, zip(x, y)
    with AdaptationLoop(
        player, source, latency_budget=1.0, state_dir=folder, shipped=shipped, batch_size=size, guard=False
    ) as loop:
        for _ in loop:
            pass


def accuracy(network: torch.nn.Module, data: driftline.Dataset, light: Callable[[torch.Tensor], torch.Tensor]) -> float:
    network.eval()
    with torch.no_grad():
        return float((network(light(data.test.x)).argmax(1) == data.test.y).double().mean())


def main() -> None:
    if not WEIGHTS.exists():
        ship()
    data, shipped = driftline.load("digits"), model().eval()
    print(f"{'':12}" + "".join(f"{name:>8}" for name in LIGHTS))
    print(f"{'shipped':12}" + "".join(f"{accuracy(shipped, data, light):8.3f}" for light in LIGHTS.values()))
    for what, labelled in (("statistics", False), ("last layer", True)):
        folders = []
        for i, (name, light) in enumerate(LIGHTS.items()):
            rows = torch.arange(i, len(data), len(LIGHTS))
            folders.append(Path(tempfile.mkdtemp()) / name)
            device(shipped, folders[-1], light(data.x[rows]), data.y[rows] if labelled else None)
        following = model()
        following.load_state_dict(merge(folders))
        print(f"{what:12}" + "".join(f"{accuracy(following, data, light):8.3f}" for light in LIGHTS.values()))


if __name__ == "__main__":
    main()
