"""A whole training loop of a small network, of one run or of many in lockstep, as one call into C.

A step of a network with a hundred weights costs PyTorch hundreds of microseconds, nearly all of them overhead. Here
the loop over the batches itself is compiled, for the learners that :func:`why_not` says nothing against. It changes
the same tensors that the learner's parts hold, by the same rules and the same random numbers, so compiled and other
steps can alternate and a checkpoint of either continues with either.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from driftline import native
from driftline.errors import InputError
from driftline.learners.losses import squared_error
from driftline.native import structures
from driftline.native.build import library
from driftline.native.layout import Layout
from driftline.native.network import UnsupportedError, dense_layers
from driftline.native.renewing import Renewing
from driftline.native.replaying import Replaying

WORTH_A_THREAD = 5e7
"""Multiplications, some tens of milliseconds, below which another thread may cost more than it gains."""


class Trained(Protocol):
    """The parts of a learner that take part in a step (an input normaliser is applied before)."""

    model: nn.Module
    optimizer: Optimizer
    loss: Callable[[Tensor, Tensor], Tensor]
    penalties: Sequence[object]
    renewers: Sequence[object]
    replay: object | None
    replay_ratio: object
    replay_batch: int | None
    normalizer: object | None
    schedule: object | None
    replicas: int | None


def plan(learner: Trained) -> CompiledStep | None:
    """Return compiled steps for a learner, or None where :func:`why_not` gives a reason.

    Parameters
    ----------
    learner : Trained
        Such as a :class:`driftline.learners.GradientLearner`: a multilayer perceptron of float32 weights on the CPU;
        cross-entropy or :func:`driftline.learners.losses.squared_error`; SGD without momentum, PerturbedSGD,
        ShrinkAndPerturb or weight-wise first-order UPGD; the penalties L2 and L2Init; ContinualBackprop. Without
        replicas also experience replay from any of the memories here, and several updates for each batch.

    Examples
    --------
    >>> from driftline import models
    >>> from driftline.learners import GradientLearner
    >>> model = models.mlp(4, classes=3, hidden=(5,))
    >>> learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))
    >>> if (step := plan(learner)) is not None:
    ...     scores = step(torch.rand(100, 4), torch.zeros(100, dtype=torch.long), batch_size=1)
    ...     assert scores.shape == (100, 3)
    """
    try:
        return CompiledStep(learner)
    except UnsupportedError:
        return None


def why_not(learner: Trained) -> str:
    """Return the first part of a learner that has no compiled form, and why; empty where all have one.

    Examples
    --------
    >>> from driftline.learners import GradientLearner
    >>> model = nn.Linear(4, 3)
    >>> why_not(GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)))
    'SGD with momentum=0.9 has no compiled form'
    """
    try:
        CompiledStep(learner)
    except UnsupportedError as reason:
        return str(reason)
    return ""


class CompiledStep:
    """Trains a learner's model over consecutive batches in one call.

    The learner's parts are read at each call, so learning rates may be changed in between; the model's layers and
    which parts there are may not. Gains most where networks and batches are small; for hundreds of units and as many
    samples in a batch, PyTorch is as fast.

    Parameters
    ----------
    learner : Trained
        Whose model, optimizer state and renewer are changed.
    """

    def __init__(self, learner: Trained) -> None:
        self.learner = learner
        self.many = learner.replicas is not None
        self.replicas = learner.replicas or 1
        if not native.available():
            raise UnsupportedError(f"the kernels in C cannot be used here: {native.problem()}")
        if learner.replay is not None or learner.replay_ratio != 1:
            if self.many:
                raise UnsupportedError("replay in lockstep has no compiled form")
            if learner.normalizer is not None:
                raise UnsupportedError("replay behind an input normaliser has no compiled form")
        self._replaying = Replaying(learner.replay, learner.replay_ratio, learner.replay_batch)
        if learner.schedule is not None:
            raise UnsupportedError("a schedule has no compiled form")
        if learner.loss not in (F.cross_entropy, squared_error):
            name = getattr(learner.loss, "__name__", type(learner.loss).__name__)
            raise UnsupportedError(f"the loss {name} has no compiled form; cross_entropy and squared_error have")
        self.layers, self._flattens = dense_layers(learner.model)
        self.inputs, self.outputs = self.layers[0].module.in_features, self.layers[-1].module.out_features
        self._layout = Layout(learner.model, self.layers, learner.optimizer, learner.penalties, self.replicas)
        self._renewing = Renewing(learner.renewers, self.layers, learner.optimizer, self.replicas)

    def __call__(self, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
        """Train on batches one after the other.

        Parameters
        ----------
        x : Tensor, shape (N, *input), or (R, N, *input) with replicas
            All batches' inputs, float32; expanded along R, replicas share them.
        y : Tensor, shape (N,) or (N, K), or (R, N) or (R, N, K) with replicas
            Labels, or targets.
        batch_size : int
            Samples in a batch; the last one may be smaller.

        Returns
        -------
        Tensor, shape (N, K), or (R, N, K)
            Scores of each sample before the update on its batch.

        Raises
        ------
        InputError
            For inputs or targets that the model cannot use; nothing has been changed then.
        """
        inputs = self._inputs(x)
        targets = self._targets(y, inputs[0].shape[-2])
        if self._replaying.plain:
            scores = self._update(*inputs, *targets, batch_size)
            return scores if self.many else scores[0]
        parts = [torch.empty(0, self.outputs)]
        for run in self._replaying.runs(x, y if y.is_floating_point() else y.long(), batch_size):
            trained = self._update(*self._inputs(run.x), *self._targets(run.y, len(run.x)), run.size)
            parts.append(run.first(trained[0]))
        return torch.cat(parts)

    def _update(self, x: Tensor, x_stride: int, y: Tensor, y_stride: int, batch_size: int) -> Tensor:
        """Train on batches one after the other; return scores (R, N, K)."""
        scores = torch.empty(self.replicas, x.shape[-2], self.outputs)
        steps = -(-x.shape[-2] // batch_size)
        kept: list[object] = []
        layers, optimizer = self._layout.lay_out(kept)
        task = structures.Training(
            replicas=self.replicas,
            layers=len(layers),
            samples=x.shape[-2],
            batch=batch_size,
            layer=ctypes.addressof(layers),
            x=x.data_ptr(),
            y=y.data_ptr(),
            x_stride=x_stride,
            y_stride=y_stride,
            scores=scores.data_ptr(),
            loss=int(self.learner.loss is F.cross_entropy),
            optimizer=optimizer,
            renewal=self._renewing.lay_out(kept),
        )
        self._train(task)
        self._layout.count(steps)
        self._renewing.take_back(steps)
        return scores

    def _train(self, task: structures.Training) -> None:
        train = library().train
        work = 3.0 * task.samples * sum(p.numel() for p in self._layout.params)
        threads = max(1, min(torch.get_num_threads(), self.replicas, int(work / WORTH_A_THREAD)))
        ends = [self.replicas * i // threads for i in range(threads + 1)]
        ranges = [(ctypes.byref(task), ctypes.c_int64(a), ctypes.c_int64(b)) for a, b in zip(ends, ends[1:])]
        if threads == 1:
            done = [train(*ranges[0])]
        else:
            with ThreadPoolExecutor(threads) as pool:
                done = list(pool.map(lambda arguments: train(*arguments), ranges))
        if not all(done):
            raise MemoryError("no memory for a step's activations")

    def _inputs(self, x: Tensor) -> tuple[Tensor, int]:
        """Return inputs (R?, N, inputs), contiguous, and the stride from one replica's to the next one's."""
        lead = int(self.many)
        shape = tuple(x.shape[lead + 1 :])
        flat = x.flatten(lead + 1) if self._flattens else x
        if x.dtype != torch.float32 or flat.shape[lead + 1 :] != (self.inputs,) or x.device.type != "cpu":
            raise InputError(f"the model takes {self.inputs} inputs in float32 on the CPU, got {shape} in {x.dtype}")
        if self.many and x.shape[0] != self.replicas:
            raise InputError(f"x has {x.shape[0]} replicas, the model {self.replicas}")
        return _shared(flat, self.many)

    def _targets(self, y: Tensor, samples: int) -> tuple[Tensor, int]:
        lead = int(self.many)
        if y.shape[: lead + 1] != ((self.replicas, samples) if self.many else (samples,)):
            raise InputError(f"y has shape {tuple(y.shape)}, but there are {samples} samples")
        if self.learner.loss is squared_error:
            if y.dim() == lead + 1 and self.outputs == 1:
                y = y.unsqueeze(-1)
            if tuple(y.shape[lead + 1 :]) != (self.outputs,):
                raise InputError(f"squared_error: {self.outputs} scores and targets of shape {tuple(y.shape)}")
            return _shared(y.to(torch.float32), self.many)
        if y.is_floating_point() or y.dim() != lead + 1:
            raise InputError(f"cross_entropy: labels must be whole numbers, one for each sample; got {tuple(y.shape)}")
        labels, stride = _shared(y.long(), self.many)
        low, high = (int(labels.min()), int(labels.max())) if labels.numel() else (0, 0)
        if low < 0 or high >= self.outputs:
            raise InputError(f"labels must lie in 0 .. {self.outputs - 1}, got {low} .. {high}")
        return labels, stride


def _shared(values: Tensor, many: bool) -> tuple[Tensor, int]:
    """Return values contiguous, once where all replicas share them, and the stride between replicas."""
    if not many:
        return values.contiguous(), 0
    if len(values) == 1 or values.stride(0) == 0:
        return values[0].contiguous(), 0
    values = values.contiguous()
    return values, values[0].numel()
