"""Dynamic sparse training: a network with few of its weights, which are exchanged while it learns.

Evci et al., "Rigging the lottery: making all tickets winners" (ICML 2020); for continual learning Yildirim et al.,
"Continual learning with dynamic sparse training: exploring algorithms for effective model updates" (CPAL 2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from driftline.errors import CheckpointError, ConfigError, unknown
from driftline.learners.draws import Draws
from driftline.learners.lockstep.modules import kind_of
from driftline.learners.penalties.base import check_tensors
from driftline.learners.renewers.renewing import State, check_keys, check_whole, replicas_of
from driftline.learners.renewers.sparsity import ALLOCATIONS, exchange, kept, share_at, top
from driftline.learners.renewers.task_weights import TaskWeights
from driftline.learners.renewers.unit_groups import WEIGHTED
from driftline.learners.renewers.unit_state import forget_entries
from driftline.learners.replicas import Seeds, check_setting

Growth = Literal["random", "unfired", "gradient", "momentum"]
GROWTHS = ("random", "unfired", "gradient", "momentum")
TASKS = ("shared", "isolated")
MOMENTUM = 0.9
"""Decay of the mean of gradients by which "momentum" grows."""
LANES = 3
"""Lanes of random numbers of each layer: mask, growth, new weights."""


class SparseTraining:
    """Keeps a share of each layer's weights, the others at exactly 0, and exchanges the smallest now and then.

    Every so many steps, in each layer the weights in use that are smallest are dropped and as many others are grown,
    which begin at 0 and for which the optimizer starts anew. Biases and normalisations are left alone. Goes last among
    ``renewers=[...]``, so that what others write is masked too.

    Parameters
    ----------
    model : nn.Module
        Its weights that are not kept are set to 0 at once.
    density : float
        Share of the weights that is kept, within (0, 1].
    allocation : {"erk", "uniform"}
        The same density for each layer, or a higher one for small layers
        (:func:`~driftline.learners.renewers.sparsity.erdos_renyi_kernel`).
    growth : {"random", "unfired", "gradient", "momentum"}
        Which weights are grown: any, first those never used, or those with the largest gradient or mean of gradients.
    every : int
        Optimizer steps from one exchange to the next.
    fraction, final : float
        Share of the kept weights that is exchanged, at first and at the end of ``decay``, within [0, 1); ``fraction`` 0
        is static sparsity.
    decay : int, optional
        Steps, from the start or the last :meth:`begin_task`, in which the share goes from ``fraction`` to ``final``
        along half a cosine; afterwards nothing is exchanged. None: ``fraction``, for ever.
    tasks : {"shared", "isolated"}
        "isolated": each task has a mask of its own. The weights that earlier tasks use are seen but not changed, biases
        and normalisations are each task's own, so an earlier task's model stays what it was, to the bit; see
        :meth:`as_task`. Needs the task at prediction: ``HeldOut(compete="task")``.
    layers : sequence of str, optional
        Names of linear and convolutional layers; default: all that are trainable, and for "isolated" tasks all but the
        last one: the head is then each task's own.
    seed : int or sequence of int
        Decides masks and what is grown; one for each replica.
    replicas : int, optional
        Number of replicas; default: the model's.

    Attributes
    ----------
    masks : dict of str to Tensor
        Bool, in the weights' shapes: those in use, by parameter name.
    counts : dict of str to int
        How many they are.

    Raises
    ------
    ConfigError
        For a setting out of range, a layer that is not there or would keep no weight, or a schedule in which no
        exchange ever comes.

    Notes
    -----
    In the released code of Yildirim et al. masks are drawn for each weight on its own, so that densities vary, and with
    SGD the momentum of unused weights is 0 whenever "momentum" looks at it; here counts are exact, and the mean of
    gradients is the renewer's own. Their weights that no task uses begin the next task at 0; here, as new ones.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    >>> sparse = SparseTraining(model, density=0.25, growth="gradient", every=5)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    >>> before = sparse.masks["0.weight"].clone()
    >>> for x in torch.rand(10, 8, 4):
    ...     optimizer.zero_grad()
    ...     model(x).square().sum().backward()
    ...     sparse.before_step(model)
    ...     optimizer.step()
    ...     sparse.renew(model, optimizer)
    >>> int((model[0].weight != 0).sum()) <= sparse.counts["0.weight"], bool((before != sparse.masks["0.weight"]).any())
    (True, True)
    """

    purpose = "sparse training"

    def __init__(
        self,
        model: nn.Module,
        density: float = 0.2,
        *,
        allocation: Literal["erk", "uniform"] = "erk",
        growth: Growth = "random",
        every: int = 100,
        fraction: float = 0.5,
        final: float = 0.005,
        decay: int | None = None,
        tasks: Literal["shared", "isolated"] = "shared",
        layers: Sequence[str] | None = None,
        seed: Seeds = 0,
        replicas: int | None = None,
    ) -> None:
        self.replicas = replicas_of(model, replicas)
        for name, value, known in (
            ("allocation", allocation, ALLOCATIONS),
            ("growth", growth, GROWTHS),
            ("tasks", tasks, TASKS),
        ):
            if value not in known:
                raise unknown(name, value, known)
        check_setting("density", density, None, low=1e-12, high=1)
        check_setting("fraction", fraction, None, low=0, high=1 - 1e-12)
        check_setting("final", final, None, low=0, high=1 - 1e-12)
        check_whole("every", every)
        if decay is not None:
            check_whole("decay", decay)
            if decay < every:
                raise ConfigError(f"decay={decay} is over before the first exchange at every={every}; give more steps")
        self.names = _weights(model, layers, but_last=tasks == "isolated")
        self.draws = Draws(seed, self.purpose, self.replicas)
        self.model, self.density, self.allocation, self.growth, self.seed = model, density, allocation, growth, seed
        self.every, self.fraction, self.final, self.decay = every, fraction, final, decay
        self.tasks, self.layers = tasks, layers
        self._lead = 0 if self.replicas is None else 1
        self.counts = kept({name: p.shape[self._lead :] for name, p in self._parameters()}, density, allocation)
        self.step = self.since = 0
        self.task: int | None = None
        self.masks = self._drawn()
        self._traces = self._new_traces()
        self._weights = TaskWeights(dict(self._parameters())) if tasks == "isolated" else None
        self._fixed: dict[str, Tensor] = {}
        self._noted: dict[str, Tensor] = {}
        self._mask_weights()

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, self.model.get_parameter(name)) for name in self.names)

    def _flat(self, tensor: Tensor) -> Tensor:
        """Lay a weight out as (R?, n)."""
        return tensor.reshape(-1) if self.replicas is None else tensor.reshape(self.replicas, -1)

    def _uniform(self, number: int, lane: int, like: Tensor) -> Tensor:
        count = math.prod(like.shape[self._lead :])
        return self.draws.uniform(self.step, count, LANES * number + lane, device=like.device, dtype=torch.float32)

    def _drawn(self) -> dict[str, Tensor]:
        """Return random masks with as many weights as there should be."""
        found = enumerate(self._parameters())
        return {name: top(self._uniform(i, 0, p), self.counts[name]).view_as(p) for i, (name, p) in found}

    def _new_traces(self) -> dict[str, Tensor]:
        """Return what "unfired" and "momentum" remember of each weight."""
        if self.growth == "unfired":
            return {name: mask.clone() for name, mask in self.masks.items()}
        if self.growth == "momentum":
            return {name: torch.zeros_like(p.detach()) for name, p in self._parameters()}
        return {}

    @torch.no_grad()
    def before_step(self, model: nn.Module) -> None:
        """Zero the gradients of weights that are not in use or stay as they are; call it before the optimizer's step.

        Without it, optimizers whose steps depend on all gradients together would see them.
        """
        for name, p in self._parameters():
            if p.grad is None:
                continue
            if self._looks():
                self._noted[name] = p.grad.clone()
            p.grad.masked_fill_(~self.masks[name], 0.0)
            if name in self._fixed:
                p.grad.masked_fill_(self._fixed[name], 0.0)

    @torch.no_grad()
    def renew(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Follow up one optimizer step: mask the weights, and exchange some at every ``every``-th one.

        Parameters
        ----------
        model : nn.Module
            The model that the renewer was made for.
        optimizer : Optimizer
            Starts anew for weights that are grown.
        """
        self._mask_weights()
        due, looks = self._due(), self._looks()
        self.step += 1
        self.since += 1
        for number, (name, p) in enumerate(self._parameters()):
            seen = self._noted.get(name, p.grad) if looks else None
            if self.growth == "momentum" and seen is not None:
                self._traces[name].lerp_(seen, 1 - MOMENTUM)
            if due:
                self._exchange(number, name, p, seen, optimizer)
        self._noted = {}

    def _due(self) -> bool:
        """Whether the step being made is followed by an exchange."""
        return (self.since + 1) % self.every == 0

    def _looks(self) -> bool:
        """Whether the gradients of this step decide what is grown."""
        return self.growth == "momentum" or (self.growth == "gradient" and self._due())

    def _exchange(self, number: int, name: str, p: nn.Parameter, seen: Tensor | None, optimizer: Optimizer) -> None:
        share = share_at(self.since, self.fraction, self.final, self.decay)
        count = min(int(share * self.counts[name]), math.prod(p.shape[self._lead :]) - self.counts[name])
        if count == 0:
            return
        old = self.masks[name]
        if self.growth == "momentum":
            score = self._traces[name].abs()
        elif self.growth == "gradient":
            score = torch.zeros_like(p) if seen is None else seen.abs()
        else:
            score = self._uniform(number, 1, p).view_as(p)
            if self.growth == "unfired":
                score = score - self._traces[name].to(score)
        new = exchange(self._flat(old), self._flat(p.abs()), self._flat(score), count).view_as(old)
        grown = new & ~old
        p.masked_fill_(grown | ~new, 0.0)
        if self._weights is not None:  # one that another task uses comes as that task has it
            used = self._fixed.get(name, torch.zeros_like(grown))
            p.copy_(torch.where(grown & used, self._weights.values[name], p))
        forget_entries(optimizer, p, grown)
        self.masks[name] = new
        if self.growth == "unfired":
            self._traces[name] |= new

    @torch.no_grad()
    def _mask_weights(self) -> None:
        for name, p in self._parameters():
            if self._weights is not None and name in self._fixed:
                p.copy_(torch.where(self._fixed[name], self._weights.values[name], p))
            p.masked_fill_(~self.masks[name], 0.0)

    @torch.no_grad()
    def begin_task(self, task: int, classes: Tensor | None = None) -> None:
        """Start the schedule again; for "isolated" tasks, change to the mask of the task, a new one if it is new."""
        before, self.task, self.since = self.task, task, 0
        if self._weights is None or before is None or before == task:
            return
        self._weights.keep(before, self.masks, self.model)
        self._fixed = self._weights.used(task)
        if task in self._weights.masks:
            self.masks = {name: mask.clone() for name, mask in self._weights.masks[task].items()}
            self._weights.restore(task, self.model)
            return
        self.masks = self._drawn()
        for number, (name, p) in enumerate(self._parameters()):
            bound = 1 / math.sqrt(math.prod(p.shape[self._lead + 1 :]))
            fresh = self._uniform(number, 2, p).view_as(p).mul(2 * bound).sub(bound).to(p)
            p.copy_(torch.where(self._fixed[name], self._weights.values[name], fresh))
        self._traces = self._new_traces() if self.growth == "momentum" else self._traces
        for name, fired in self._traces.items():
            if self.growth == "unfired":
                fired |= self.masks[name]
        self._mask_weights()

    @contextmanager
    def as_task(self, model: nn.Module, task: int) -> Iterator[None]:
        """Let the model be that of an earlier task for a while; nothing changes for shared masks and unknown tasks."""
        if self._weights is None or task == self.task or task not in self._weights.masks:
            yield
            return
        with self._weights.as_task(task, model):
            yield

    def to(self, device: torch.device | str) -> Self:
        """Move masks and what is remembered to ``device``."""
        for kept_by_name in (self.masks, self._traces, self._fixed):
            for name, tensor in kept_by_name.items():
                kept_by_name[name] = tensor.to(device)
        if self._weights is not None:
            self._weights.to(device)
        return self

    def state_dict(self) -> State:
        """Return step, task, masks, and what else the next steps depend on."""
        return {
            "step": self.step,
            "since": self.since,
            "task": self.task,
            "seed": list(self.seed) if isinstance(self.seed, Sequence) else self.seed,
            "masks": {name: mask.clone() for name, mask in self.masks.items()},
            "traces": {name: trace.clone() for name, trace in self._traces.items()},
            "tasks": None if self._weights is None else self._weights.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When the state is that of another renewer, of other layers or another way to grow or share; nothing has been
            changed then.
        """
        check_keys(state, self.state_dict(), self.purpose)
        if (state["tasks"] is None) != (self._weights is None):
            raise CheckpointError(f"the state has {'shared' if self._weights else 'isolated'} tasks, here {self.tasks}")
        masks = check_tensors(self.masks, state["masks"], "masks")
        traces = check_tensors(self._traces, state["traces"], "traces")
        self.masks, self._traces = masks, traces
        self.step, self.since = cast(int, state["step"]), cast(int, state["since"])
        self.task = cast("int | None", state["task"])
        if state["seed"] != self.seed:
            self.seed = cast(Seeds, state["seed"])
            self.draws = Draws(self.seed, self.purpose, self.replicas)
        self._fixed = {}
        if self._weights is not None:
            self._weights.load(cast(State, state["tasks"]), next(iter(masks.values())).device)
            if self._weights.masks:
                self._fixed = self._weights.used(self.task)


def _weights(model: nn.Module, layers: Sequence[str] | None, but_last: bool) -> tuple[str, ...]:
    """Return the names of the weights that are masked, each once where layers share it."""
    known = {name: m for name, m in model.named_modules() if kind_of(m) in WEIGHTED}
    for name in layers or ():
        if name not in known:
            raise unknown("layer in layers", str(name), known)
    chosen = list(known)[: -1 if but_last else None] if layers is None else layers
    mine = {f"{name}.weight" if name else "weight" for name in chosen}
    found = tuple(name for name, p in model.named_parameters() if name in mine and p.requires_grad)
    if not found:
        raise ConfigError(
            "sparse training: there is no linear or convolutional layer with trainable weights"
            + (" besides the head, which isolated tasks have of their own" if but_last and layers is None else "")
        )
    return found
