"""Adam whose bias correction starts again for exactly the units that were renewed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from driftline.errors import ConfigError, unknown
from driftline.learners.optimizers.base import Group, Parameters, Ready, StreamOptimizer
from driftline.learners.optimizers.clocks import Ages, Clocks, whole, younger
from driftline.learners.optimizers.passes import block_by_block, combine
from driftline.learners.replicas import Setting, spread


class Adam(StreamOptimizer):
    """Adam and AdamW with one step clock for each unit, at the price of one for each tensor.

    When a unit is renewed and its moments are set to zero, their bias correction must start again too: otherwise
    the first steps of the new unit are as small as its moments. So each parameter has, besides ``exp_avg``,
    ``exp_avg_sq`` and ``step``, the numbers of the steps after which its rows and columns were last renewed,
    ``row_start`` and ``column_start``, which a renewer sets to ``step``. An entry is as old as the younger of its
    row and its column. As long as nothing was renewed this is ``torch.optim.Adam``, in one pass over the memory.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or parameter groups.
    lr : float or sequence of float
        Step size, at least 0.
    beta1, beta2 : float or sequence of float
        Decay per step of the averages of the gradient and of its square, in [0, 1).
    eps : float or sequence of float
        Added to the root of the second moment.
    weight_decay : float or sequence of float
        Added to the gradient as ``weight_decay * p``, or with ``decoupled`` taken off the weights as
        ``lr * weight_decay * p``.
    decoupled : bool
        AdamW.
    variant : {"paper", "released"}
        "released" is the optimizer of continual backprop's code (AdamGnT): p <- p - lr (1 - beta2^t) m / (sqrt(v) +
        eps), without a correction of m, with t the clock of each entry.
    replicas : int, optional
        Number of runs in lockstep.

    Raises
    ------
    ConfigError
        For a setting out of range.

    Notes
    -----
    Kingma & Ba, "Adam: A Method for Stochastic Optimization" (ICLR 2015); Loshchilov & Hutter, "Decoupled Weight
    Decay Regularization" (ICLR 2019); Dohare et al., "Loss of plasticity in deep continual learning" (Nature 2024),
    whose code keeps a step count for each weight. The clocks here are the same with memory for each unit only.

    ``row_start`` has shape (out,) and ``column_start`` (in,), after the replicas; a vector has no columns.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(4, 3)
    >>> optimizer = Adam(model.parameters(), lr=0.01)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     model(torch.ones(1, 4)).sum().backward()
    ...     optimizer.step()
    >>> state, first = optimizer.state[model.weight], model.weight.detach().clone()
    >>> for name in ("exp_avg", "exp_avg_sq"):  # as a renewer does for unit 2
    ...     _ = state[name][2].zero_()
    >>> state["row_start"][2] = state["step"]
    >>> optimizer.step()
    >>> moved = (first - model.weight)[:, 0]
    >>> bool((moved / 0.01 - 1).abs().max() < 1e-4)  # the new unit's first step is a whole one
    True
    """

    bounds: ClassVar[Mapping[str, tuple[float | None, float | None]]] = {
        "lr": (0, None),
        "beta1": (0, 1 - 1e-12),
        "beta2": (0, 1 - 1e-12),
        "eps": (0, None),
        "weight_decay": (0, None),
    }

    def __init__(
        self,
        params: Parameters,
        lr: Setting = 1e-3,
        beta1: Setting = 0.9,
        beta2: Setting = 0.999,
        eps: Setting = 1e-8,
        weight_decay: Setting = 0.0,
        *,
        decoupled: bool = False,
        variant: Literal["paper", "released"] = "paper",
        replicas: int | None = None,
    ) -> None:
        if variant not in ("paper", "released"):
            raise unknown("variant", variant, ("paper", "released"))
        if decoupled and variant == "released":
            raise ConfigError("the released code has no decoupled weight decay; give decoupled=False")
        self.decoupled, self.variant = decoupled, variant
        self._clocks = Clocks(replicas)
        settings = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, settings, replicas)

    def update(self, ready: list[Ready]) -> None:
        """Step along the corrected moments."""
        for part in ready:
            first, second = part.tensors("exp_avg"), part.tensors("exp_avg_sq")
            counts = self._clocks.tick(part)
            beta1, beta2 = part.group["beta1"], part.group["beta2"]
            slowest = max(b for beta in (beta1, beta2) for b in (beta if isinstance(beta, Sequence) else [beta]))
            ages = [
                self._clocks.ages(p, state, count, slowest) for p, state, count in zip(part.params, part.states, counts)
            ]
            if self.variant == "paper" and all(age is None for age in ages) and _fusible(part, first + second):
                self._fused(part, first, second, counts)
                continue
            for p, g, m, v, age, count in zip(part.params, part.grads, first, second, ages, counts):
                self._entrywise(part.group, p, g, m, v, age or whole(p, count))

    def _fused(self, part: Ready, first: list[Tensor], second: list[Tensor], counts: list[int]) -> None:
        """Step with torch's own kernel, in one pass."""
        group, device = part.group, part.params[0].device
        steps = {t: torch.full((), float(t), dtype=torch.float32, device=device) for t in set(counts)}
        numbers = {name: group[name] for name in ("lr", "beta1", "beta2", "weight_decay", "eps")}
        kernel = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
        kernel(
            part.params,
            part.grads,
            first,
            second,
            [],
            [steps[t] for t in counts],
            **numbers,
            amsgrad=False,
            maximize=False,
        )

    def _entrywise(self, group: Group, p: Tensor, g: Tensor, m: Tensor, v: Tensor, ages: Ages) -> None:
        """Step with a correction for each row and column, block by block."""

        def of(rule: Callable[..., float], *names: str) -> float | Tensor:
            factor = self.factor(combine(rule, *(group[name] for name in names)), [p])
            return factor[0] if isinstance(factor, list) else factor

        beta1, beta2, lr = (spread(group[name], ages[0]) for name in ("beta1", "beta2", "lr"))
        stretch: list[Tensor | None] = [None, None]  # of sqrt(v), falling with age
        divide: list[Tensor | None] = [None, None]  # of the step; falling if released, otherwise rising
        for i, age in enumerate(ages):
            if age is None:
                continue
            second = 1 - beta2**age
            if self.variant == "released":
                own = 1 / second
            else:
                own = 1 - beta1**age
                stretch[i] = second.rsqrt().to(p)
            divide[i] = (own / lr if isinstance(lr, Tensor) else own).to(p)
        block_by_block(
            adam_,
            p,
            g,
            m,
            v,
            of(lambda b: 1 - b, "beta1"),
            of(lambda b: b, "beta2"),
            of(lambda b: 1 - b, "beta2"),
            of(lambda e: e, "eps"),
            of(lambda lr, decay: 1 - lr * decay, "lr", "weight_decay") if self.decoupled else 1.0,
            0.0 if self.decoupled else of(lambda decay: decay, "weight_decay"),
            1.0 if isinstance(lr, Tensor) else lr,
            *stretch,
            *divide,
            self.variant != "released",
        )

    def state_dict(self) -> dict[str, Any]:
        """Return groups and state, with what was renewed up to now."""
        self._notice()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly from a :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        self._clocks.forget()
        self._notice()

    def _notice(self) -> None:
        for p, state in self.state.items():
            if "step" in state:
                self._clocks.notice(p, state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Continue as a copy."""
        super().__setstate__(state)
        self._notice()

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but torch's hooks, so that copies and pickles are whole."""
        self._notice()
        return super().__getstate__()


def adam_(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    take1: float | Tensor,
    keep2: float | Tensor,
    take2: float | Tensor,
    eps: float | Tensor,
    shrink: float | Tensor,
    decay: float | Tensor,
    lr: float,
    stretch_rows: Tensor | None,
    stretch_columns: Tensor | None,
    divide_rows: Tensor | None,
    divide_columns: Tensor | None,
    rising: bool,
) -> None:
    """Make the step of some entries: p <- shrink p - lr m / (sqrt(v) stretch + eps) / divide."""
    if isinstance(shrink, Tensor) or shrink != 1:
        p.mul_(shrink)
    if isinstance(decay, Tensor) or decay != 0:
        g = g + p * decay
    m.lerp_(g, take1)
    v.mul_(keep2)
    if isinstance(take2, Tensor):
        v.addcmul_(g * take2, g)
    else:
        v.addcmul_(g, g, value=take2)
    divisor = v.sqrt()
    if (stretch := younger((stretch_rows, stretch_columns), rising=False)) is not None:
        divisor.mul_(stretch)
    divisor.add_(eps)
    if (divide := younger((divide_rows, divide_columns), rising=rising)) is not None:
        divisor.mul_(divide)
    p.addcdiv_(m, divisor, value=-lr)


def _fusible(part: Ready, moments: list[Tensor]) -> bool:
    """Whether torch's kernel can make the step: plain numbers, and tensors of one kind without gaps."""
    kinds = {(p.dtype, p.device) for p in (*part.params, *part.grads)}
    return (
        len(kinds) == 1
        and part.params[0].device.type in ("cpu", "cuda")
        and part.params[0].is_floating_point()
        and all(not isinstance(value, Sequence) for name, value in part.group.items() if name in Adam.bounds)
        and all(t.is_contiguous() for t in (*part.params, *part.grads, *moments))
    )
