"""Gradient descent with noise on the weights, and shrink and perturb in its four definitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from driftline.learners.draws import Draws
from driftline.learners.lockstep.optimizer import RatePerReplica
from driftline.learners.optimizers.base import Parameters, Ready, StreamOptimizer, check_dense
from driftline.learners.optimizers.passes import Factors, add_, combine
from driftline.learners.optimizers.perturbing import Form, Part, Perturbing, check_form
from driftline.learners.optimizers.wrapper import Wrapper
from driftline.learners.replicas import Seeds, Setting, check_setting


class ShrinkAndPerturb(Perturbing, StreamOptimizer):
    """Gradient descent whose weights shrink and are perturbed.

    Four definitions go by this name; n is a fresh standard normal draw:

    ============  ===================================================  =============================
    ``form``      a step                                               source
    ============  ===================================================  =============================
    "scaled"      p <- (1 - lr decay) p - lr (g + sigma n)             UPGD's baseline
    "unscaled"    p <- (1 - lr decay) p - lr g + sigma n               loss of plasticity (Nature)
    "fresh"       p <- (1 - decay) (p - lr g) + sigma w                L2 Init, w as newly initialised
    "boundary"    p <- p - lr g                                        Ash & Adams
    ============  ===================================================  =============================

    :meth:`shrink_and_perturb` makes p <- (1 - decay) p + sigma n at once, as ``"boundary"`` wants between tasks.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or parameter groups.
    lr : float or sequence of float
        Step size, at least 0.
    sigma : float or sequence of float
        Standard deviation of the noise; 0 draws nothing.
    decay : float or sequence of float
        What is lost of the weights: per step and learning rate, per step, or at a boundary (Ash & Adams' lambda is
        1 - decay).
    form : {"scaled", "unscaled", "fresh", "boundary"}
        The definition.
    seed : int or sequence of int
        Of the noise; one for each replica.
    replicas : int, optional
        Number of runs in lockstep.

    Raises
    ------
    ConfigError
        For a setting out of range.

    Notes
    -----
    Elsayed & Mahmood (ICLR 2024); Dohare et al., "Loss of plasticity in deep continual learning" (Nature 2024);
    Kumar et al., "Maintaining Plasticity in Continual Learning via Regenerative Regularization" (2023); Ash & Adams,
    "On Warm-Starting Neural Network Training" (NeurIPS 2020). In "fresh", w is uniform within one over the root of
    the fan-in, as torch's linear and convolution layers begin, and every vector counts as a bias.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(4, 3)
    >>> optimizer = ShrinkAndPerturb(model.parameters(), lr=0.1, sigma=0.01, decay=0.5, form="boundary")
    >>> before = model.weight.norm()
    >>> optimizer.shrink_and_perturb()
    >>> bool(model.weight.norm() < before)
    True
    """

    purpose: ClassVar[str] = "perturb"
    counters: ClassVar[tuple[str, ...]] = ("steps", "boundaries")
    bounds: ClassVar[Mapping[str, tuple[float | None, float | None]]] = {
        "lr": (0, None),
        "sigma": (0, None),
        "decay": (0, None),
    }

    def __init__(
        self,
        params: Parameters,
        lr: Setting = 0.01,
        sigma: Setting = 0.001,
        decay: Setting = 0.0,
        *,
        form: Form = "scaled",
        seed: Seeds = 0,
        replicas: int | None = None,
    ) -> None:
        check_form(form, decay, replicas)
        self.form, self.boundaries = form, 0
        super().__init__(params, {"lr": lr, "sigma": sigma, "decay": decay}, replicas, seed)

    def update(self, ready: list[Ready]) -> None:
        """Shrink, step, perturb."""
        parts = [_part(part.params, part.group) for part in ready]
        for part, own in zip(ready, parts):
            self.shrink(own)
            add_(part.params, part.grads, self.factor(combine(lambda lr: -lr, part.group["lr"]), part.params))
        self.perturb(parts)

    def all_parts(self) -> list[Part]:
        """Return the parameters that can be trained."""
        return [_part([p for p in g["params"] if p.requires_grad], g) for g in self.param_groups]


class PerturbedSGD(ShrinkAndPerturb):
    """Gradient descent with noise on every step: p <- (1 - lr decay) p - lr (g + sigma n).

    Without noise and decay it is ``torch.optim.SGD``, bit for bit.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or parameter groups.
    lr : float or sequence of float
        Step size, at least 0.
    sigma : float or sequence of float
        Standard deviation of the noise; 0 draws nothing.
    decay : float or sequence of float
        Weight decay, per step and learning rate; above 0 this is :class:`ShrinkAndPerturb`.
    seed : int or sequence of int
        Of the noise; one for each replica.
    replicas : int, optional
        Number of runs in lockstep.

    Notes
    -----
    The baselines PGD and S&P of Elsayed & Mahmood (ICLR 2024).

    Examples
    --------
    >>> import torch
    >>> p = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = PerturbedSGD([p], lr=0.5, sigma=0.0)
    >>> p.sum().backward()
    >>> optimizer.step()
    >>> p.tolist()
    [0.5, 0.5, 0.5]
    """

    def __init__(
        self,
        params: Parameters,
        lr: Setting = 0.01,
        sigma: Setting = 0.001,
        decay: Setting = 0.0,
        *,
        seed: Seeds = 0,
        replicas: int | None = None,
    ) -> None:
        super().__init__(params, lr, sigma, decay, seed=seed, replicas=replicas)


class Perturbed(Perturbing, Wrapper):
    """Shrinking and perturbing around the steps of any optimizer.

    ============  ===============================================================
    ``form``      around the step
    ============  ===============================================================
    "scaled"      p <- (1 - lr decay) p before it, p <- p - lr sigma n after it
    "unscaled"    p <- (1 - lr decay) p before it, p <- p + sigma n after it
    "fresh"       p <- (1 - decay) p + sigma w after it, w as newly initialised
    "boundary"    nothing, until :meth:`shrink_and_perturb` is called
    ============  ===============================================================

    Parameters
    ----------
    optimizer : Optimizer
        Makes the steps; ``lr`` is that of its parameter groups.
    sigma : float or sequence of float
        Standard deviation of the noise; 0 draws nothing.
    decay : float or sequence of float
        What is lost of the weights, apart from the optimizer's own weight decay.
    form : {"scaled", "unscaled", "fresh", "boundary"}
        When and how, see above; sources as for :class:`ShrinkAndPerturb`.
    seed : int or sequence of int
        Of the noise; one for each replica.
    replicas : int, optional
        Number of runs in lockstep.

    Raises
    ------
    ConfigError
        For a setting out of range.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(4, 3)
    >>> optimizer = Perturbed(torch.optim.Adam(model.parameters(), weight_decay=0.01), sigma=0.1)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        optimizer: Optimizer,
        sigma: Setting = 0.001,
        decay: Setting = 0.0,
        *,
        form: Form = "scaled",
        seed: Seeds = 0,
        replicas: int | None = None,
    ) -> None:
        check_form(form, decay, replicas)
        check_setting("sigma", sigma, replicas, low=0)
        self.sigma, self.decay, self.form, self.seed, self.replicas = sigma, decay, form, seed, replicas
        self.draws = Draws(seed, "perturb", replicas)
        self.factor, self.steps, self.boundaries = Factors(), 0, 0
        super().__init__(optimizer)

    def before_step(self) -> None:
        """Shrink."""
        check_dense(self.parameters(), "Perturbed")
        for part in self._stepped():
            self.shrink(part)

    def after_step(self) -> None:
        """Perturb."""
        self.perturb(self._stepped())
        self.steps += 1

    def all_parts(self) -> list[Part]:
        """Return the parameters that can be trained."""
        return [self._own([p for p in g["params"] if p.requires_grad], g) for g in self.param_groups]

    def own_settings(self) -> dict[str, Any]:
        """Return what this one adds to the optimizer's defaults."""
        return {"sigma": self.sigma, "decay": self.decay}

    def own_state(self) -> dict[str, Any]:
        """Return the seed and the numbers of steps and boundaries, on which draws depend."""
        seed = self.seed if isinstance(self.seed, int) else list(self.seed)
        return {"steps": self.steps, "boundaries": self.boundaries, "seed": seed}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`own_state`."""
        self.steps, self.boundaries = state["steps"], state["boundaries"]
        if state["seed"] != self.seed:
            self.seed = state["seed"]
            self.draws = Draws(self.seed, "perturb", self.replicas)

    def _stepped(self) -> list[Part]:
        stepped = ([p for p in group["params"] if p.grad is not None and p.numel() > 0] for group in self.param_groups)
        return [self._own(params, group) for params, group in zip(stepped, self.param_groups) if params]

    def _own(self, params: list[Tensor], group: Mapping[str, Any]) -> Part:
        inner = self.optimizer
        while isinstance(inner, Wrapper):
            inner = inner.optimizer
        # Torch's own optimizers step with rate 1 where replicas have their own rates; see there.
        lr = inner.lr if isinstance(inner, RatePerReplica) else group["lr"]
        return params, lr, self.sigma, self.decay


def _part(params: list[Tensor], group: Mapping[str, Any]) -> Part:
    return params, group["lr"], group["sigma"], group["decay"]
