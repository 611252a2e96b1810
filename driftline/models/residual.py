"""The CIFAR ResNets, and ResNet-18 for small images (He et al. 2016)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from driftline.activations import Make, activation_by, units_before
from driftline.models.network import Network, check_sizes, image_shape, normalization_of, seeded


@dataclass(frozen=True)
class Form:
    """What a residual network's blocks are made of."""

    blocks: int
    projection: bool
    activation: str | Make = "relu"
    normalization: str = "batch"

    def norm(self, channels: int) -> nn.Module:
        """Return the normalisation of so many channels."""
        return next(iter(normalization_of(self.normalization, channels)), nn.Identity())

    def act(self) -> nn.Module:
        """Return an activation."""
        return activation_by(self.activation)()

    def units(self, width: int) -> int:
        """Return the channels of a convolution behind whose activation there are ``width``."""
        return units_before(width, activation_by(self.activation), f"{width} channels")


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, figure 2).

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    stride : int
        Of the first convolution and the shortcut.
    form : Form
        With ``projection``, the shortcut is a 1x1 convolution (option B) where the shapes differ, instead of
        :class:`Subsample`; also behind an activation that makes two of each unit, since there they always differ.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, form: Form) -> None:
        super().__init__()
        units = form.units(outputs)
        self.conv1 = nn.Conv2d(inputs, units, 3, stride, padding=1, bias=False)
        self.bn1 = form.norm(units)
        self.relu1 = form.act()
        self.conv2 = nn.Conv2d(outputs, units, 3, padding=1, bias=False)
        self.bn2 = form.norm(units)
        self.relu2 = form.act()
        self.shortcut: nn.Module = nn.Identity()
        if (stride, inputs) != (1, units) and (form.projection or units < outputs):
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, units, 1, stride, bias=False), form.norm(units))
        elif (stride, inputs) != (1, units):
            self.shortcut = Subsample(outputs - inputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride), rounded up."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y)) + self.shortcut(x)
        out: Tensor = self.relu2(y)
        return out


class Subsample(nn.Module):
    """Shortcut without parameters: every ``stride``-th pixel, and ``extra`` channels of zeros (option A)."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C + extra, H / stride, W / stride), rounded up."""
        below = self.extra // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, below, self.extra - below))


def _residual(input_shape: tuple[int, ...], classes: int, seed: int, widths: Sequence[int], form: Form) -> Network:
    """Stem, one stage of blocks per width, global average pooling, head."""
    channels, *sides = image_shape(input_shape, smallest=2)
    check_sizes(classes=[classes])
    inputs, side = widths[0], min(sides)
    with seeded(seed):
        units = form.units(inputs)
        stem = nn.Conv2d(channels, units, 3, padding=1, bias=False)
        layers = OrderedDict[str, nn.Module](conv1=stem, bn1=form.norm(units), relu=form.act())
        for stage, outputs in enumerate(widths, start=1):
            # In training mode, batch normalisation refuses a single sample of 1x1 pixels.
            stride = 2 if stage > 1 and side > 2 else 1
            first = Block(inputs, outputs, stride, form)
            rest = [Block(outputs, outputs, 1, form) for _ in range(form.blocks - 1)]
            layers[f"layer{stage}"] = nn.Sequential(first, *rest)
            inputs, side = outputs, math.ceil(side / stride)
        layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
        network = Network(nn.Sequential(layers), nn.Linear(inputs, classes))
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
    return network


def resnet20(
    classes: int = 10,
    seed: int = 0,
    input_shape: tuple[int, ...] = (3, 32, 32),
    activation: str | Make = "relu",
    normalization: str = "batch",
) -> Network:
    """ResNet-20 for CIFAR, with parameter-free shortcuts (option A).

    Parameters
    ----------
    classes : int
        Number of scores.
    seed : int
        Decides the initial weights (He et al. 2015, normal).
    input_shape : tuple of int
        (channels, height, width) of one image. Images under 5x5 are halved less often, so that batch
        normalisation sees more than one value per channel also for a batch of one.
    activation, normalization : str
        As for :func:`convnet`. Behind an activation that makes two of each unit, shortcuts are 1x1 convolutions.

    Raises
    ------
    ConfigError
        For a shape that is not an image of at least 2x2, a size below 1, or an unknown name.

    Notes
    -----
    He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (2016), section 4.2; channels are padded
    on both sides, as in the released weights that :func:`load_weights` reads.

    Examples
    --------
    >>> sum(p.numel() for p in resnet20().parameters())
    269722
    """
    form = Form(blocks=3, projection=False, activation=activation, normalization=normalization)
    return _residual(input_shape, classes, seed, (16, 32, 64), form)


def resnet32(
    classes: int = 10,
    seed: int = 0,
    input_shape: tuple[int, ...] = (3, 32, 32),
    activation: str | Make = "relu",
    normalization: str = "batch",
) -> Network:
    """ResNet-32 for CIFAR, with parameter-free shortcuts (option A); see :func:`resnet20`."""
    form = Form(blocks=5, projection=False, activation=activation, normalization=normalization)
    return _residual(input_shape, classes, seed, (16, 32, 64), form)


def resnet56(
    classes: int = 10,
    seed: int = 0,
    input_shape: tuple[int, ...] = (3, 32, 32),
    activation: str | Make = "relu",
    normalization: str = "batch",
) -> Network:
    """ResNet-56 for CIFAR, with parameter-free shortcuts (option A); see :func:`resnet20`."""
    form = Form(blocks=9, projection=False, activation=activation, normalization=normalization)
    return _residual(input_shape, classes, seed, (16, 32, 64), form)


def resnet18(
    input_shape: tuple[int, ...],
    classes: int,
    width: int = 64,
    seed: int = 0,
    activation: str | Make = "relu",
    normalization: str = "batch",
) -> Network:
    """ResNet-18 for small images: 3x3 stem without stride, no max-pooling, projection shortcuts.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, height, width) of one image. Images under 9x9 are halved less often, as in :func:`resnet20`.
    classes : int
        Number of scores.
    width : int
        Channels of the first of four stages, doubled by each. 20 is the "slim" ResNet-18 of Lopez-Paz and
        Ranzato, "Gradient episodic memory for continual learning" (2017).
    seed : int
        Decides the initial weights (He et al. 2015, normal).
    activation, normalization : str
        As for :func:`resnet20`.

    Raises
    ------
    ConfigError
        For a shape that is not an image of at least 2x2, a size below 1, or an unknown name.

    Notes
    -----
    He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (2016), whose stem is made for ImageNet.

    Examples
    --------
    >>> import torch
    >>> resnet18((3, 32, 32), classes=100, width=20).features(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 160])
    """
    check_sizes(width=[width])
    widths = (width, 2 * width, 4 * width, 8 * width)
    form = Form(blocks=2, projection=True, activation=activation, normalization=normalization)
    return _residual(input_shape, classes, seed, widths, form)
