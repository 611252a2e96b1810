"""A small convolutional network without residuals."""

from __future__ import annotations

from torch import nn

from driftline.activations import Make, activation_by, units_before
from driftline.models.network import Network, check_sizes, image_shape, normalization_of, seeded


def convnet(
    input_shape: tuple[int, ...],
    classes: int,
    width: int = 32,
    seed: int = 0,
    activation: str | Make = "relu",
    normalization: str = "none",
) -> Network:
    """Two convolutions with pooling and one hidden layer, for images from 4x4 up to about 64x64.

    By default it has no normalisation: it computes the same in training and evaluation, and for a batch of one.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, height, width) of one image.
    classes : int
        Number of scores.
    width : int
        Channels behind the first convolution; there are 2 times as many behind the second, and 4 behind the hidden
        layer.
    seed : int
        Decides the initial weights (PyTorch's default initialisation).
    activation, normalization : str
        As for :func:`mlp`; "layer" means all channels and pixels of an image together (``nn.GroupNorm(1, ...)``).

    Raises
    ------
    ConfigError
        For a shape that is not an image of at least 4x4, or else as for :func:`mlp`.

    Examples
    --------
    >>> import torch
    >>> convnet((1, 8, 8), classes=10)(torch.zeros(1, 1, 8, 8)).shape
    torch.Size([1, 10])
    """
    channels, rows, columns = image_shape(input_shape, smallest=4)
    check_sizes(width=[width], classes=[classes])
    make = activation_by(activation)
    first, second, third = (units_before(n, make, f"width={width}") for n in (width, 2 * width, 4 * width))
    with seeded(seed):
        body = nn.Sequential(
            nn.Conv2d(channels, first, 3, padding=1),
            *normalization_of(normalization, first),
            make(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, second, 3, padding=1),
            *normalization_of(normalization, second),
            make(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * (rows // 4) * (columns // 4), third),
            *normalization_of(normalization, third, images=False),
            make(),
        )
        return Network(body, nn.Linear(4 * width, classes))
