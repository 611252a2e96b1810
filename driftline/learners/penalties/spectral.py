"""Spectral regularization: keeps the largest singular value of each weight matrix near one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn

from driftline.errors import CheckpointError, ConfigError, unknown
from driftline.learners.draws import Draws
from driftline.learners.penalties.base import ModelPenalty, State, check_tensors, factor, gradients, nothing
from driftline.learners.replicas import Seeds, Setting, check_setting

ANCHORS = ("one", "initial")
BIASES = ("squared", "norm")
Number = float | Tensor


class SpectralRegularization(ModelPenalty):
    """λ [Σ_W (σ(W)^k − 1)² + Σ_b (‖b‖^k)²], where σ is the largest singular value: keeps gradients diverse.

    σ is found by power iteration, one per step from where the last one ended, so its error is that of weights that
    move a little each step. The gradient of each matrix is of rank one.

    Parameters
    ----------
    model : nn.Module
        The model that will be trained. Kernels of convolutions count as matrices (out, in · height · width).
    strength : float or sequence of float
        λ, at least 0; one number, or one for each replica. Useful from about 1e-4 to 1e-3.
    exponent : float or sequence of float
        k, at least 1.
    anchor : {"one", "initial"}
        What σ^k is driven to: 1, or the value at construction.
    bias : {"squared", "norm"}
        The biases' term: (‖b‖^k)², or ‖b‖^k.
    iterations : int
        Power iterations per step, at least 1.
    first_iterations : int
        Power iterations at construction, at least 1, so that the first steps see σ and not a random direction's.
    seed : int or sequence of int
        Of the vectors that the iterations begin with; one for each replica.
    replicas : int, optional
        How many runs the model holds in lockstep.

    Raises
    ------
    ConfigError
        For a setting out of range, or a model without trainable weights or biases.

    Notes
    -----
    Lewandowski et al., "Learning Continually by Spectral Regularization" (ICLR 2025). Scales γ and shifts β of
    normalisation layers are driven to 1 and 0: they enter as biases do, γ as b = γ − 1. No code was released;
    ``anchor="initial"`` and ``bias="norm"`` are of a re-implementation. Parameters that are neither matrices nor
    named as biases or scales (a PReLU's slopes, say) are left out.

    Costs three passes over the weights and no singular value decomposition.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> _ = model.weight.data.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]])), model.bias.data.zero_()
    >>> penalty = SpectralRegularization(model, strength=1.0)
    >>> round(penalty(model).item(), 3)
    9.0
    >>> penalty.add_gradients(model)
    >>> model.weight.grad.abs().round(decimals=3)
    tensor([[24.,  0.],
            [ 0.,  0.]])
    """

    def __init__(
        self,
        model: nn.Module,
        strength: Setting = 1e-4,
        *,
        exponent: Setting = 2.0,
        anchor: Literal["one", "initial"] = "one",
        bias: Literal["squared", "norm"] = "squared",
        iterations: int = 1,
        first_iterations: int = 20,
        seed: Seeds = 0,
        replicas: int | None = None,
    ) -> None:
        check_setting("exponent", exponent, replicas, low=1)
        for name, value, choices in (("anchor", anchor, ANCHORS), ("bias", bias, BIASES)):
            if value not in choices:
                raise unknown(name, str(value), choices)
        for name, count in (("iterations", iterations), ("first_iterations", first_iterations)):
            if not isinstance(count, int) or count < 1:
                raise ConfigError(f"{name}={count}: must be one whole number, at least 1")
        super().__init__(model, strength, replicas)
        self.exponent, self.anchor, self.bias = exponent, anchor, bias
        self.iterations, self.first_iterations, self.seed = iterations, first_iterations, seed
        self.draws = Draws(seed, "spectral", replicas)
        self._lead = 0 if replicas is None else 1
        self._centres = {name: c for name, p in self._own.items() if (c := self._centre(name, p)) is not None}
        self._matrices = [name for name, p in self._own.items() if p.dim() >= self._lead + 2]
        self._own = {name: p for name, p in self._own.items() if name in self._centres or name in self._matrices}
        if not self._own:
            raise ConfigError("SpectralRegularization: the model has no trainable weight matrix or bias")
        weights = [self._matrix(self._own[name].detach()) for name in self._matrices]
        drawn = [self.draws.normal(0, w.shape[-2], i, w.device, w.dtype).unsqueeze(-1) for i, w in enumerate(weights)]
        lefts, rights = self._iterate(weights, self._normalised(drawn, self._norms(drawn)), first_iterations)
        norms = self._norms([*lefts, *rights])
        self._u = dict(zip(self._matrices, self._normalised(lefts, norms[: len(lefts)])))
        sigmas = [left / (right + _little(right)) for left, right in zip(norms, norms[len(lefts) :])]
        self._anchors = dict(zip(self._matrices, sigmas if anchor == "initial" else map(torch.ones_like, sigmas)))

    def _centre(self, name: str, p: Tensor) -> float | None:
        """Return what a vector is driven to: 0 for biases, 1 for scales; None where it is neither."""
        module, _, leaf = name.rpartition(".")
        if p.dim() != self._lead + 1 or isinstance(self.model.get_submodule(module), nn.PReLU):
            return None
        return 0.0 if "bias" in leaf else 1.0 if leaf == "weight" else None

    def _matrix(self, p: Tensor) -> Tensor:
        """Return a weight as (out, in) or (R, out, in)."""
        return p if p.dim() == self._lead + 2 else p.flatten(self._lead + 1)

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the term, after one more power iteration (which is kept unless gradients are disabled)."""
        total = nothing(model)
        if self.off:
            return total
        named = self.named_parameters(model)
        matrices = [name for name in self._matrices if name in named]
        weights = [self._matrix(named[name]) for name in matrices]
        with torch.no_grad():
            lefts, rights = self._iterate(weights, [self._u[name] for name in matrices], self.iterations)
            us = self._normalised(lefts, self._norms(lefts))
            vs = self._normalised(rights, [norm + _little(norm) for norm in self._norms(rights)])
        if self.is_own(model) and torch.is_grad_enabled():
            self._u.update(zip(matrices, us))
        for name, weight, u, v in zip(matrices, weights, us, vs):
            sigma = (u * (weight @ v)).sum((-2, -1))
            k = factor(self.exponent, sigma)
            term = (sigma**k - self._anchors[name] ** k).square()
            total = total + (term * factor(self.strength, term)).sum()
        for name, centre in self._centres.items():
            if name in named:
                squared = (named[name] - centre).square().sum(-1).clamp_min(torch.finfo(named[name].dtype).tiny)
                term = squared ** (factor(self.exponent, squared) * self._halves * 0.5)
                total = total + (term * factor(self.strength, term)).sum()
        return total

    @torch.no_grad()
    def add_gradients(self, model: nn.Module) -> None:
        """Add the term's gradient, for a matrix 2 λ k (σ^k − 1) σ^(k−1) u vᵀ, after one more power iteration."""
        if self.off:
            return
        named = self.named_parameters(model)
        grads = dict(zip(named, gradients(named)))
        matrices = [name for name in self._matrices if name in named]
        shifted = {n: named[n] - c if c else named[n] for n, c in self._centres.items() if n in named}
        weights = [self._matrix(named[name]) for name in matrices]
        lefts, rights = self._iterate(weights, [self._u[name] for name in matrices], self.iterations)
        norms = self._norms([*lefts, *rights, *shifted.values()])
        slopes = self._slopes([self._anchors[name] for name in matrices], norms)
        for name, left, right, slope in zip(matrices, lefts, rights, slopes):
            self._add_outer(grads[name], left, right.mT, slope)
        for (name, b), slope in zip(shifted.items(), slopes[len(matrices) :]):
            if isinstance(slope, Tensor):
                grads[name].addcmul_(b, self._shaped(slope, b))
            else:
                grads[name].add_(b, alpha=slope)
        if self.is_own(model):
            self._u.update(zip(matrices, self._normalised(lefts, norms[: len(lefts)])))

    def _add_outer(self, grad: Tensor, column: Tensor, row: Tensor, slope: Number) -> None:
        """Add a multiple of an outer product to a gradient of as many entries."""
        if isinstance(slope, Tensor):
            column, slope = column * self._shaped(slope, column), 1.0
        if grad.dim() == row.dim():
            grad.addcmul_(column, row, value=slope)
        elif grad.is_contiguous():
            grad.flatten(self._lead + 1).addcmul_(column, row, value=slope)
        else:
            grad.add_((column * row).view(grad.shape), alpha=slope)

    def _iterate(self, weights: list[Tensor], us: list[Tensor], iterations: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return left and right singular vectors as far as power iteration finds them from unit vectors ``us``.

        They are not normalised: right = Wᵀ u and left = W right, so the largest singular value is the quotient of
        their norms.
        """
        lefts: list[Tensor] = []
        rights: list[Tensor] = []
        for turn in range(iterations if weights else 0):
            us = self._normalised(lefts, self._norms(lefts)) if turn else us
            rights = [weight.mT @ u for weight, u in zip(weights, us)]
            lefts = [weight @ right for weight, right in zip(weights, rights)]
            # A little of u keeps a direction where the weights are all zero, to go on with once they are not.
            torch._foreach_add_(lefts, us, alpha=_little(us[0]))
        return lefts, rights

    def _norms(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return Euclidean norms, each a number or (R,)."""
        if self.replicas is None:
            return list(torch._foreach_norm(tensors)) if tensors else []
        return [torch.linalg.vector_norm(t.flatten(1), dim=1) for t in tensors]

    def _normalised(self, tensors: list[Tensor], norms: list[Tensor]) -> list[Tensor]:
        """Return tensors divided by their norms."""
        if self.replicas is None:
            return list(torch._foreach_div(tensors, norms)) if tensors else []
        return [tensor / self._shaped(norm, tensor) for tensor, norm in zip(tensors, norms)]

    def _shaped(self, numbers: Tensor, like: Tensor) -> Tensor:
        """Return a number, or one for each replica, in the form that multiplies a tensor."""
        return numbers if self.replicas is None else numbers.view(-1, *(1 for _ in like.shape[1:]))

    def _slopes(self, anchors: list[Tensor], norms: list[Tensor]) -> Sequence[Number]:
        """Return what outer products and biases are multiplied by; ``norms``: of lefts, rights and biases.

        Small operations are most of the cost: so all tensors' numbers are reckoned at once or, where that does not
        wait for a device, on the host.
        """
        rows = torch.stack((*anchors, *norms))
        little, tiny, m = _little(rows), torch.finfo(rows.dtype).tiny, len(anchors)
        k, strength = factor(self.exponent, norms[0]), factor(self.strength, norms[0])
        e = k * self._halves

        def of_matrix(anchor: Number, left: Number, right: Number) -> Number:
            right = right + little
            sigma = left / right
            above = _power(sigma, k) - _power(anchor, k)
            return 2.0 * strength * k * above * _power(sigma, k - 1.0) / (left * right)

        def of_bias(norm: Number) -> Number:
            return strength * e * _power(norm + tiny, e - 2.0)

        if self.replicas is None and rows.device.type == "cpu":
            n = rows.tolist()
            matrices = map(of_matrix, n[:m], n[m : 2 * m], n[2 * m : 3 * m])
            return [*matrices, *map(of_bias, n[3 * m :])]
        slopes = of_matrix(rows[:m], rows[m : 2 * m], rows[2 * m : 3 * m]), of_bias(rows[3 * m :])
        return torch.cat(cast("tuple[Tensor, Tensor]", slopes)).unbind()

    @property
    def _halves(self) -> float:
        """How many times k is the exponent of a bias's norm."""
        return 2.0 if self.bias == "squared" else 1.0

    def to(self, device: torch.device | str) -> Self:
        """Move the vectors of the iterations to ``device``."""
        self._u = {name: t.to(device) for name, t in self._u.items()}
        self._anchors = {name: t.to(device) for name, t in self._anchors.items()}
        return self

    def state_dict(self) -> State:
        """Return the vectors where the iterations stand, and the values at construction where they are the anchor."""
        return {"u": dict(self._u), "anchors": dict(self._anchors)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When it is of another model; nothing has been changed then.
        """
        if set(state) != {"u", "anchors"}:
            raise CheckpointError(f"the state has parts {sorted(state)}, this one ['anchors', 'u']")
        u = check_tensors(self._u, state["u"], "vectors")
        anchors = check_tensors(self._anchors, state["anchors"], "anchors")
        self._u, self._anchors = u, anchors


def _little(like: Tensor) -> float:
    """Return what vanishes beside one."""
    return torch.finfo(like.dtype).eps ** 2


def _power(base: Number, exponent: Number) -> Number:
    try:
        return cast(Number, base**exponent)
    except OverflowError:  # of Python's floats; tensors give infinity
        return math.inf
