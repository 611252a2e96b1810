"""Small reference networks: MLP, convnet, the CIFAR ResNets and ResNet-18 for small images (He et al. 2016)."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from driftline.errors import unknown
from driftline.models.convolutional import convnet
from driftline.models.multilayer import mlp
from driftline.models.network import NORMALIZATIONS, Network
from driftline.models.residual import Block, Subsample, resnet18, resnet20, resnet32, resnet56

__all__ = [
    "MODELS",
    "NORMALIZATIONS",
    "Block",
    "Network",
    "Subsample",
    "build",
    "convnet",
    "mlp",
    "names",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet56",
]

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
