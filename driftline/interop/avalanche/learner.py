"""An Avalanche strategy as a learner, played by our runtime and measured by our metrics."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, cast

import torch
from avalanche.benchmarks import CLStream
from avalanche.models import DynamicModule, MultiTaskModule
from torch import Tensor, nn

from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.interop import randomness
from driftline.interop.avalanche.outgoing import experience_of
from driftline.interop.avalanche.state import packed, unpack
from driftline.learners.base import Learner, State
from driftline.stream.modules import check_same_model
from driftline.stream.parts import describe_part


class AvalancheLearner(Learner):
    """Plays a strategy of Avalanche: each batch that is learned from is one of its experiences.

    The batch size of the run thus is the size of an experience, and ``train_mb_size`` that of the strategy's own
    mini-batches. A batch never crosses segments: with one at least as large as the segments, each segment is one
    experience, as in Avalanche's class-incremental benchmarks; with a small one this is Avalanche's online setting.

    Parameters
    ----------
    strategy : SupervisedTemplate
        Any supervised strategy, with its plugins; not in the middle of training. Give it ``evaluator=None`` or one
        with quiet loggers: what it measures is not part of the learner.
    seed : int
        Of everything that is drawn while the strategy trains, from torch's, NumPy's and Python's global generators:
        what ``torch.manual_seed(seed)`` and its like before training would give. They are lent to it, and put back.
    **train
        Passed on to ``strategy.train``, such as ``shuffle=False``.

    Raises
    ------
    ConfigError
        For a model with a head for each task, since no learner is told the task.

    Notes
    -----
    A strategy decides how long a step takes, and whether that grows: Avalanche's replay with its default policy, and
    EWC with ``mode="separate"``, remember something of each experience.

    Its state is saved without Avalanche's pickles: model, optimizer, random states and all that strategy and plugins
    hold in tensors, numbers, datasets and objects of Avalanche's; a plugin that holds anything else cannot be saved,
    nor can a model whose layers grow be loaded into one that has not grown yet.

    Examples
    --------
    >>> import driftline
    >>> from avalanche.training.plugins import EvaluationPlugin
    >>> from avalanche.training.supervised import Replay
    >>> from driftline.interop.avalanche import AvalancheLearner
    >>> stream = driftline.scenarios.class_incremental(driftline.load("digits"), tasks=5)
    >>> model = driftline.models.mlp(stream.input_shape, 10, hidden=(32,), seed=0)
    >>> replay = Replay(
    ...     model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), criterion=nn.CrossEntropyLoss(),
    ...     mem_size=200, train_mb_size=10, train_epochs=2, evaluator=EvaluationPlugin(loggers=[]),
    ... )
    >>> metrics = [driftline.metrics.HeldOut(every=None)]
    >>> report = driftline.run(stream, AvalancheLearner(replay), batch_size=1000, metrics=metrics)
    >>> report.results["average_accuracy"] > 0.7
    True
    """

    def __init__(self, strategy: Any, *, seed: int = 0, **train: Any) -> None:
        model = getattr(strategy, "model", None)
        if not isinstance(model, nn.Module) or not hasattr(strategy, "train"):
            raise ConfigError(f"AvalancheLearner plays a strategy of Avalanche, got {type(strategy).__name__}")
        if any(isinstance(module, MultiTaskModule) for module in model.modules()):
            raise ConfigError(
                f"{type(model).__name__} has a head for each task, and a learner is not told the task; give a model "
                "with one head"
            )
        self.strategy, self.seed, self.train = strategy, seed, train
        self.experiences = 0
        self._grows = any(isinstance(module, DynamicModule) for module in model.modules())
        self._seen: set[int] = set()
        self._random = randomness.seeds(seed)
        self._origin = CLStream("train", [])
        self._dtype: torch.dtype | None = None

    def network(self) -> nn.Module:
        """Return the strategy's model."""
        return cast(nn.Module, self.strategy.model)

    def predict(self, x: Tensor) -> Tensor:
        """Return what the strategy's forward pass gives in evaluation."""
        self.check(x)
        with self._evaluating(x):
            return cast(Tensor, self.strategy.forward()).to(x.device)

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Train the strategy on an experience that holds this batch."""
        self.check(x, y)
        experience = experience_of(x.to("cpu", copy=True), y.to("cpu", torch.long, copy=True), self.experiences)
        experience.origin_stream = self._origin
        classes = set(torch.unique(y).tolist())
        experience.classes_in_this_experience = classes
        experience.previous_classes = set(self._seen)
        experience.classes_seen_so_far = self._seen | classes
        with randomness.lent(self._random), _without_deprecations():
            self.strategy.train(experience, eval_streams=[], **self.train)
        self._seen |= classes
        self.experiences += 1

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Raise if a batch cannot be used; the first of its kind is also tried on the model."""
        if self.trusted:
            return
        super().check(x)
        if x.dtype != self._dtype:
            try:
                with self._evaluating(x[:1]):
                    scores = self.strategy.forward()
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(
                    f"the strategy's model does not take samples of shape {tuple(x.shape[1:])} and {x.dtype}: {reason}"
                ) from error
            self.input_shape, self._dtype = tuple(x.shape[1:]), x.dtype
            self.num_classes = None if self._grows else scores.shape[-1]
        if y is not None:
            super().check(x, y)
            if y.is_floating_point():
                raise InputError(f"AvalancheLearner, y: class indices must be integers, got {y.dtype}; use y.long()")

    @contextmanager
    def _evaluating(self, x: Tensor) -> Iterator[None]:
        """Put the strategy where it is when it evaluates a mini-batch, for a while."""
        strategy = self.strategy
        training = [module for module in strategy.model.modules() if module.training]
        before = (strategy.is_training, strategy.mbatch, strategy.experience)
        nothing = torch.zeros(len(x), dtype=torch.long, device=strategy.device)
        strategy.is_training, strategy.experience = False, None
        strategy.mbatch = [x.to(strategy.device), nothing, nothing]
        strategy.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            strategy.is_training, strategy.mbatch, strategy.experience = before
            for module in training:
                module.training = True

    def to(self, device: torch.device | str) -> Self:
        """Move model and optimizer to ``device``; plugins move what they hold when they use it."""
        self.strategy.device = torch.empty(0, device=device).device
        self.strategy.model.to(self.strategy.device)
        self.strategy.optimizer.load_state_dict(self.strategy.optimizer.state_dict())
        return self

    def describe(self) -> dict[str, object]:
        """Return the strategy and what it is made of (JSON values)."""
        strategy = self.strategy
        kept = {name: value for name, value in vars(strategy).items() if isinstance(value, (bool, int, float, str))}
        parts = {
            "model": type(strategy.model).__name__,
            "parameters": sum(p.numel() for p in strategy.model.parameters()),
            "optimizer": describe_part(strategy.optimizer),
            "plugins": [describe_part(p) for p in strategy.plugins if p is not strategy.evaluator],
            "settings": {name: value for name, value in kept.items() if name[0] != "_" and name != "is_training"},
            "train": {name: value for name, value in self.train.items() if isinstance(value, (bool, int, float, str))},
            "seed": self.seed,
        }
        return {"name": type(strategy).__name__, "library": "avalanche", "parameters": parts}

    def state_dict(self) -> State:
        """Return model, optimizer, random states, and what strategy and plugins remember.

        Raises
        ------
        CheckpointError
            When a plugin holds something that cannot be saved.
        """
        return {
            "model": self.strategy.model.state_dict(),
            "optimizer": self.strategy.optimizer.state_dict(),
            "strategy": packed(self.strategy),
            "random": dict(self._random),
            "experiences": self.experiences,
            "classes": sorted(self._seen),
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict` of a learner built the same way."""
        wanted = {"model", "optimizer", "strategy", "random", "experiences", "classes"}
        if set(state) != wanted:
            raise CheckpointError(f"the state has parts {sorted(state)}, this learner {sorted(wanted)}")
        check_same_model(self.strategy.model, cast(Mapping[str, Tensor], state["model"]))
        before = copy.deepcopy(self.state_dict())
        try:
            self._load(state)
        except Exception as error:
            self._load(before)
            raise CheckpointError(f"the state does not fit this learner: {error}") from error

    def _load(self, state: Mapping[str, object]) -> None:
        self.strategy.model.load_state_dict(cast(Mapping[str, Tensor], state["model"]))
        self.strategy.optimizer.load_state_dict(copy.deepcopy(cast(State, state["optimizer"])))
        unpack(self.strategy, cast(State, state["strategy"]))
        self._random = dict(cast(State, state["random"]))
        self.experiences = cast(int, state["experiences"])
        self._seen = set(cast("list[int]", state["classes"]))


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Say nothing of deprecated methods: Avalanche's replay calls one of its own at each experience."""
    with warnings.catch_warnings(record=True) as said:
        yield
    for one in said:
        if not issubclass(one.category, DeprecationWarning):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
