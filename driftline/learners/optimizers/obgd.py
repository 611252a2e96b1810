"""Gradient descent that never steps over its target: overshooting-bounded gradient descent with eligibility traces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from driftline.errors import ConfigError, InputError
from driftline.learners.optimizers.base import Parameters, Ready, StreamOptimizer
from driftline.learners.optimizers.passes import add_, add_product_, combine, in_front, is_on, scale_
from driftline.learners.replicas import Setting, check_setting


class ObGD(StreamOptimizer):
    """Overshooting-bounded gradient descent, for streaming TD(lambda) and for supervised losses.

    With e the eligibility trace of the gradients and delta the error, the step is p <- p - alpha delta e, where alpha
    is lr or, if that is smaller, what keeps the effective step size at 1 / kappa of the error:
    alpha = lr / max(1, lr kappa max(|delta|, 1) sum |e|), with the sum over all parameters (of each replica).

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or parameter groups.
    lr : float or sequence of float
        Largest step size, at least 0; the same in all groups.
    gamma : float or sequence of float
        Discount, in [0, 1].
    lamda : float or sequence of float
        Decay of the trace: e <- gamma lamda e + g; 0 for supervised learning (the default).
    kappa : float or sequence of float
        How much smaller steps are than those that would overshoot; 2 in the paper for values, 3 for policies.
    beta2 : float or sequence of float, optional
        Decay of an average of (delta e)^2 by whose root traces are divided (adaptive ObGD); None: they are not.
    eps : float or sequence of float
        Added to that root.
    replicas : int, optional
        Number of runs in lockstep.

    Raises
    ------
    ConfigError
        For a setting out of range, or groups with different settings.

    Notes
    -----
    Elsayed, Vasan & Mahmood, "Streaming Deep Reinforcement Learning Finally Works" (2024), Algorithm 3. One step
    bounds all parameters together, so groups cannot have different settings.

    For TD(lambda) let the gradient be that of -v(s) (not of the squared error) and give :meth:`step` the TD error.
    For a supervised loss let the gradient be the loss's and give no delta (it is 1): the step is then the loss's
    gradient with its l1 norm bounded by 1 / kappa.

    Examples
    --------
    >>> import torch
    >>> value = torch.nn.Linear(3, 1)
    >>> optimizer = ObGD(value.parameters(), lr=1.0, gamma=0.9, lamda=0.8)
    >>> state, following, reward = torch.rand(3), torch.rand(3), 1.0
    >>> with torch.no_grad():
    ...     delta = reward + 0.9 * value(following) - value(state)
    >>> optimizer.zero_grad()
    >>> (-value(state)).backward()
    >>> optimizer.step(delta)
    """

    bounds: ClassVar[Mapping[str, tuple[float | None, float | None]]] = {
        "lr": (0, None),
        "gamma": (0, 1),
        "lamda": (0, 1),
        "kappa": (0, None),
        "eps": (0, None),
    }

    def __init__(
        self,
        params: Parameters,
        lr: Setting = 1.0,
        gamma: Setting = 0.99,
        lamda: Setting = 0.0,
        kappa: Setting = 2.0,
        *,
        beta2: Setting | None = None,
        eps: Setting = 1e-8,
        replicas: int | None = None,
    ) -> None:
        settings = {"lr": lr, "gamma": gamma, "lamda": lamda, "kappa": kappa, "beta2": beta2, "eps": eps}
        super().__init__(params, settings, replicas)
        self._delta: Tensor | float | Sequence[float] = 1.0
        self._reset: Tensor | bool = False

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise for settings that differ from those of other groups."""
        super().check_group(group)
        if group["beta2"] is not None:
            check_setting("beta2", group["beta2"], self.replicas, 0, 1 - 1e-12)
        for name in self.defaults:
            if group[name] != self.param_groups[0][name]:
                raise ConfigError(
                    f"{name}={group[name]} in one group and {self.param_groups[0][name]} in another; ObGD bounds all "
                    "parameters together: give them the same settings"
                )

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        delta: Tensor | float | Sequence[float] | None = None,
        reset: Tensor | bool = False,
        closure: Callable[[], Any] | None = None,
    ) -> Any:
        """Make one step.

        Parameters
        ----------
        delta : Tensor or float, optional
            The error that the gradients are multiplied by, one for each replica; default: 1, for gradients of a loss.
        reset : bool or Tensor
            Forget the traces after the step, as at the end of an episode; a tensor (R,) for some replicas only.
        closure : callable, optional
            Computes the loss and the gradients again, and returns the loss.

        Raises
        ------
        InputError
            For a sparse gradient, or not one delta for each replica; nothing has been changed then.
        """
        if callable(delta):
            delta, closure = None, delta
        if delta is not None:
            given = delta.numel() if isinstance(delta, Tensor) else len(delta) if isinstance(delta, Sequence) else 1
            if given not in (1, self.replicas):
                raise InputError(f"ObGD: delta has {given} values for {self.replicas or 1} replicas")
        self._delta, self._reset = 1.0 if delta is None else delta, reset
        return super().step(closure)

    def update(self, ready: list[Ready]) -> None:
        """Trace, bound the step, move, and forget where an episode ended."""
        group = ready[0].group
        params = [p for part in ready for p in part.params]
        decay = combine(lambda gamma, lamda: gamma * lamda, group["gamma"], group["lamda"])
        traces = [g for part in ready for g in part.grads]
        if is_on(decay):
            grads, traces = traces, [e for part in ready for e in part.tensors("eligibility_trace")]
            scale_(traces, self.factor(decay, traces))
            add_(traces, grads, 1.0)
        delta = self._for_each(self._delta, params[0])
        directions = traces if group["beta2"] is None else self._adapted(ready, traces, delta)
        total = self._absolute_sum(directions)
        lr, kappa = (self._for_each(group[name], params[0]) for name in ("lr", "kappa"))
        bound = total * lr * kappa * delta.abs().clamp_min(1)
        rate = -lr * delta / bound.clamp_min(1)
        add_(params, directions, [rate if self.replicas is None else in_front(rate, p) for p in params])
        if is_on(decay):
            self._forget(traces)

    def _for_each(self, value: Tensor | float | Sequence[float], like: Tensor) -> Tensor:
        """Return a number for each replica, (R,), or a 0-dim one."""
        numbers = torch.as_tensor(value, dtype=like.dtype, device=like.device).detach()
        return numbers.reshape(()) if self.replicas is None else numbers.reshape(-1).expand(self.replicas)

    def _adapted(self, ready: list[Ready], traces: list[Tensor], delta: Tensor) -> list[Tensor]:
        """Return e / sqrt(v_hat + eps), with v the average of (delta e)^2."""
        group, taken = ready[0].group, 0
        found: list[Tensor] = []
        for part in ready:
            part.tick()
            own = traces[taken : taken + len(part.params)]
            taken += len(own)
            averages = part.tensors("exp_avg_sq")
            scale_(averages, self.factor(group["beta2"], averages))
            errors = [delta if self.replicas is None else in_front(delta, e) for e in own]
            scaled = [e * error for e, error in zip(own, errors)]
            add_product_(averages, scaled, scaled, self.factor(combine(lambda b: 1 - b, group["beta2"]), averages))
            roots = [v.clone() for v in averages]
            unbiased = [combine(lambda b, t=t: 1 / (1 - b**t), group["beta2"]) for t in part.counts]
            scale_(roots, self.factor.each(unbiased, roots))
            torch._foreach_add_(roots, self.factor(group["eps"], roots))
            torch._foreach_sqrt_(roots)
            found += torch._foreach_div(own, roots)
        return found

    def _absolute_sum(self, tensors: list[Tensor]) -> Tensor:
        if self.replicas is None:
            return torch.stack(torch._foreach_norm(tensors, 1)).sum()
        return torch.stack([t.abs().flatten(1).sum(1) if t.dim() > 1 else t.abs() for t in tensors]).sum(0)

    def _forget(self, traces: list[Tensor]) -> None:
        if isinstance(self._reset, Tensor):
            ended = self._reset.to(traces[0].device, torch.bool)
            for e in traces:
                e.masked_fill_(ended.reshape(()) if self.replicas is None else in_front(ended.reshape(-1), e), 0)
        elif self._reset:
            torch._foreach_zero_(traces)
