"""Small data whose every sample can be told apart."""

import torch

from driftline.stream import Dataset, Stream


def toy(samples=60, classes=5, shape=(1, 4, 4), seed=0, sizes=None):
    """Random images in [0, 1] with every class present; ``sizes`` gives the number of samples of each class."""
    rng = torch.Generator().manual_seed(seed)
    if sizes is not None:
        y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    else:
        y = torch.arange(samples) % classes
    y = y[torch.randperm(len(y), generator=rng)]
    return Dataset(torch.rand(len(y), *shape, generator=rng), y, name="toy")


def rows(stream: Stream) -> list[int]:
    """Dataset row of every sample, in the order played."""
    return torch.cat([s.rows for s in stream.segments]).tolist()


def class_sets(stream: Stream) -> list[set[int]]:
    """Classes that occur in each segment."""
    return [set(s.labels().tolist()) for s in stream.segments]
