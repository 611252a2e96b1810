"""A learner of ours as an Avalanche strategy: trained on its experiences, measured by its metrics and loggers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.errors import ConfigError
from driftline.learners.base import Learner

OWNED = ("before_backward", "after_backward", "before_update")
"""Callbacks that act on a loss and gradients which only the learner has."""


class Predictor(nn.Module):
    """What a learner predicts, as a module: for Avalanche's evaluation, which calls a model.

    The learner's network is there to be looked at; its modes and its device are the learner's business.

    Parameters
    ----------
    learner : Learner
        Who predicts.
    """

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.network = learner.network()
        self.learner = learner
        self.classes = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, classes)."""
        return self.wide(self.learner.predict(x))

    def wide(self, scores: Tensor) -> Tensor:
        """Return scores with a column for each class met so far; those that the learner does not know score -Inf."""
        return F.pad(scores, (0, max(0, self.classes - scores.shape[-1])), value=float("-inf"))

    def train(self, mode: bool = True) -> Predictor:
        """Leave the network's modes as they are."""
        self.training = mode
        return self

    def to(self, device: torch.device | str) -> Predictor:  # type: ignore[override]
        """Move the learner to a device, whole."""
        self.learner.to(device)
        return self


class DriftlineStrategy(SupervisedTemplate):  # type: ignore[misc]
    """Trains a learner on Avalanche's experiences, with ``EvaluationPlugin``, its metrics and its loggers.

    Each batch is observed: predicted, then learned from, by the learner's own loss, optimizer, replay and parts. The
    training metrics thus see predictions from before the batch was learned from (online accuracy).

    Parameters
    ----------
    learner : Learner
        Who learns; any of them, not only those with a network.
    train_mb_size, train_epochs, eval_mb_size, device, plugins, evaluator, eval_every, peval_mode
        As for every strategy of Avalanche. Plugins that only watch, or change which batches come (such as
        ``ReplayPlugin``), work; those that change the loss or gradients are refused.
    criterion : callable
        What loss metrics show, ``criterion(scores, y)``; nothing is trained with it.

    Raises
    ------
    ConfigError
        For a learner with replicas, or a plugin that acts on the loss or gradients.

    Notes
    -----
    Avalanche shuffles each experience: for a stream's own order, ``strategy.train(experience, shuffle=False)``. Task
    labels are not passed on. Where a class has been met that the learner gives no score for yet, it scores -Inf, and
    a loss metric shows Inf.

    Examples
    --------
    >>> import driftline
    >>> from avalanche.evaluation.metrics import accuracy_metrics
    >>> from driftline.interop.avalanche import DriftlineStrategy, to_avalanche
    >>> from driftline.learners import StreamingLDA
    >>> benchmark = to_avalanche(driftline.scenarios.class_incremental(driftline.load("digits"), tasks=5))
    >>> evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[])
    >>> strategy = DriftlineStrategy(StreamingLDA(), train_mb_size=10, evaluator=evaluator)
    >>> _ = strategy.train(benchmark.train_stream)
    >>> round(strategy.eval(benchmark.test_stream)["Top1_Acc_Stream/eval_phase/test_stream"], 1)
    1.0
    """

    def __init__(
        self,
        learner: Learner,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 512,
        device: str | torch.device = "cpu",
        plugins: Sequence[Any] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] | None = default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
        criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        if learner.replicas is not None:
            raise ConfigError("Avalanche's strategies train one model; give a learner without replicas")
        for plugin in plugins or ():
            acting = [name for name in OWNED if _has(plugin, name)]
            if acting:
                raise ConfigError(
                    f"{type(plugin).__name__} acts on the strategy's loss or gradients ({acting[0]}), but only the "
                    "learner has those; give the learner such a part of its own (penalties=[...])"
                )
        self.learner = learner
        super().__init__(
            model=Predictor(learner),
            optimizer=getattr(learner, "optimizer", None),
            criterion=criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=plugins,
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )

    def training_epoch(self, **kwargs: Any) -> None:
        """Let the learner observe each batch."""
        for self.mbatch in self.dataloader:  # noqa: B020
            if self._stop_training:
                break
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            self._before_forward(**kwargs)
            self._meet(self.mb_y)
            self.mb_output = self.model.wide(self.learner.observe(self.mb_x, self.mb_y))
            self._after_forward(**kwargs)
            self.loss = self.criterion()
            self._after_update(**kwargs)
            self._after_training_iteration(**kwargs)

    def eval_epoch(self, **kwargs: Any) -> None:
        """Make room for the scores of all classes that are asked for."""
        self._meet(torch.tensor([int(label) for label in self.adapted_dataset.targets.uniques]))
        super().eval_epoch(**kwargs)

    def _meet(self, y: Tensor) -> None:
        self.model.classes = max(self.model.classes, int(y.max()) + 1)

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Leave both to the learner."""

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        """Return the model as it is."""
        return self.model if model is None else model


# Avalanche replaces the constructor by one that warns of arguments given by position, of which we want one.
DriftlineStrategy.__init__ = DriftlineStrategy.__init__.__wrapped__  # type: ignore[attr-defined,method-assign]


def _has(plugin: object, name: str) -> bool:
    """Whether a plugin does something at a callback."""
    own = getattr(type(plugin), name, None)
    return own is not None and own is not getattr(SupervisedPlugin, name, None)
