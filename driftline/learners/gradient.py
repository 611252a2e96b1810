"""Online gradient descent with places for replay, penalties, renewers and the loss."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from driftline.errors import CheckpointError, ConfigError
from driftline.learners.base import Learner, State
from driftline.learners.contracts import (
    DirectPenalty,
    EarlyRenewer,
    LabelledPenalty,
    Loss,
    Penalty,
    Renewer,
    Schedule,
    Stateful,
    TaskModel,
    TaskPart,
)
from driftline.learners.lockstep.losses import over_replicas
from driftline.learners.lockstep.modules import ReplicatedBatchNorm
from driftline.learners.optimizers.named import check_step, named_optimizer
from driftline.learners.optimizers.stepping import take_step
from driftline.learners.replay import Replay
from driftline.learners.replay_ratio import FixedReplayRatio, ReplayRatio
from driftline.learners.task_loss import TaskCrossEntropy
from driftline.stream.modules import check_same_model, depends_on_mode, evaluate, probe
from driftline.stream.parts import describe_part

if TYPE_CHECKING:
    from driftline.learners.normalizer import InputNormalizer
    from driftline.native.lockstep import CompiledStep

BATCH_NORMS = (nn.BatchNorm1d, ReplicatedBatchNorm)


class GradientLearner(Learner):
    """A model trained by an optimizer on each batch as it comes.

    Parameters
    ----------
    model : nn.Module
        Any module that maps (B, *input) to scores (B, classes); changed in place.
    optimizer : Optimizer, callable or str
        A ``torch.optim.Optimizer`` over the model's parameters, or a function that makes one of them; or a name, see
        :func:`driftline.learners.optimizers.named_optimizer`.
    loss : callable
        ``loss(scores, y) -> scalar``, averaged over the batch.
    penalties : sequence of callable
        ``penalty(model) -> scalar``, added to the loss. One that has ``add_gradients(model)`` gets that called after
        the backward pass instead: the same gradient for less. One that has ``see(y)`` is given each update's labels.
    renewers : sequence
        ``renew(model, optimizer)`` is called after each optimizer step; and ``before_step(model)`` before it, of one
        that has this.
    replay : Replay, optional
        Memory of past samples. Each update trains on the new batch and as many replayed samples with one mean
        over both; new samples enter the memory after the update, as they came.
    replay_ratio : float or object
        Updates per batch, each with a fresh draw from the memory: 0 only stores the batch, 0.5 makes an update at
        every second batch. Or an object with ``ratio(position, model)``, such as
        :class:`~driftline.learners.AdaptiveReplayRatio`.
    replay_batch : int, optional
        Replayed samples per update; default: as many as there are new ones.
    normalizer : InputNormalizer, optional
        Stands in front of the model; sees each batch's inputs after they have been learned from. The memory keeps
        samples as they came.
    schedule : scheduler or callable, optional
        One of ``torch.optim.lr_scheduler`` over this optimizer, or :class:`driftline.learners.schedules.StepSizes`, or
        a function that makes one of the optimizer; stepped after each update.
    compile : bool
        Let :meth:`observe_each` train through compiled steps where model and parts allow it (small MLPs; see
        :mod:`driftline.native.lockstep`), else warn with the reason and go on without.

    Notes
    -----
    When the model behaves the same in training and in evaluation (no dropout, no batch normalisation),
    :meth:`observe` scores the batch with the forward pass that it learns from.

    One sample has no batch statistics: where an update sees a single one, ``BatchNorm1d`` layers use their running
    statistics, as in evaluation, and leave them as they are.

    Parts that have ``begin_task(task, classes)`` make the learner task-aware: the runtime tells them when a segment of
    another task begins. One that has ``as_task(model, task)`` is asked for the task's model in :meth:`predict_task`.

    Experience replay follows Chaudhry et al., "On Tiny Episodic Memories in Continual Learning" (2019).

    Raises
    ------
    ConfigError
        When the optimizer does not hold the model's parameters or cannot take a step from gradients (because it needs
        a closure), the schedule is another optimizer's, or a number is out of range.

    Examples
    --------
    >>> import torch
    >>> from driftline.learners import GradientLearner
    >>> model = torch.nn.Linear(4, 3)
    >>> learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))
    >>> x, y = torch.eye(4)[:3], torch.arange(3)
    >>> for _ in range(100):
    ...     scores = learner.observe(x, y)
    >>> learner.predict(x).argmax(1).tolist()
    [0, 1, 2]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer] | str,
        loss: Loss = F.cross_entropy,
        *,
        penalties: Sequence[Penalty] = (),
        renewers: Sequence[Renewer] = (),
        replay: Replay | None = None,
        replay_ratio: float | ReplayRatio = 1,
        replay_batch: int | None = None,
        normalizer: InputNormalizer | None = None,
        schedule: Schedule | Callable[[Optimizer], Schedule] | None = None,
        compile: bool = False,
    ) -> None:
        self.model = model
        make = named_optimizer(optimizer) if isinstance(optimizer, str) else optimizer
        self.optimizer = make if isinstance(make, Optimizer) else make(model.parameters())
        self.loss, self.penalties, self.renewers = loss, tuple(penalties), tuple(renewers)
        if isinstance(replay_ratio, float):
            replay_ratio = int(replay_ratio) if replay_ratio.is_integer() else FixedReplayRatio(replay_ratio)
        self.replay, self.replay_ratio, self.replay_batch = replay, replay_ratio, replay_batch
        self.normalizer, self.compile = normalizer, compile
        self.replicas = getattr(model, "replicas", None)
        self.position = 0
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if not held & {id(p) for p in model.parameters()}:
            raise ConfigError("the optimizer holds none of the model's parameters; make it from model.parameters()")
        if isinstance(replay_ratio, int) and replay_ratio < 0:
            raise ConfigError(f"replay_ratio={replay_ratio}: must be 0 or more updates per batch")
        if replay_batch is not None and replay_batch < 1:
            raise ConfigError(f"replay_batch={replay_batch}: must be at least 1")
        self._needs_graph = check_step(self.optimizer)
        made = schedule if schedule is None or hasattr(schedule, "step") else schedule(self.optimizer)
        self.schedule = cast("Schedule | None", made)
        if self.schedule is not None and getattr(self.schedule, "optimizer", self.optimizer) is not self.optimizer:
            raise ConfigError("the schedule is another optimizer's; make it from the one given here")
        self._added = tuple(p for p in self.penalties if not hasattr(p, "add_gradients"))
        self._direct = tuple(cast(DirectPenalty, p) for p in self.penalties if hasattr(p, "add_gradients"))
        self._labelled = tuple(cast(LabelledPenalty, p) for p in self.penalties if hasattr(p, "see"))
        self._watching = getattr(replay_ratio, "watching", None)
        self._early = tuple(cast(EarlyRenewer, r) for r in self.renewers if hasattr(r, "before_step"))
        self._axis = 0 if self.replicas is None else 1
        for part in (*self.penalties, *self.renewers):
            after, place = getattr(part, "after_step", None), "penalties" if part in self.penalties else "renewers"
            if after is not None and after != (place == "renewers"):
                other = "renewers" if after else "penalties"
                raise ConfigError(f"{type(part).__name__} as it was made belongs into {other}=[...], not {place}")
        self._two_modes = depends_on_mode(model)
        self._dtype: torch.dtype | None = None
        self._compiled: CompiledStep | None = None
        self._views: dict[int, Learner] = {}

    def network(self) -> nn.Module:
        """Return the model."""
        return self.model

    @property
    def task_aware(self) -> bool:
        """Whether a part wants to be told the task."""
        return bool(self.task_parts())

    def begin_task(self, task: int, classes: Tensor | None = None) -> None:
        """Tell every part that wants to know that samples of a task come from now on."""
        for part in self.task_parts():
            part.begin_task(task, classes)

    def predict_task(self, x: Tensor, task: int) -> Tensor:
        """Return scores (B, classes) with the model that the parts have for a task."""
        with self.as_task(task):
            return self.predict(x)

    @contextmanager
    def as_task(self, task: int) -> Iterator[None]:
        """Let the model be that of a task for a while, where a part has one for each."""
        with ExitStack() as stack:
            for part in self.renewers:
                if hasattr(part, "as_task"):
                    stack.enter_context(cast(TaskModel, part).as_task(self.model, task))
            yield

    def task_parts(self) -> list[TaskPart]:
        """Return the parts that want to be told the task."""
        optimizers: list[object] = [self.optimizer]
        while (inner := getattr(optimizers[-1], "optimizer", None)) is not None:
            optimizers.append(inner)
        parts = (*optimizers, self.loss, *self.penalties, *self.renewers)
        return [cast(TaskPart, part) for part in parts if hasattr(part, "begin_task")]

    def to(self, device: torch.device | str) -> Self:
        """Move model, optimizer state and memory to ``device``."""
        self.model.to(device)
        self.optimizer.load_state_dict(self.optimizer.state_dict())
        for part in (self.replay, self.replay_ratio, self.loss, self.normalizer, *self.penalties, *self.renewers):
            if part is not None and hasattr(part, "to"):
                part.to(device)
        self._compiled = None
        self._views.clear()
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Return scores (B, classes) with the model in evaluation mode."""
        self.check(x)
        return self._score(x)

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Make ``replay_ratio`` updates on the batch, then remember it."""
        self.check(x, y)
        self._learn(x, y)

    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        """Predict, then learn, with one forward pass where that gives the same."""
        self.check(x, y)
        before = self._score(x) if self._two_modes else None
        during = self._learn(x, y)
        if before is None:
            before = self._score(x) if during is None else during.detach().narrow(self._axis, 0, x.shape[self._axis])
        return before

    def observe_each(self, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
        """Observe consecutive batches one after the other, with compiled steps where there are any."""
        if self.compile and self._compiled is None:
            self._compiled = self._compile()
        if self._compiled is None:
            return super().observe_each(x, y, batch_size)
        self.check(x, y)
        if self.normalizer is not None:
            # What a batch is normalised by depends on earlier inputs only, so it can be done ahead.
            batches = x.split(batch_size, self._axis)  # type: ignore[no-untyped-call]
            x = torch.cat([self._normalise_and_note(self.normalizer, batch) for batch in batches], self._axis)
        scores = self._compiled(x, y, batch_size)
        self.position += x.shape[self._axis]
        return scores

    @staticmethod
    def _normalise_and_note(normalizer: InputNormalizer, batch: Tensor) -> Tensor:
        normalised = normalizer(batch)
        normalizer.update(batch)
        return normalised

    def _compile(self) -> CompiledStep | None:
        from driftline.native import lockstep

        trained = cast(lockstep.Trained, self)
        compiled = lockstep.plan(trained)
        if compiled is None:
            reason = lockstep.why_not(trained)
            warnings.warn(f"compile=True: steps are not compiled: {reason}", RuntimeWarning, stacklevel=3)
            self.compile = False
        return compiled

    def replica(self, number: int) -> Learner:
        """Return one of the replicas, to be looked at: its model's parameters are views of this one's."""
        from driftline.learners.lockstep.view import ReplicaView

        if self.replicas is None:
            return super().replica(number)
        if number not in self._views:
            self._views[number] = ReplicaView(self, number)
        return self._views[number]

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Raise if a batch cannot be used; the first of its kind is also tried on the model."""
        if self.trusted:
            return
        super().check(x)
        if x.dtype != self._dtype:
            scores = probe(self.model, x, self._axis)
            self.input_shape, self._dtype = tuple(x.shape[1 + self._axis :]), x.dtype
            of_classes = self.loss is F.cross_entropy or isinstance(self.loss, TaskCrossEntropy)
            self.num_classes = scores.shape[-1] if of_classes else None
        if y is not None:
            super().check(x, y)

    def _score(self, x: Tensor) -> Tensor:
        if self.normalizer is not None:
            x = self.normalizer(x)
        if self._two_modes:
            return evaluate(self.model, x)
        with torch.no_grad():
            return cast(Tensor, self.model(x))

    def _learn(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Return the first update's scores, those of ``x`` in front, or None without an update."""
        y = y if y.is_floating_point() else y.long()
        ratio = self.replay_ratio
        updates = ratio if isinstance(ratio, int) else ratio.ratio(self.position, self.model)
        scores = None
        for update in range(updates):
            during = self._update(x, y)
            if update == 0:
                scores = during
        if self.replay is not None:
            self.replay.add(x, y)
        if self.normalizer is not None:
            self.normalizer.update(x)
        self.position += x.shape[self._axis]
        return scores

    def _update(self, x: Tensor, y: Tensor) -> Tensor:
        axis = self._axis
        if self.replay is not None and (drawn := self.replay.sample(self.replay_batch or x.shape[axis])) is not None:
            x, y = torch.cat((x, drawn[0]), axis), torch.cat((y, drawn[1]), axis)
        for labelled in self._labelled:
            labelled.see(y)
        x = x if self.normalizer is None else self.normalizer(x)
        if self._watching is None:
            scores = self._forward(x)
        else:
            with self._watching(self.model):
                scores = self._forward(x)
        loss = self.loss(scores, y) if self.replicas is None else over_replicas(self.loss, scores, y)
        for penalty in self._added:
            loss = loss + penalty(self.model)
        # What zero_grad does, without its entry in the profiler, which costs a small network a tenth of its step.
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        self._backward(loss)
        for direct in self._direct:
            direct.add_gradients(self.model)
        for early in self._early:
            early.before_step(self.model)
        take_step(self.optimizer)
        if self._needs_graph:
            self._forget_graph()
        if self.schedule is not None:
            self.schedule.step()
        for renewer in self.renewers:
            renewer.renew(self.model, self.optimizer)
        return scores

    def _backward(self, loss: Tensor) -> None:
        """Leave the gradients with the parameters."""
        if not self._needs_graph:
            loss.backward()  # type: ignore[no-untyped-call]
            return
        params = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        # What backward(create_graph=True) does, without its warning of a cycle, which forgetting the graph breaks.
        for p, gradient in zip(params, torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)):
            p.grad = gradient

    def _forget_graph(self) -> None:
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                p.grad = None if p.grad is None else p.grad.detach()

    def _forward(self, x: Tensor) -> Tensor:
        """Return scores in training mode."""
        if not self._two_modes or x.shape[self._axis] > 1:
            return cast(Tensor, self.model(x))
        norms = [m for m in self.model.modules() if isinstance(m, BATCH_NORMS) and m.training]
        for norm in norms:
            norm.training = False
        try:
            return cast(Tensor, self.model(x))
        finally:
            for norm in norms:
                norm.training = True

    def describe(self) -> dict[str, object]:
        """Return what the learner is made of (JSON values)."""
        ratio = self.replay_ratio
        parts = {
            "model": type(self.model).__name__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "optimizer": describe_part(self.optimizer),
            "loss": self._describe_loss(),
            "penalties": [describe_part(p) for p in self.penalties],
            "renewers": [describe_part(r) for r in self.renewers],
            "replay": None if self.replay is None else self.replay.describe(),
            "replay_ratio": ratio if isinstance(ratio, int) else describe_part(ratio),
            "replay_batch": self.replay_batch,
            "normalizer": None if self.normalizer is None else describe_part(self.normalizer),
            **({} if self.schedule is None else {"schedule": describe_part(self.schedule)}),
            "replicas": self.replicas,
            **({"told_tasks": True} if self.task_aware else {}),
        }
        return {"name": type(self).__name__, "parameters": parts}

    def _describe_loss(self) -> object:
        if inspect.isroutine(self.loss) or isinstance(self.loss, nn.Module):
            return getattr(self.loss, "__name__", type(self.loss).__name__)
        return describe_part(self.loss)

    def state_dict(self) -> State:
        """Return model, optimizer, memory and the state of every part that has one."""
        state: State = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": self.position,
        }
        for name, part in self._parts():
            state[name] = part.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict` of a learner built the same way."""
        wanted = {"model", "optimizer", "position", *(name for name, _ in self._parts())}
        if set(state) != wanted:
            raise CheckpointError(
                f"the state has parts {sorted(state)}, this learner {sorted(wanted)}; build the learner as it was saved"
            )
        check_same_model(self.model, cast(Mapping[str, Tensor], state["model"]))
        before = copy.deepcopy(self.state_dict())
        try:
            self._load(state)
        except Exception as error:
            self._load(before)
            raise CheckpointError(f"the state does not fit this learner: {error}") from error

    def _load(self, state: Mapping[str, object]) -> None:
        groups = cast("list[State]", cast(State, state["optimizer"])["param_groups"])
        for saved, group in zip(groups, self.optimizer.param_groups):
            # What an optimizer counts in its groups is not there before its first step.
            if missing := sorted((set(group) & set(self.optimizer.defaults)) - set(saved)):
                raise CheckpointError(f"it was saved with another optimizer, without {', '.join(missing)}")
        # Compiled steps know where tensors are, and loading may replace some.
        self._compiled = None
        self.model.load_state_dict(cast(Mapping[str, Tensor], state["model"]))
        # Optimizers keep the tensors they are given; the other side may go on writing to them.
        self.optimizer.load_state_dict(copy.deepcopy(cast(State, state["optimizer"])))
        self.position = cast(int, state["position"])
        for name, part in self._parts():
            part.load_state_dict(cast(State, state[name]))

    def _parts(self) -> list[tuple[str, Stateful]]:
        named: list[tuple[str, object]] = [
            ("replay", self.replay),
            ("replay_ratio", self.replay_ratio),
            ("loss", self.loss),
            ("normalizer", self.normalizer),
            ("schedule", self.schedule),
        ]
        named += [(f"penalty {i}", p) for i, p in enumerate(self.penalties)]
        named += [(f"renewer {i}", r) for i, r in enumerate(self.renewers)]
        return [(name, cast(Stateful, part)) for name, part in named if hasattr(part, "state_dict")]
