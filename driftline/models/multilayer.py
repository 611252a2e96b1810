"""The multilayer perceptron."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import nn

from driftline.activations import Make, activation_by, units_before
from driftline.errors import ConfigError
from driftline.models.network import Network, check_sizes, normalization_of, seeded


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
    >>> import torch
    >>> mlp((1, 28, 28), classes=10, hidden=(32,))(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
    if not isinstance(hidden, Sequence):
        raise ConfigError(f"hidden={hidden!r}: give a sequence such as (256, 256)")
    make = activation_by(activation)
    check_sizes(inputs=shape, hidden=hidden, classes=[classes])
    sizes = [math.prod(shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    with seeded(seed):
        for before, after in itertools.pairwise(sizes):
            units = units_before(after, make, f"hidden={tuple(hidden)}")
            layers += [nn.Linear(before, units), *normalization_of(normalization, units, images=False), make()]
        return Network(nn.Sequential(*layers), nn.Linear(sizes[-1], classes))
