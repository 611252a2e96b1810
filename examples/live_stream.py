"""Live data: any iterable, endless here, with labels that arrive 100 samples late, in a loop that you own."""

from collections.abc import Iterator

import torch

import driftline
from driftline.learners import StreamingLDA
from driftline.metrics import NearFutureAccuracy, OnlineAccuracy


def sensor(seed: int = 0) -> Iterator[tuple[torch.Tensor, int]]:
    """Three states of a machine, seen by two sensors whose zero drifts."""
    rng = torch.Generator().manual_seed(seed)
    drift = torch.zeros(2)
    centres = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    while True:
        drift += 0.002 * torch.randn(2, generator=rng)
        state = int(torch.randint(3, (), generator=rng))
        yield centres[state] + drift + 0.5 * torch.randn(2, generator=rng), state


def main() -> None:
    stream = driftline.from_iterable(sensor, classes=["idle", "running", "jammed"]).delay_labels(100)
    metrics = [OnlineAccuracy(window=500), NearFutureAccuracy(shift=100)]
    for step in driftline.play(stream, StreamingLDA(), metrics=metrics):
        if step.position % 1000 == 0:
            print(step.position, {name: round(value, 3) for name, value in step.metrics().items()})
        if step.position == 3000:
            break


if __name__ == "__main__":
    main()
