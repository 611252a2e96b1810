"""NOTE: instance-aware normalisation and a balanced reservoir for correlated streams (Gong et al., NeurIPS 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from driftline.adapters.batch_norm import Running
from driftline.adapters.choosing import MakeOptimizer, Parameters, choose, make_optimizer
from driftline.adapters.losses import entropy
from driftline.adapters.memory import rounds
from driftline.adapters.model import ModelAdapter, demand_finite
from driftline.adapters.normalization import FollowingNorm, replace_batch_norm, taking_in
from driftline.adapters.reservoir import BalancedReservoir
from driftline.adapters.rotta import outputs
from driftline.adapters.settings import at_least, between
from driftline.errors import ConfigError


class InstanceAwareNorm(FollowingNorm):
    """Normalises each sample by the running statistics, corrected where the sample's own clearly differ from them.

    A channel's mean and variance over the sample's N positions are drawn from the running ones' by chance alone; only
    what exceeds ``k`` standard errors of that chance is taken for the sample's own and corrects the statistics. In
    training mode the batch's statistics take the place of the running ones, which follow them.

    Parameters
    ----------
    source : nn.BatchNorm1d, 2d or 3d
        Whose place it takes.
    k : float
        Standard errors, 0 or more; 0: instance normalisation, infinity: batch normalisation.
    momentum : float
        Weight of the newest batch in the running statistics, 0 to 1.

    Notes
    -----
    The standard errors are sqrt(var / N) of the mean and var sqrt(2 / (N - 1)) of the variance. Samples without
    positions (B, C), or with one, have no statistics of their own.

    Examples
    --------
    >>> layer = InstanceAwareNorm(nn.BatchNorm1d(1), k=4.0, momentum=0.01).eval().requires_grad_(False)
    >>> usual, shifted = torch.linspace(-2, 2, 9), torch.linspace(8, 12, 9)
    >>> [round(float(layer(x.view(1, 1, 9)).mean()) + 0.01, 1) for x in (usual, shifted)]
    [0.0, 1.3]
    """

    def __init__(self, source: _BatchNorm, k: float, momentum: float) -> None:
        super().__init__(source)
        self.k, self.follow = k, momentum

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised samples (B, C, ...)."""
        mean, var = self.stored()
        if self.training:
            batch_mean, batch_var = self.moments(x, unbiased=True)
            self.due = (
                torch.lerp(mean, batch_mean.detach(), self.follow),
                torch.lerp(var, batch_var.detach(), self.follow),
            )
            mean, var = batch_mean, batch_var
        positions = x[0, 0].numel()
        if positions == 1 or math.isinf(self.k):
            return self.by(x, mean, var)
        shape = (1, -1) + (1,) * (x.dim() - 2)
        mean, var = mean.view(shape), var.view(shape)
        own_var, own_mean = torch.var_mean(x, [*range(2, x.dim())], correction=1, keepdim=True)
        error = ((var + self.eps) / positions).sqrt(), (var + self.eps) * math.sqrt(2 / (positions - 1))
        mean = mean + shrunk(own_mean - mean, self.k * error[0])
        var = (var + shrunk(own_var - var, self.k * error[1])).clamp(min=0)
        scale = (var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight.view(shape)
        shift = -mean * scale if self.bias is None else self.bias.view(shape) - mean * scale
        return torch.addcmul(shift, x, scale)


def shrunk(x: Tensor, by: Tensor) -> Tensor:
    """Move values towards zero by a distance, and no further than zero."""
    return x.sign() * F.relu(x.abs() - by)


class NOTE(ModelAdapter):
    """Predict each sample alone by slowly following statistics, and learn from a memory balanced over classes.

    Parameters
    ----------
    model : nn.Module
        The source, with batch normalisation that keeps statistics.
    classes : int, optional
        Number of classes. Default: outputs of the model's last linear layer.
    lr : float
        Step size. Published: 1e-4 with Adam.
    optimizer : str or callable
        See :data:`driftline.adapters.choosing.MakeOptimizer`.
    capacity : int
        Samples in memory.
    update_every : int
        Samples from one update to the next.
    momentum : float
        Weight of the memory in the running statistics at each update, 0 to 1.
    k : float
        Standard errors by which a sample's statistics must differ to count, 0 or more.
    instance_aware : bool
        Put :class:`InstanceAwareNorm` in the places of the batch normalisations. False: keep the model's own
        normalisation by running statistics, which suits a source that was trained with it better.
    epochs : int
        Steps on the memory at each update.
    parameters : str, sequence of str, or callable
        What is trained; see :data:`driftline.adapters.choosing.Parameters`.
    seed : int
        For the memory.
    inplace : bool
        Adapt the model itself.

    Raises
    ------
    ConfigError
        For a setting out of range, or a model without batch normalisation.

    Notes
    -----
    Source: Gong et al., *NOTE: robust continual test-time adaptation against temporal correlation*, NeurIPS 2022. The
    paper trains the source with instance-aware normalisation; put in afterwards, as here, it is their variant for
    models as they come. A batch is handled as its samples one after another: scores do not depend on how a stream is
    cut. The memory is learnt from as one batch; the released code's loss is divided by the number of classes, which
    Adam does not notice.
    Single samples: made for them.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    >>> adapter = NOTE(model, update_every=8)
    >>> adapter.adapt(torch.rand(10, 3, 8, 8)).shape, adapter.memory.size
    (torch.Size([10, 10]), 10)
    """

    held = ("model", "optimizer", "memory", "seen")

    def __init__(
        self,
        model: nn.Module,
        classes: int | None = None,
        lr: float = 1e-4,
        optimizer: MakeOptimizer = "adam",
        capacity: int = 64,
        update_every: int = 64,
        momentum: float = 0.01,
        k: float = 4.0,
        instance_aware: bool = True,
        epochs: int = 1,
        parameters: Parameters = "affine",
        seed: int = 0,
        inplace: bool = False,
    ) -> None:
        between("momentum", momentum, 0, 1)
        if not k >= 0:
            raise ConfigError(f"k={k}: must be 0 or more")
        at_least("update_every", update_every, 1)
        at_least("epochs", epochs, 1)
        super().__init__(model, inplace)
        self.lr, self.capacity, self.update_every, self.momentum, self.k = lr, capacity, update_every, momentum, k
        self.instance_aware, self.epochs, self.parameters, self.seed = instance_aware, epochs, parameters, seed
        self.classes = outputs(self.model) if classes is None else classes
        self.memory = BalancedReservoir(capacity, self.classes, seed)
        make: Callable[[_BatchNorm], nn.Module] = partial(Running, momentum=momentum)
        if instance_aware:
            make = partial(InstanceAwareNorm, k=k, momentum=momentum)
        self.model = replace_batch_norm(self.model, make, required=True)
        self.optimizer = make_optimizer(optimizer, [*choose(self.model, parameters).values()], lr)
        self.seen = 0
        self.remember()

    def verify(self, x: Tensor) -> None:
        """Raise unless the memory knows the model's classes."""
        if self.num_classes != self.classes:
            raise ConfigError(f"classes={self.classes}: the model gives scores of {self.num_classes}")

    def changes_on(self, samples: int) -> int:
        """Return twice the updates that fall into a batch: each comes after changes of the memory."""
        return 2 * ((self.seen + samples) // self.update_every - self.seen // self.update_every)

    def update(self, x: Tensor) -> Tensor:
        """Predict samples and put them into the memory, which is learnt from at intervals; return the scores."""
        scores = []
        for part, full in rounds(self.seen, len(x), self.update_every):
            with torch.no_grad():
                scores.append(self.model(x[part]))
            demand_finite(scores[-1], "scores")
            for sample, label in zip(x[part], scores[-1].argmax(1).tolist(), strict=True):
                self.memory.add(sample, label)
            self.seen += part.stop - part.start
            if full:
                self.learn()
        return torch.cat(scores)

    def learn(self) -> None:
        """Step down the entropy on the memory, which the running statistics take in."""
        for _ in range(self.epochs):
            with taking_in(self.model):
                self.step(entropy(self.model(self.memory.kept())).mean())
