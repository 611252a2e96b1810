"""A penalty, a renewer or an optimizer of ours as a plugin, inside Avalanche's own strategies."""

from __future__ import annotations

from typing import Any, Protocol, cast

from avalanche.core import SupervisedPlugin
from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.errors import ConfigError


class Strategy(Protocol):
    """What is used of Avalanche's strategies."""

    model: nn.Module
    optimizer: Optimizer
    loss: Tensor
    mb_y: Tensor


def as_plugin(part: object) -> SupervisedPlugin:
    """Make a plugin of a part, for ``plugins=[...]`` of any supervised strategy of Avalanche.

    Parameters
    ----------
    part : penalty, renewer or Optimizer
        Made for the strategy's model. A penalty joins the loss before the backward pass (or the gradients after it,
        where it knows them), and is told each batch's labels if it wants them. A renewer follows each step. An
        optimizer takes the place of the strategy's own. Those made with ``form="boundary"`` consolidate, or shrink and
        perturb, at the end of each experience.

    Returns
    -------
    SupervisedPlugin
        In the order of ``plugins`` among others.

    Raises
    ------
    ConfigError
        For anything else, or a part with replicas; when training begins, for an optimizer of other parameters.

    Notes
    -----
    At the start of training Avalanche empties the state of a strategy's optimizer; an optimizer given here begins at
    that moment. A penalty that judges by gradients sees those of the whole loss, other plugins' terms included.

    Examples
    --------
    >>> import torch, driftline
    >>> from avalanche.training.plugins import EvaluationPlugin
    >>> from avalanche.training.supervised import Naive
    >>> from driftline.interop.avalanche import as_plugin, to_avalanche
    >>> from driftline.learners.penalties import L2Init
    >>> benchmark = to_avalanche(driftline.scenarios.class_incremental(driftline.load("digits"), tasks=5))
    >>> model = driftline.models.mlp((1, 8, 8), 10, hidden=(32,), seed=0)
    >>> start = torch.cat([p.detach().flatten() for p in model.parameters()])
    >>> strategy = Naive(
    ...     model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.05), train_mb_size=10,
    ...     plugins=[as_plugin(L2Init(model, strength=1.0))], evaluator=EvaluationPlugin(loggers=[]),
    ... )
    >>> _ = strategy.train(benchmark.train_stream)
    >>> bool((torch.cat([p.detach().flatten() for p in model.parameters()]) - start).norm() < 1)
    True
    """
    if getattr(part, "replicas", None) is not None:
        raise ConfigError(f"{type(part).__name__} has replicas, and Avalanche's strategies train one model")
    if isinstance(part, Optimizer):
        return OptimizerPlugin(part)
    after = getattr(part, "after_step", None)
    if hasattr(part, "renew") and after is not False:
        return RenewerPlugin(part)
    if callable(part) and not isinstance(part, (nn.Module, type)):
        return PenaltyPlugin(part)
    raise ConfigError(
        f"{type(part).__name__} is no penalty (callable with a model), renewer (with renew) nor optimizer; learners go "
        "into DriftlineStrategy"
    )


class PenaltyPlugin(SupervisedPlugin):  # type: ignore[misc]
    """Adds a penalty to a strategy's loss or gradients."""

    def __init__(self, penalty: Any) -> None:
        super().__init__()
        self.penalty = penalty
        self._direct = hasattr(penalty, "add_gradients")

    def before_forward(self, strategy: Strategy, **kwargs: Any) -> None:
        """Tell a penalty that depends on labels those of the batch."""
        if hasattr(self.penalty, "see"):
            self.penalty.see(strategy.mb_y)

    def before_backward(self, strategy: Strategy, **kwargs: Any) -> None:
        """Add the term."""
        if not self._direct:
            strategy.loss = strategy.loss + self.penalty(strategy.model)

    def after_backward(self, strategy: Strategy, **kwargs: Any) -> None:
        """Add the term's gradient."""
        if self._direct:
            self.penalty.add_gradients(strategy.model)

    def after_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Consolidate where that is left to boundaries."""
        if getattr(self.penalty, "form", None) == "boundary" and getattr(self.penalty, "every", None) is None:
            self.penalty.consolidate()


class RenewerPlugin(SupervisedPlugin):  # type: ignore[misc]
    """Lets a renewer follow each step of a strategy's optimizer."""

    def __init__(self, renewer: Any) -> None:
        super().__init__()
        self.renewer = renewer

    def after_update(self, strategy: Strategy, **kwargs: Any) -> None:
        """Renew."""
        self.renewer.renew(strategy.model, strategy.optimizer)


class OptimizerPlugin(SupervisedPlugin):  # type: ignore[misc]
    """Puts an optimizer in the place of a strategy's own."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__()
        self.optimizer = optimizer

    def before_training(self, strategy: Strategy, **kwargs: Any) -> None:
        """Take the place, before the strategy prepares its optimizer."""
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if not held & {id(p) for p in strategy.model.parameters()}:
            raise ConfigError(
                f"{type(self.optimizer).__name__} holds none of the strategy's model's parameters; make it from "
                "model.parameters()"
            )
        strategy.optimizer = self.optimizer

    def after_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Shrink and perturb where that is left to boundaries."""
        if getattr(self.optimizer, "form", None) == "boundary":
            cast(Any, self.optimizer).shrink_and_perturb()
