"""A small stream that everything can be tried on."""

from __future__ import annotations

import torch

from driftline.stream.dataset import Dataset
from driftline.stream.seeds import generator
from driftline.stream.segment import Segment
from driftline.stream.stream import Stream


def blobs(samples: int = 640, features: int = 4, classes: int = 3, seed: int = 0) -> Stream:
    """Return a stream of normally distributed clusters, one for each class, in two segments and with a test split.

    Parameters
    ----------
    samples : int
        Length of the stream; a quarter as many are held out. In the first half all classes but the last occur.
    features, classes : int
        Values of a sample, and number of clusters (at least 3).
    seed : int
        Draws everything.

    Examples
    --------
    >>> stream = blobs()
    >>> len(stream), stream.input_shape, stream.classes, [s.name for s in stream.segments]
    (640, (4,), ('0', '1', '2'), ['without the last class', 'all classes'])
    """
    rng = generator(seed)
    centres = 2 * torch.randn(classes, features, generator=rng)
    names = [str(c) for c in range(classes)]

    def draw(y: torch.Tensor) -> torch.Tensor:
        return centres[y] + torch.randn(len(y), features, generator=rng)

    half = samples // 2
    y = torch.cat([torch.arange(half) % (classes - 1), torch.arange(samples - half) % classes])
    y_test = torch.arange(max(samples // 4, classes)) % classes
    test = Dataset(draw(y_test), y_test, names, "blobs")
    whole = Segment.of(Dataset(draw(y), y, names, "blobs", {"test": test}))
    first, second = whole.take(half), whole.take(samples - half, half)
    return Stream(
        [first.shuffle(rng).named("without the last class"), second.shuffle(rng).named("all classes")], seed, "blobs"
    )
