"""Small reference networks: MLP, convnet, the CIFAR ResNets and ResNet-18 for small images (He et al. 2016)."""

from __future__ import annotations

import inspect
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.activations import Make, activation_by, units_before
from driftline.errors import ConfigError, unknown

NORMALIZATIONS = ("none", "layer", "batch")


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
    activation: str | Make = "relu",
    seed: int = 0,
    normalization: str = "none",
) -> Network:
    """Multilayer perceptron; flattens its input itself.

    Parameters
    ----------
    inputs : int or tuple of int
        Number of features, or the shape of one sample.
    classes : int
        Number of scores.
    hidden : sequence of int
        Activations of each hidden layer; empty: a linear classifier. Where an activation makes two of each unit
        (:class:`driftline.activations.CReLU`), the layer in front has half as many units.
    activation : str or callable
        What comes after each hidden layer: a name of :data:`driftline.activations.ACTIVATIONS`, or what makes a module.
    seed : int
        Decides the initial weights (PyTorch's default initialisation).
    normalization : {"none", "layer", "batch"}
        What stands between each hidden layer and its activation.

    Raises
    ------
    ConfigError
        For a size below 1, a width that the activation does not divide, an unknown name, or an activation that
        cannot be called.

    Examples
    --------
    >>> mlp((1, 28, 28), classes=10, hidden=(32,))(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
    if not isinstance(hidden, Sequence):
        raise ConfigError(f"hidden={hidden!r}: give a sequence such as (256, 256)")
    make = activation_by(activation)
    _check_sizes(inputs=shape, hidden=hidden, classes=[classes])
    sizes = [math.prod(shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    with _seeded(seed):
        for before, after in itertools.pairwise(sizes):
            units = units_before(after, make, f"hidden={tuple(hidden)}")
            layers += [nn.Linear(before, units), *_normalization(normalization, units, images=False), make()]
        return Network(nn.Sequential(*layers), nn.Linear(sizes[-1], classes))


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
    >>> convnet((1, 8, 8), classes=10)(torch.zeros(1, 1, 8, 8)).shape
    torch.Size([1, 10])
    """
    channels, rows, columns = _image_shape(input_shape, smallest=4)
    _check_sizes(width=[width], classes=[classes])
    make = activation_by(activation)
    first, second, third = (units_before(n, make, f"width={width}") for n in (width, 2 * width, 4 * width))
    with _seeded(seed):
        body = nn.Sequential(
            nn.Conv2d(channels, first, 3, padding=1),
            *_normalization(normalization, first),
            make(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, second, 3, padding=1),
            *_normalization(normalization, second),
            make(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * (rows // 4) * (columns // 4), third),
            *_normalization(normalization, third, images=False),
            make(),
        )
        return Network(body, nn.Linear(4 * width, classes))


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
    form = _Form(blocks=3, projection=False, activation=activation, normalization=normalization)
    return _resnet(input_shape, classes, seed, (16, 32, 64), form)


def resnet32(
    classes: int = 10,
    seed: int = 0,
    input_shape: tuple[int, ...] = (3, 32, 32),
    activation: str | Make = "relu",
    normalization: str = "batch",
) -> Network:
    """ResNet-32 for CIFAR, with parameter-free shortcuts (option A); see :func:`resnet20`."""
    form = _Form(blocks=5, projection=False, activation=activation, normalization=normalization)
    return _resnet(input_shape, classes, seed, (16, 32, 64), form)


def resnet56(
    classes: int = 10,
    seed: int = 0,
    input_shape: tuple[int, ...] = (3, 32, 32),
    activation: str | Make = "relu",
    normalization: str = "batch",
) -> Network:
    """ResNet-56 for CIFAR, with parameter-free shortcuts (option A); see :func:`resnet20`."""
    form = _Form(blocks=9, projection=False, activation=activation, normalization=normalization)
    return _resnet(input_shape, classes, seed, (16, 32, 64), form)


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
    >>> resnet18((3, 32, 32), classes=100, width=20).features(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 160])
    """
    _check_sizes(width=[width])
    widths = (width, 2 * width, 4 * width, 8 * width)
    form = _Form(blocks=2, projection=True, activation=activation, normalization=normalization)
    return _resnet(input_shape, classes, seed, widths, form)


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


@dataclass(frozen=True)
class _Form:
    """What a residual network's blocks are made of."""

    blocks: int
    projection: bool
    activation: str | Make = "relu"
    normalization: str = "batch"

    def norm(self, channels: int) -> nn.Module:
        """Return the normalisation of so many channels."""
        return next(iter(_normalization(self.normalization, channels)), nn.Identity())

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
    form : _Form
        With ``projection``, the shortcut is a 1x1 convolution (option B) where the shapes differ, instead of
        :class:`Subsample`; also behind an activation that makes two of each unit, since there they always differ.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, form: _Form) -> None:
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


def _resnet(input_shape: tuple[int, ...], classes: int, seed: int, widths: Sequence[int], form: _Form) -> Network:
    """Stem, one stage of blocks per width, global average pooling, head."""
    channels, *sides = _image_shape(input_shape, smallest=2)
    _check_sizes(classes=[classes])
    inputs, side = widths[0], min(sides)
    with _seeded(seed):
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


def _normalization(name: str, units: int, images: bool = True) -> list[nn.Module]:
    """Return the normalisation layer of so many units, in a list: an empty one for none."""
    if name not in NORMALIZATIONS:
        raise unknown("normalization", str(name), NORMALIZATIONS)
    if name == "batch":
        return [nn.BatchNorm2d(units) if images else nn.BatchNorm1d(units)]
    if name == "layer":
        return [nn.GroupNorm(1, units) if images else nn.LayerNorm(units)]
    return []


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
