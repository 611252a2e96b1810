"""MECTA: entropy minimisation with little memory (Hong, Lyu, Zhou & Spranger, ICLR 2023)."""

from __future__ import annotations

from torch import nn

from driftline.adapters.choosing import MakeOptimizer, Parameters
from driftline.adapters.lean import memory_lean
from driftline.adapters.model import copied
from driftline.adapters.tent import Tent


class MECTA(Tent):
    """Tent on a model that remembers little: running statistics that follow, and pruned caches.

    For other adapters, wrap the model: ``EATA(memory_lean(model), ...)``.

    Parameters
    ----------
    model : nn.Module
        The source, with batch normalisation that keeps statistics.
    lr : float
        Step size. Published: 2.5e-3 with SGD for CIFAR-10-C in batches of 16, 2.5e-4 for ImageNet-C.
    optimizer : str or callable
        See :data:`driftline.adapters.choosing.MakeOptimizer`.
    prune, threshold : float
        See :func:`driftline.adapters.lean.memory_lean`.
    steps, parameters, episodic
        As :class:`driftline.adapters.Tent`'s.
    seed : int
        For the choice of channels.
    inplace : bool
        Adapt the model itself.

    Raises
    ------
    ConfigError
        For a model without batch normalisation, or a setting out of range.

    Notes
    -----
    Source: Hong, Lyu, Zhou & Spranger, *MECTA: memory-economic continual test-time model adaptation*, ICLR 2023, whose
    memory-lean normalisation is :class:`driftline.adapters.lean.LeanNorm`.
    Single samples: scores come from running statistics, which follow each image; they are made for small batches.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    >>> MECTA(model).adapt(torch.rand(16, 3, 8, 8)).shape
    torch.Size([16, 10])
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 2.5e-3,
        optimizer: MakeOptimizer = "sgd",
        prune: float = 0.7,
        threshold: float = 0.00125,
        steps: int = 1,
        parameters: Parameters = "affine",
        episodic: bool = False,
        seed: int = 0,
        inplace: bool = False,
    ) -> None:
        lean = memory_lean(model if inplace else copied(model), prune, threshold, seed)
        super().__init__(lean, lr, optimizer, steps, parameters, episodic, inplace=True)
        self.prune, self.threshold, self.seed, self.inplace = prune, threshold, seed, inplace
