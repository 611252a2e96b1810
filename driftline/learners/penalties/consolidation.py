"""What EWC, MAS, SI and RWalk share: λ/2 Σ Ω (θ − w)², a pull to where weights were, as strong as they matter."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn

from driftline.errors import CheckpointError, ConfigError, InputError, unknown
from driftline.learners.penalties.base import ModelPenalty, State, check_tensors, factor, gradients, nothing
from driftline.learners.replicas import Setting, check_setting

Form = Literal["online", "boundary"]
Variant = Literal["paper", "released"]
FORMS = ("online", "boundary")
VARIANTS = ("paper", "released")
Named = Mapping[str, Tensor]
Number = float | Tensor


class Consolidation(ModelPenalty):
    """λ/2 Σ Ω (θ − w)²: Ω says how much each weight matters, w where it is held.

    What is remembered moves on in :meth:`add_gradients` only, which sees the loss's gradients; calling the penalty
    gives the term with what is remembered. Gradients that other penalties added before count as the loss's, so this
    one goes first among them.

    "online" follows the stream without boundaries: w and Ω are running means. "boundary" holds w and Ω between two
    consolidations, as the papers do between tasks, and gathers meanwhile what the next Ω is made of. Where the learning
    rate times λ Ω is above 2, steps overshoot: Ω of SI and RWalk can reach 1/ξ, so their λ are smaller.

    Parameters
    ----------
    model : nn.Module
        The model that will be trained.
    strength : float or sequence of float
        λ, at least 0; one number, or one for each replica.
    traces : tuple of str
        Names of what a subclass remembers of each parameter, in its shape.
    form : {"online", "boundary"}
        When w and Ω change.
    beta_weight : float or sequence of float
        Decay of the running mean w, within [0, 1); for "online".
    every : int, optional
        Steps between two consolidations; None: when a task begins, or :meth:`consolidate` is called. For "boundary".
    replicas : int, optional
        How many runs the model holds in lockstep.

    Raises
    ------
    ConfigError
        For a setting out of range, or a model without trainable parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        strength: Setting,
        traces: tuple[str, ...],
        *,
        form: Form,
        beta_weight: Setting,
        every: int | None,
        replicas: int | None,
    ) -> None:
        if form not in FORMS:
            raise unknown("form", str(form), FORMS)
        check_decay("beta_weight", beta_weight, replicas)
        if every is not None and (form == "online" or not isinstance(every, int) or every < 1):
            raise ConfigError(f"every={every}: a whole number of steps of at least 1, for form='boundary' only")
        super().__init__(model, strength, replicas)
        self.form, self.beta_weight, self.every = form, beta_weight, every
        self.steps = self.gathered = 0
        kinds = ("weight", *traces, *(("importance",) if form == "boundary" else ()))
        self._kept = {kind: {n: torch.zeros_like(p.detach()) for n, p in self._own.items()} for kind in kinds}
        if form == "boundary":
            self._kept["weight"] = self._now()

    @abstractmethod
    def gather(self, thetas: Named, grads: Named) -> None:
        """Take notice of a step, before it is made: of the parameters now and the loss's gradients at them."""

    @abstractmethod
    def running(self, name: str) -> Tensor:
        """Return a parameter's Ω in the form "online"."""

    @abstractmethod
    def settled(self, name: str) -> Tensor:
        """Return a parameter's new Ω at a boundary, of the old one and what was gathered since, and forget that."""

    def weight(self, name: str) -> Tensor:
        """Return w for a parameter."""
        kept = self._kept["weight"][name]
        return kept if self.form == "boundary" else kept / self.corrected(self.beta_weight, kept)

    def importance(self, name: str) -> Tensor:
        """Return Ω for a parameter, in its shape; 0 before the first step."""
        if self.form == "boundary":
            return self._kept["importance"][name]
        return self.running(name) if self.steps else torch.zeros_like(self._kept["weight"][name])

    def __call__(self, model: nn.Module) -> Tensor:
        """Return λ/2 Σ Ω (θ − w)² with what is remembered."""
        total = nothing(model)
        if self.off or (not self.steps and self.form == "online"):
            return total
        for name, p in self.named_parameters(model).items():
            term = self.importance(name) * (p - self.weight(name)).square()
            total = total + (term * factor(self.strength, term)).sum() * 0.5
        return total

    @torch.no_grad()
    def add_gradients(self, model: nn.Module) -> None:
        """Take notice of the loss's gradients, then add λ Ω (θ − w) to them."""
        if self.off:
            return
        named = self.named_parameters(model)
        grads = gradients(named)
        if self.is_own(model):
            self._notice(named, dict(zip(named, grads)))
        elif not self.steps and self.form == "online":
            return
        for grad, (name, p) in zip(grads, named.items()):
            pull = (p - self.weight(name)).mul_(self.importance(name))
            grad.add_(pull.mul_(factor(self.strength, p)))

    def _notice(self, thetas: Named, grads: Named) -> None:
        if self.every is not None and self.gathered == self.every:
            self.consolidate()
        self.steps += 1
        self.gathered += 1
        if self.form == "online":
            average_(self.kept("weight", thetas), thetas.values(), self.beta_weight)
        self.gather(thetas, grads)

    @torch.no_grad()
    def consolidate(self, importance: Mapping[str, Tensor] | None = None) -> None:
        """Hold the weights where they are from now on, as at the end of a task; for the form "boundary".

        Parameters
        ----------
        importance : mapping of str to Tensor, optional
            Ω by parameter name, in the parameters' shapes, such as a Fisher information of pretraining; what was
            gathered is then dropped. Default: Ω of what was gathered; nothing where no step was made since.

        Raises
        ------
        ConfigError
            In the form "online".
        InputError
            For importances of other names or shapes, NaN or below 0; nothing has been changed then.
        """
        if self.form != "boundary":
            raise ConfigError(f"{type(self).__name__}: form='online' has no boundaries; make it with form='boundary'")
        given = None if importance is None else self._checked(importance)
        if given is None and not self.gathered:
            return
        found = {name: self.settled(name) for name in self._own}
        self._kept["importance"] = found if given is None else given
        self._kept["weight"] = self._now()
        self.gathered = 0

    def begin_task(self, task: int, classes: Tensor | None = None) -> None:
        """Consolidate what was learned up to now, in the form "boundary" without ``every``."""
        if self.form == "boundary" and self.every is None:
            self.consolidate()

    def _checked(self, importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of importances that a user gives, or raise."""
        if set(importance) != set(self._own):
            raise InputError(f"importance is of {sorted(importance)}, the model's parameters are {sorted(self._own)}")
        for name, p in self._own.items():
            value = importance[name]
            if value.shape != p.shape:
                raise InputError(f"importance of {name!r} has shape {tuple(value.shape)}, expected {tuple(p.shape)}")
            if not bool((value >= 0).all() & value.isfinite().all()):
                raise InputError(f"importance of {name!r} has NaN, infinite or negative entries")
        return {name: importance[name].detach().to(p, copy=True) for name, p in self._own.items()}

    def kept(self, kind: str, of: Iterable[str]) -> list[Tensor]:
        """Return what is remembered under one name of these parameters."""
        return [self._kept[kind][name] for name in of]

    def corrected(self, decay: Setting, like: Tensor) -> Number:
        """Return 1 − decay^steps, by which a running mean that began at 0 is too small."""
        return 1.0 - factor(decay, like) ** self.steps

    def _now(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self._own.items()}

    def to(self, device: torch.device | str) -> Self:
        """Move what is remembered to ``device``."""
        self._kept = {kind: {n: t.to(device) for n, t in kept.items()} for kind, kept in self._kept.items()}
        return self

    def state_dict(self) -> State:
        """Return what is remembered, by kind and parameter name, and the numbers of steps."""
        return {"steps": self.steps, "gathered": self.gathered, **{k: dict(kept) for k, kept in self._kept.items()}}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When it is of another model or form; nothing has been changed then.
        """
        wanted = {"steps", "gathered", *self._kept}
        if set(state) != wanted:
            raise CheckpointError(f"the state has parts {sorted(state)}, this one {sorted(wanted)}")
        kept = {kind: check_tensors(own, state[kind], kind) for kind, own in self._kept.items()}
        self._kept, self.steps, self.gathered = kept, cast(int, state["steps"]), cast(int, state["gathered"])


class PathConsolidation(Consolidation):
    """A consolidation that looks at the way from step to step: where the last one began, and the gradient there.

    ``variant="released"`` is the code released with UPGD: the first step is taken to come from 0, and a step's way is
    multiplied by the gradient at its end, not at its beginning.
    """

    variant: Variant

    def __init__(
        self,
        model: nn.Module,
        strength: Setting,
        traces: tuple[str, ...],
        *,
        variant: Variant,
        form: Form,
        beta_weight: Setting,
        every: int | None,
        replicas: int | None,
    ) -> None:
        check_variant(variant, form)
        self.variant = variant
        own = ("previous",) if variant == "released" else ("previous", "gradient")
        super().__init__(
            model, strength, (*traces, *own), form=form, beta_weight=beta_weight, every=every, replicas=replicas
        )
        if variant == "paper":
            self._kept["previous"] = self._now()

    def step(self, name: str, theta: Tensor, grad: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what the last step did to a parameter: how far it went, and by how much that lowered the loss."""
        way = theta - self._kept["previous"][name]
        slope = self._kept["gradient"][name] if self.variant == "paper" or grad is None else grad
        return way, -slope * way

    def note(self, thetas: Named, grads: Named) -> None:
        """Remember where this step begins, for the next one."""
        torch._foreach_copy_(self.kept("previous", thetas), list(thetas.values()))
        if self.variant == "paper":
            torch._foreach_copy_(self.kept("gradient", thetas), list(grads.values()))

    def finish(self, name: str) -> Tensor:
        """Return by how much the step before a boundary lowered the loss, and forget where it began."""
        _, gain = self.step(name, self._own[name].detach())
        self._kept["previous"][name].copy_(self._own[name].detach())
        return gain


def check_variant(variant: Variant, form: Form) -> None:
    """Raise for an unknown variant, or one that does not have the form.

    Raises
    ------
    ConfigError
    """
    if variant not in VARIANTS:
        raise unknown("variant", str(variant), VARIANTS)
    if variant == "released" and form == "boundary":
        raise ConfigError("variant='released' is of code without boundaries; use form='online', or variant='paper'")


def check_decay(name: str, value: Setting, replicas: int | None) -> None:
    """Raise unless a decay lies within [0, 1), for each replica.

    Raises
    ------
    ConfigError
    """
    check_setting(name, value, replicas, low=0, high=1)
    if 1 in (value if isinstance(value, Sequence) else [value]):
        raise ConfigError(f"{name}={value}: must be below 1, or nothing new is taken in")


def average_(means: Sequence[Tensor], values: Iterable[Tensor], decay: Setting) -> None:
    """Let running means forget by a decay and take in new values.

    Examples
    --------
    >>> mean = torch.zeros(2)
    >>> average_([mean], [torch.ones(2)], decay=0.75)
    >>> mean
    tensor([0.2500, 0.2500])
    """
    if isinstance(decay, Sequence):
        for mean, value in zip(means, values):
            mean.lerp_(value, 1.0 - cast(Tensor, factor(decay, mean)))
    else:
        torch._foreach_lerp_(list(means), list(values), 1.0 - decay)
