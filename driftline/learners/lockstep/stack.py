"""Many learners into one that steps them all at once: models, optimizers, penalties, renewers, memories and all."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.errors import CheckpointError, ConfigError
from driftline.learners.base import Learner
from driftline.learners.contracts import Stateful
from driftline.learners.gradient import GradientLearner
from driftline.learners.lockstep.modules import stack_models
from driftline.learners.lockstep.optimizer import ELEMENTWISE, RatePerReplica
from driftline.learners.lockstep.replay import StackedReplay
from driftline.learners.lockstep.side_by_side import SideBySide
from driftline.learners.normalizer import InputNormalizer
from driftline.learners.replay import Replay
from driftline.learners.replay_ratio import FixedReplayRatio, ReplayRatio
from driftline.stream.modules import draws_globally
from driftline.stream.parts import settings_of


def in_lockstep(learners: Sequence[Learner], seeds: Sequence[int] | None = None) -> Learner:
    """Return one learner that is all of these in lockstep: replica i does what ``learners[i]`` would do alone.

    Gradient learners of the same form become one with a leading dimension R on every parameter and state tensor;
    settings that are numbers may differ. Everything else is stepped side by side, which is right but no faster.

    Parameters
    ----------
    learners : sequence of Learner
        New ones, that have not learned yet. What their losses and penalties were told before (tasks, importances) is
        copied.
    seeds : sequence of int, optional
        Of each run, for learners that draw from torch's global generator. Default: 0, 1, ...

    Returns
    -------
    Learner
        Takes x (R, B, *input) and y (R, B), gives scores (R, B, classes).

    Warns
    -----
    RuntimeWarning
        With the reason, when gradient learners cannot be batched.

    Examples
    --------
    >>> import torch
    >>> from driftline import models
    >>> def make(seed, lr):
    ...     model = models.mlp(4, classes=3, hidden=(8,), seed=seed)
    ...     return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=lr))
    >>> both = in_lockstep([make(0, 0.1), make(1, 0.2)])
    >>> both.observe(torch.rand(2, 5, 4), torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 3])
    """
    if not learners:
        raise ConfigError("in_lockstep needs at least one learner")
    seeds = list(range(len(learners))) if seeds is None else seeds
    if len(seeds) != len(learners):
        raise ConfigError(f"{len(learners)} learners, but {len(seeds)} seeds; give one for each")
    if all(type(learner) is GradientLearner for learner in learners):
        try:
            return Stacker(cast("Sequence[GradientLearner]", learners)).learner()
        except CannotStackError as reason:
            warnings.warn(f"the replicas are stepped one by one: {reason}", RuntimeWarning, stacklevel=2)
    return SideBySide(learners, seeds)


class CannotStackError(ConfigError):
    """Parts of learners that cannot be one part with replicas; says which and why."""


class Stacker:
    """Makes one gradient learner of many."""

    def __init__(self, learners: Sequence[GradientLearner]) -> None:
        self.learners = learners
        self.replicas = len(learners)
        models = [learner.model for learner in learners]
        if any(draws_globally(model) for model in models):
            raise CannotStackError("a module draws from torch's global generator (dropout)")
        if any(learner.position for learner in learners):
            raise CannotStackError("some have learned already")
        if any(getattr(part, "task", None) for learner in learners for part in learner.task_parts()):
            raise CannotStackError("some have been told a task already, which a part with replicas would forget")
        try:
            self.model = stack_models(models)
        except ConfigError as error:
            raise CannotStackError(str(error)) from error
        # What a part refers to in its own model, and the same in the stacked one.
        self._same: dict[int, object] = {}
        for model in models:
            self._same |= _counterparts(model.named_modules(), dict(self.model.named_modules()))
            self._same |= _counterparts(model.named_parameters(), dict(self.model.named_parameters()))

    def learner(self) -> GradientLearner:
        """Return the learner."""
        if len({(len(one.penalties), len(one.renewers)) for one in self.learners}) > 1:
            raise CannotStackError("they have different numbers of penalties or renewers")
        if any(one.schedule is not None for one in self.learners):
            raise CannotStackError("a schedule changes the learning rate of one optimizer, not of replicas")
        first = self.learners[0]
        optimizer = self._optimizer([one.optimizer for one in self.learners])
        return GradientLearner(
            self.model,
            optimizer,
            cast("Callable[[Tensor, Tensor], Tensor]", self._with_state([one.loss for one in self.learners], "loss")),
            penalties=[self._with_state(p, "penalty") for p in zip(*(one.penalties for one in self.learners))],  # type: ignore[misc]
            renewers=[self._part(list(r), "renewer") for r in zip(*(one.renewers for one in self.learners))],  # type: ignore[misc]
            replay=self._replay([one.replay for one in self.learners]),
            replay_ratio=self._replay_ratio(),
            replay_batch=self._merge([one.replay_batch for one in self.learners], "replay_batch"),  # type: ignore[arg-type]
            normalizer=self._normalizer([one.normalizer for one in self.learners]),
            compile=first.compile,
        )

    def _normalizer(self, normalizers: Sequence[InputNormalizer | None]) -> InputNormalizer | None:
        if all(normalizer is None for normalizer in normalizers):
            return None
        return cast(InputNormalizer, self._part(normalizers, "normalizer"))

    def _replay_ratio(self) -> float | ReplayRatio:
        """Return the one number of updates: in lockstep, all replicas make the same."""
        ratios = [one.replay_ratio for one in self.learners]
        first = ratios[0]
        if all(type(r) is FixedReplayRatio and r.updates == getattr(first, "updates", None) for r in ratios):
            return first
        if hasattr(first, "watching"):
            name = type(first).__name__
            raise CannotStackError(f"{name} decides for each replica how many updates it makes, so they differ")
        if any(ratio is not first and ratio != first for ratio in ratios):
            raise CannotStackError(f"their replay_ratio differs: {', '.join(str(ratio) for ratio in ratios)}")
        return first

    def _replay(self, memories: Sequence[Replay | None]) -> Replay | None:
        found = [memory for memory in memories if memory is not None]
        if not found:
            return None
        if len(found) < self.replicas or len({(type(m), m.capacity) for m in found}) > 1:
            raise CannotStackError("their memories differ in kind or capacity")
        return cast(Replay, StackedReplay(found))

    def _part(self, parts: Sequence[object], what: str) -> object:
        """Return one part with replicas for one part of each learner."""
        first = parts[0]
        kind = type(first)
        if any(type(part) is not kind for part in parts):
            raise CannotStackError(f"the {what} of some is a {kind.__name__}, of others not")
        if isinstance(first, Optimizer):
            return self._optimizer(cast("Sequence[Optimizer]", parts))
        if inspect.isroutine(first) or "replicas" not in inspect.signature(kind).parameters:
            raise CannotStackError(f"the {what} {getattr(first, '__name__', kind.__name__)} does not know replicas")
        try:
            return kind(**self._merged(parts, what), replicas=self.replicas)  # type: ignore[call-arg]
        except CannotStackError:
            raise
        except ConfigError as reason:
            raise CannotStackError(str(reason)) from reason

    def _with_state(self, parts: Sequence[object], what: str) -> object:
        """Return one part for one of each learner, with what these were told before the first sample."""
        first = parts[0]
        if what == "loss" and (inspect.isroutine(first) or not hasattr(first, "load_state_dict")):
            return self._merge(parts, what)
        part = self._part(parts, what)
        if hasattr(part, "load_state_dict"):
            states = [cast(Stateful, own).state_dict() for own in parts]
            try:
                part.load_state_dict(_stacked(states, f"{what} {type(first).__name__}"))
            except CheckpointError as reason:
                raise CannotStackError(str(reason)) from reason
        return part

    def _merged(self, parts: Sequence[object], what: str) -> dict[str, object]:
        """Return the constructor's arguments: those that are the same once, numbers that differ one for each."""
        settings = [settings_of(part) for part in parts]
        merged: dict[str, object] = {}
        for name in settings[0]:
            values = [own[name] for own in settings]
            if name == "seed":
                merged[name] = values
            elif name != "replicas":
                merged[name] = self._merge(values, f"{what}'s {name}")
        return merged

    def _merge(self, values: Sequence[object], what: str) -> object:
        first = values[0]
        if any(isinstance(v, Optimizer) for v in values):
            return self._part(values, what)
        if _refers(first):
            return self._counterpart(first, what)
        if all(v is first or (type(v) is type(first) and v == first) for v in values):
            return first
        if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            return list(values)
        if not inspect.isroutine(first) and "replicas" in inspect.signature(type(first)).parameters:
            return self._part(values, what)
        raise CannotStackError(f"the {what} differs: {first!r} and others")

    def _counterpart(self, value: object, what: str) -> object:
        """Return what corresponds in the stacked model to a module, a parameter, or a structure of them."""
        if id(value) in self._same:
            return self._same[id(value)]
        if isinstance(value, (list, tuple)):
            return type(value)(self._counterpart(v, what) for v in value)
        if isinstance(value, Mapping):
            return {k: self._counterpart(v, what) for k, v in value.items()}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
            return dataclasses.replace(value, **{name: self._counterpart(v, what) for name, v in fields.items()})
        if isinstance(value, (Tensor, nn.Module)):
            raise CannotStackError(f"the {what} refers to something outside of the model")
        return value

    def _optimizer(self, optimizers: Sequence[Optimizer]) -> Optimizer:
        first = optimizers[0]
        kind = cast("Callable[..., Optimizer]", type(first))
        if any(type(o) is not kind or len(o.param_groups) != len(first.param_groups) for o in optimizers):
            raise CannotStackError("their optimizers are of different kinds")
        if any(float(state.get("step", 0)) > 0 for o in optimizers for state in o.state.values()):
            raise CannotStackError("some optimizers have taken steps already")
        if {"params", "replicas"}.isdisjoint(inspect.signature(kind).parameters):
            raise CannotStackError(f"replicas cannot be kept apart in {type(first).__name__}")
        if "params" not in inspect.signature(kind).parameters:
            return kind(**self._merged(optimizers, "optimizer"), replicas=self.replicas)
        groups = [self._group([o.param_groups[i] for o in optimizers]) for i in range(len(first.param_groups))]
        if "replicas" in inspect.signature(kind).parameters:
            return kind(groups, **self._merged(optimizers, "optimizer"), replicas=self.replicas)
        if kind not in ELEMENTWISE:
            raise CannotStackError(f"replicas cannot be kept apart in {type(first).__name__}")
        return self._elementwise(kind, groups, optimizers)

    def _elementwise(
        self, kind: Callable[..., Optimizer], groups: list[dict[str, object]], optimizers: Sequence[Optimizer]
    ) -> Optimizer:
        rates = [group.pop("lr") for group in groups]
        settings = self._merged(optimizers, "optimizer")
        if any(isinstance(v, list) for name, v in settings.items() if name != "lr"):
            raise CannotStackError(f"a setting of {type(optimizers[0]).__name__} other than lr differs")
        if all(isinstance(rate, float | int) for rate in rates):
            return kind([{**group, "lr": rate} for group, rate in zip(groups, rates)], **{**settings, "lr": rates[0]})
        if any(rate != rates[0] for rate in rates):
            raise CannotStackError("parameter groups have different learning rates, which also differ per replica")
        return RatePerReplica(kind(groups, **{**settings, "lr": 1.0}), cast("list[float]", rates[0]), self.replicas)

    def _group(self, groups: Sequence[Mapping[str, object]]) -> dict[str, object]:
        params = [[self._same.get(id(p)) for p in cast("list[nn.Parameter]", group["params"])] for group in groups]
        if any(p is None for own in params for p in own):
            raise CannotStackError("an optimizer holds parameters that are not its model's")
        if any(_ids(own) != _ids(params[0]) for own in params):
            raise CannotStackError("their optimizers hold different parameters")
        others = [name for name in groups[0] if name not in ("params", "param_names", "initial_lr")]
        return {"params": params[0], **{n: self._merge([g[n] for g in groups], f"optimizer's {n}") for n in others}}


def _stacked(values: Sequence[object], what: str) -> Any:
    """Return the state of a part with replicas, of the states of one each."""
    first = values[0]
    if all(isinstance(v, Mapping) and set(v) == set(cast("Mapping[str, object]", first)) for v in values):
        states = cast("Sequence[Mapping[str, object]]", values)
        return {name: _stacked([own[name] for own in states], f"{what}'s {name}") for name in states[0]}
    if all(isinstance(v, Tensor) and v.shape == cast(Tensor, first).shape for v in values):
        return torch.stack(cast("list[Tensor]", list(values)))
    if any(isinstance(v, (Mapping, Tensor)) for v in values) or any(v != first for v in values):
        raise CannotStackError(f"the {what} of some differs in form from that of others")
    return first


def _ids(values: Sequence[object]) -> list[int]:
    return [id(value) for value in values]


def _counterparts(own: object, stacked: Mapping[str, object]) -> dict[int, object]:
    return {id(value): stacked[name] for name, value in own}  # type: ignore[attr-defined]


def _refers(value: object) -> bool:
    """Whether a value is, or holds, modules or tensors."""
    if isinstance(value, (Tensor, nn.Module)):
        return True
    if isinstance(value, (list, tuple)):
        return any(_refers(v) for v in value)
    if isinstance(value, Mapping):
        return any(_refers(v) for v in value.values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(_refers(getattr(value, f.name)) for f in dataclasses.fields(value))
    return False
