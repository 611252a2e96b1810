"""TAG: the step size of each weight tensor follows how much its gradients agree with those of earlier tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from driftline.errors import unknown
from driftline.learners.optimizers.base import Parameters, Ready, StreamOptimizer
from driftline.learners.optimizers.passes import in_front
from driftline.learners.replicas import Setting, spread

Base = Literal["rmsprop", "adagrad", "adam"]
BASES = ("rmsprop", "adagrad", "adam")
FIRST, SECOND, STEP = "first ", "second ", "step "


class TAG(StreamOptimizer):
    """Task-based accumulated gradients: RMSProp, Adagrad or Adam with moments m_τ and v_τ for each task τ.

    In task t a tensor's gradient is divided by √(Σ_τ α_τ v_τ) + ε, with α_τ = exp(−b cos(m_t, m_τ)) and, for the task
    itself, exp(−b). Where the gradients point as an earlier task's did, that task's v counts little and steps are
    large; where they point against them, it counts up to e^b times and steps are small. In the first task, α is 1: the
    plain optimizer. Without :meth:`begin_task` there is only one task.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or parameter groups.
    lr : float or sequence of float
        Step size, at least 0. The paper's are 2 to 40 times smaller than for the plain optimizer.
    b : float or sequence of float
        How much agreement decides, at least 0; the paper uses 5 and 7.
    beta1 : float or sequence of float
        Decay per step of m, in [0, 1).
    beta2 : float or sequence of float, optional
        Decay per step of v, in [0, 1); default: 0.99, and 0.999 for "adam". Not used for "adagrad", whose v is a sum.
    eps : float or sequence of float
        ε.
    base : {"rmsprop", "adagrad", "adam"}
        How v accumulates, and whether steps go along the gradient or, for "adam", along m_t with bias correction.
    variant : {"paper", "released"}
        For "adam": in "released" the bias correction of the task's steps divides the whole sum, so that the tasks
        before weigh up to 1 / (1 − beta2) times as much at first; in "paper" each v has that of its own steps, as Adam
        defines it.
    replicas : int, optional
        Number of runs in lockstep.

    Raises
    ------
    ConfigError
        For a setting out of range.

    Notes
    -----
    Malviya, Ravindran & Chandar, "TAG: Task-based accumulated gradients for lifelong learning" (CoLLAs 2022). Where a
    moment is all zero, as of the head's weights of other tasks, the released code divides 0 by 0; here the cosine is
    0. Needs two tensors of memory for each weight and task, and reads them all in each step.

    Moments of a renewed unit are forgotten in all tasks.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(4, 3)
    >>> optimizer = TAG(model.parameters(), lr=0.01)
    >>> steps = []
    >>> for task, towards in enumerate((1.0, 1.0, -1.0)):
    ...     optimizer.begin_task(task)
    ...     before = model.weight.detach().clone()
    ...     for _ in range(20):
    ...         optimizer.zero_grad()
    ...         (towards * model(torch.ones(1, 4)).sum()).backward()
    ...         optimizer.step()
    ...     steps.append((model.weight - before).abs().mean().item())
    >>> steps[1] > steps[0] > steps[2]  # with an earlier task, the first one, against both
    True
    """

    bounds: ClassVar[Mapping[str, tuple[float | None, float | None]]] = {
        "lr": (0, None),
        "b": (0, None),
        "beta1": (0, 1 - 1e-12),
        "beta2": (0, 1 - 1e-12),
        "eps": (0, None),
    }
    counters: ClassVar[tuple[str, ...]] = ("steps", "task")

    def __init__(
        self,
        params: Parameters,
        lr: Setting = 2.5e-4,
        b: Setting = 5.0,
        beta1: Setting = 0.9,
        beta2: Setting | None = None,
        eps: Setting = 1e-8,
        *,
        base: Base = "rmsprop",
        variant: Literal["paper", "released"] = "paper",
        replicas: int | None = None,
    ) -> None:
        for name, value, known in (("base", base, BASES), ("variant", variant, ("paper", "released"))):
            if value not in known:
                raise unknown(name, value, known)
        self.base, self.variant, self.task = base, variant, 0
        beta2 = (0.999 if base == "adam" else 0.99) if beta2 is None else beta2
        super().__init__(params, {"lr": lr, "b": b, "beta1": beta1, "beta2": beta2, "eps": eps}, replicas)

    def begin_task(self, task: int, classes: Tensor | None = None) -> None:
        """Accumulate into the moments of a task from now on; those of one that comes back go on."""
        self.task = task

    def update(self, ready: list[Ready]) -> None:
        """Step along the gradient, or its mean, as far as all tasks together let it."""
        for part in ready:
            first, second = part.tensors(FIRST + str(self.task)), part.tensors(SECOND + str(self.task))
            for p, g, state, m, v in zip(part.params, part.grads, part.states, first, second):
                state[STEP + str(self.task)] = state.get(STEP + str(self.task), 0) + 1
                self._step(part.group, p, g, state, m, v)

    def _step(
        self, group: Mapping[str, Any], p: Tensor, g: Tensor, state: dict[str, Any], m: Tensor, v: Tensor
    ) -> None:
        lr, b, beta1, beta2, eps = (spread(group[name], p) for name in ("lr", "b", "beta1", "beta2", "eps"))
        m.lerp_(g, 1 - beta1)
        if self.base == "adagrad":
            v.addcmul_(g, g)
        else:
            v.mul_(beta2)
            if isinstance(beta2, Tensor):
                v.addcmul_(g * (1 - beta2), g)
            else:
                v.addcmul_(g, g, value=1 - beta2)
        divisor = self._accumulated(state, m, v, b, beta2).sqrt_()
        if self.base == "adam":
            steps = state[STEP + str(self.task)]
            g = m / (1 - beta1**steps)
            if self.variant == "released":
                divisor.div_((1 - beta2**steps) ** 0.5)
        divisor.add_(eps)
        if isinstance(lr, Tensor):
            p.sub_(g.div(divisor).mul_(lr))
        else:
            p.addcdiv_(g, divisor, value=-lr)

    def _accumulated(
        self, state: Mapping[str, Any], m: Tensor, v: Tensor, b: float | Tensor, beta2: float | Tensor
    ) -> Tensor:
        """Return Σ_τ α_τ v_τ in new memory."""

        def corrected(task: str, v: Tensor) -> Tensor:
            if self.base == "adam" and self.variant == "paper":
                steps: int = state[STEP + task]
                v = v / (1 - beta2**steps)
            return v

        own = str(self.task)
        others = [name[len(SECOND) :] for name in state if name.startswith(SECOND) and name != SECOND + own]
        if not others:
            return corrected(own, v).clone()
        total = corrected(own, v) * (torch.exp(-b) if isinstance(b, Tensor) else math.exp(-b))
        for task in others:
            agreement = self._cosine(m, state[FIRST + task])
            total.addcmul_(corrected(task, state[SECOND + task]), torch.exp(agreement.mul_(b).neg_()))
        return total

    def _cosine(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the cosine between two tensors, in a form that multiplies them; 0 where one is zero."""
        flat = [t.reshape(-1) if self.replicas is None else t.reshape(self.replicas, -1) for t in (a, b)]
        product = torch.linalg.vector_norm(flat[0], dim=-1) * torch.linalg.vector_norm(flat[1], dim=-1)
        cosine: Tensor = (flat[0] * flat[1]).sum(-1) / product.clamp_min(torch.finfo(a.dtype).tiny)
        return cosine if self.replicas is None else in_front(cosine, a)
