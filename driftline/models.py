"""Small reference networks: MLP, convnet, the CIFAR ResNets and ResNet-18 for small images (He et al. 2016)."""

from __future__ import annotations

import inspect
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.errors import ConfigError, unknown


class Network(nn.Module):
    """A body that makes features and a linear head that makes scores.

    Parameters
    ----------
    body : nn.Sequential
        Maps (B, *input) to features (B, F).
    head : nn.Linear
        Maps features to scores (B, classes).

    Examples
    --------
    >>> network = Network(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3))
    >>> network.features(torch.zeros(1, 4)).shape, network(torch.zeros(1, 4)).shape
    (torch.Size([1, 8]), torch.Size([1, 3]))
    """

    def __init__(self, body: nn.Sequential, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def features(self, x: Tensor) -> Tensor:
        """Return the features (B, F) that the head sees."""
        features: Tensor = self.body(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, classes)."""
        scores: Tensor = self.head(self.features(x))
        return scores


def mlp(
    inputs: int | tuple[int, ...],
    classes: int,
    hidden: Sequence[int] = (256, 256),
    activation: Callable[[], nn.Module] = nn.ReLU,
    seed: int = 0,
) -> Network:
    """Multilayer perceptron; flattens its input itself.

    Parameters
    ----------
    inputs : int or tuple of int
        Number of features, or the shape of one sample.
    classes : int
        Number of scores.
    hidden : sequence of int
        Units of each hidden layer; empty: a linear classifier.
    activation : callable
        Makes the module after each hidden layer.
    seed : int
        Decides the initial weights (PyTorch's default initialisation).

    Raises
    ------
    ConfigError
        For a size below 1, or an activation that cannot be called.

    Examples
    --------
    >>> mlp((1, 28, 28), classes=10, hidden=(32,))(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
    if not isinstance(hidden, Sequence) or not callable(activation):
        raise ConfigError(f"hidden={hidden!r}, activation={activation!r}: give such as (256, 256) and nn.ReLU")
    _check_sizes(inputs=shape, hidden=hidden, classes=[classes])
    sizes = [math.prod(shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    with _seeded(seed):
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), activation()]
        return Network(nn.Sequential(*layers), nn.Linear(sizes[-1], classes))


def convnet(input_shape: tuple[int, ...], classes: int, width: int = 32, seed: int = 0) -> Network:
    """Two convolutions with pooling and one hidden layer, for images from 4x4 up to about 64x64.

    No normalisation and no dropout: it computes the same in training and evaluation, and for a batch of one.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, height, width) of one image.
    classes : int
        Number of scores.
    width : int
        Channels of the first convolution; the second has 2, the hidden layer 4 times as many units.
    seed : int
        Decides the initial weights (PyTorch's default initialisation).

    Raises
    ------
    ConfigError
        For a shape that is not an image of at least 4x4, or a size below 1.

    Examples
    --------
    >>> convnet((1, 8, 8), classes=10)(torch.zeros(1, 1, 8, 8)).shape
    torch.Size([1, 10])
    """
    channels, rows, columns = _image_shape(input_shape, smallest=4)
    _check_sizes(width=[width], classes=[classes])
    with _seeded(seed):
        body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * (rows // 4) * (columns // 4), 4 * width),
            nn.ReLU(),
        )
        return Network(body, nn.Linear(4 * width, classes))


def resnet20(classes: int = 10, seed: int = 0, input_shape: tuple[int, ...] = (3, 32, 32)) -> Network:
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

    Raises
    ------
    ConfigError
        For a shape that is not an image of at least 2x2, or a size below 1.

    Notes
    -----
    He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (2016), section 4.2; channels are padded
    on both sides, as in the released weights that :func:`load_weights` reads.

    Examples
    --------
    >>> sum(p.numel() for p in resnet20().parameters())
    269722
    """
    return _resnet(input_shape, classes, seed, widths=(16, 32, 64), blocks=3, projection=False)


def resnet32(classes: int = 10, seed: int = 0, input_shape: tuple[int, ...] = (3, 32, 32)) -> Network:
    """ResNet-32 for CIFAR, with parameter-free shortcuts (option A); see :func:`resnet20`."""
    return _resnet(input_shape, classes, seed, widths=(16, 32, 64), blocks=5, projection=False)


def resnet56(classes: int = 10, seed: int = 0, input_shape: tuple[int, ...] = (3, 32, 32)) -> Network:
    """ResNet-56 for CIFAR, with parameter-free shortcuts (option A); see :func:`resnet20`."""
    return _resnet(input_shape, classes, seed, widths=(16, 32, 64), blocks=9, projection=False)


def resnet18(input_shape: tuple[int, ...], classes: int, width: int = 64, seed: int = 0) -> Network:
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

    Raises
    ------
    ConfigError
        For a shape that is not an image of at least 2x2, or a size below 1.

    Notes
    -----
    He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (2016), whose stem is made for ImageNet.

    Examples
    --------
    >>> resnet18((3, 32, 32), classes=100, width=20).features(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 160])
    """
    _check_sizes(width=[width])
    widths = (width, 2 * width, 4 * width, 8 * width)
    return _resnet(input_shape, classes, seed, widths, blocks=2, projection=True)


MODELS: dict[str, Callable[..., Network]] = {
    "mlp": mlp,
    "convnet": convnet,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
}


def names() -> dict[str, str]:
    """Return what :func:`build` builds: name -> one line of description.

    Examples
    --------
    >>> names()["mlp"]
    'Multilayer perceptron; flattens its input itself.'
    """
    return {name: (inspect.getdoc(builder) or "").partition("\n")[0] for name, builder in MODELS.items()}


def build(name: str, input_shape: tuple[int, ...], classes: int, seed: int = 0, **options: object) -> Network:
    """Build a network by name, for samples of this shape.

    Parameters
    ----------
    name : str
        One of :func:`names`.
    input_shape : tuple of int
        Shape of one sample.
    classes : int
        Number of scores.
    seed : int
        Decides the initial weights.
    **options
        Further arguments of that network, such as ``hidden`` or ``width``.

    Raises
    ------
    ConfigError
        For an unknown name or option (with the nearest known one), or a bad value.

    Examples
    --------
    >>> build("convnet", (3, 32, 32), classes=10, width=8).head
    Linear(in_features=32, out_features=10, bias=True)
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    builder = MODELS[name]
    shape = "inputs" if builder is mlp else "input_shape"
    known = [p for p in inspect.signature(builder).parameters if p not in (shape, "classes", "seed")]
    for option in options:
        if option not in known:
            raise unknown(f"option of {name}", option, known)
    return builder(**{shape: input_shape}, classes=classes, seed=seed, **options)


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, figure 2).

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    stride : int
        Of the first convolution and the shortcut.
    projection : bool
        Where the shapes differ, the shortcut is a 1x1 convolution (option B) instead of :class:`Subsample`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if projection and (stride, inputs) != (1, outputs):
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))
        elif (stride, inputs) != (1, outputs):
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


def _resnet(
    input_shape: tuple[int, ...], classes: int, seed: int, widths: Sequence[int], blocks: int, projection: bool
) -> Network:
    """Stem, one stage of ``blocks`` blocks per width, global average pooling, head."""
    channels, *sides = _image_shape(input_shape, smallest=2)
    _check_sizes(classes=[classes])
    inputs, side = widths[0], min(sides)
    with _seeded(seed):
        stem = nn.Conv2d(channels, inputs, 3, padding=1, bias=False)
        layers = OrderedDict[str, nn.Module](conv1=stem, bn1=nn.BatchNorm2d(inputs), relu=nn.ReLU())
        for stage, outputs in enumerate(widths, start=1):
            # In training mode, batch normalisation refuses a single sample of 1x1 pixels.
            stride = 2 if stage > 1 and side > 2 else 1
            first = Block(inputs, outputs, stride, projection)
            rest = [Block(outputs, outputs, 1, projection) for _ in range(blocks - 1)]
            layers[f"layer{stage}"] = nn.Sequential(first, *rest)
            inputs, side = outputs, math.ceil(side / stride)
        layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
        network = Network(nn.Sequential(layers), nn.Linear(inputs, classes))
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
    return network


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Initialise modules from a seed and leave the global random state as it was.

    PyTorch's modules draw their initial weights from the global generator of the default device. So that is made
    the CPU's, whatever the caller's default device is; it starts at the seed in here, and fork_rng restores it,
    also after an error. torch.manual_seed would reseed the accelerators' generators as well, for good.
    """
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _image_shape(shape: Sequence[int], smallest: int) -> tuple[int, int, int]:
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < smallest:
        raise ConfigError(
            f"input_shape={tuple(shape)}: expected an image (channels, height, width) of at least "
            f"{smallest}x{smallest} pixels; use mlp for anything else"
        )
    return shape[0], shape[1], shape[2]


def _check_sizes(**sizes: Sequence[int]) -> None:
    for argument, values in sizes.items():
        if not all(isinstance(value, int) and value >= 1 for value in values):
            raise ConfigError(f"{argument}={tuple(values)}: sizes must be whole numbers of at least 1")
