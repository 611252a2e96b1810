"""Sharpness: the largest eigenvalue of the loss's Hessian, by Lanczos iteration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from driftline.errors import ConfigError, InputError
from driftline.metrics.plasticity.periodic import Loss, PeriodicMetric, bare
from driftline.stream.step import Step

Product = Callable[[Tensor], Tensor]


class Sharpness(PeriodicMetric):
    """Largest eigenvalue of the Hessian of the learner's loss on recent samples, in all trainable parameters.

    Parameters
    ----------
    every : int
        Samples between measurements.
    samples : int
        Most recent samples with known truth that the loss is averaged over.
    iterations : int
        Lanczos steps; each costs two backward passes over the samples.
    seed : int
        Of the vector it starts from.

    Raises
    ------
    InputError
        At the first step, when the learner shows no network or has no ``loss``.

    Notes
    -----
    The network is in evaluation mode, without penalties. Lyle et al., "Understanding Plasticity in Neural Networks"
    (ICML 2023), relate sharpness to plasticity; gradient descent with step size eta is stable below 2 / eta (Cohen et
    al., "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability", ICLR 2021). Reading the
    result makes the host wait for a CUDA device, once per iteration.

    Examples
    --------
    >>> import torch, driftline
    >>> from driftline.learners import GradientLearner
    >>> from driftline.metrics.plasticity import Sharpness
    >>> stream = driftline.scenarios.iid(driftline.load("digits"))
    >>> network = driftline.models.mlp((1, 8, 8), classes=10, hidden=(16,))
    >>> learner = GradientLearner(network, torch.optim.SGD(network.parameters(), lr=0.05))
    >>> for step in driftline.play(stream, learner, batch_size=10, metrics=[Sharpness(every=700)]):
    ...     pass
    >>> 0 < step.metrics()["sharpness"] < 40
    True
    """

    names: ClassVar[tuple[str, ...]] = ("sharpness",)
    definitions: ClassVar[Mapping[str, str]] = {
        "sharpness": "largest eigenvalue of the Hessian of the mean loss on the recent samples",
    }

    def __init__(self, every: int = 1000, samples: int = 128, iterations: int = 30, seed: int = 0) -> None:
        super().__init__(every, samples)
        if iterations < 1:
            raise ConfigError(f"iterations={iterations}: must be at least 1")
        self.iterations, self.seed = iterations, seed

    def introduce(self, step: Step) -> None:
        """Raise when there is no network or no loss."""
        super().introduce(step)
        if getattr(step.learner, "loss", None) is None:
            raise InputError(f"Sharpness needs the learner's loss, and {type(step.learner).__name__} has no `loss`")

    def measure(self, step: Step, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return the eigenvalue."""
        loss = cast(Loss, getattr(step.learner, "loss"))  # noqa: B009
        with bare(self.network(step)) as network:
            product, like = hessian_product(network, loss, x, y if y.is_floating_point() else y.long())
            return [top_eigenvalue(product, like, self.iterations, self.seed)]


def hessian_product(network: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> tuple[Product, Tensor]:
    """Return the function that multiplies the Hessian of a loss with a vector, and a vector of its shape and device.

    Parameters
    ----------
    network : nn.Module
        Its trainable parameters, in order and flattened, are the Hessian's coordinates (P,).
    loss : callable
        ``loss(scores, y) -> scalar``.
    x, y : Tensor, shape (N, *input) and (N,)
        What the loss is taken on.

    Examples
    --------
    >>> network = nn.Linear(2, 1, bias=False)
    >>> product, like = hessian_product(network, nn.functional.mse_loss, torch.eye(2), torch.zeros(2, 1))
    >>> product(torch.tensor([1.0, 0.0]))
    tensor([1., 0.])
    """
    params = {name: p.detach().requires_grad_() for name, p in network.named_parameters() if p.requires_grad}
    if not params:
        raise InputError(f"{type(network).__name__} has no trainable parameters, so its loss has no Hessian")
    scores = functional_call(network, params, (x,))
    gradients = torch.autograd.grad(loss(scores, y), list(params.values()), create_graph=True, materialize_grads=True)
    gradient = torch.cat([g.reshape(-1) for g in gradients])

    def product(vector: Tensor) -> Tensor:
        if not gradient.requires_grad:
            return torch.zeros_like(vector)
        found = torch.autograd.grad(gradient, list(params.values()), vector, retain_graph=True, materialize_grads=True)
        return torch.cat([f.reshape(-1) for f in found])

    return product, gradient.detach()


def top_eigenvalue(product: Product, like: Tensor, iterations: int = 30, seed: int = 0) -> Tensor:
    """Return the largest eigenvalue of a symmetric matrix by Lanczos iteration with full reorthogonalisation.

    Parameters
    ----------
    product : callable
        Multiplies the matrix with a vector (P,).
    like : Tensor, shape (P,)
        A vector of the right size, dtype and device.
    iterations : int
        At most so many products; P are enough for the exact value.
    seed : int
        Of the first vector, which is drawn on the CPU.

    Returns
    -------
    Tensor, shape ()
        In float64; never above the true one but for rounding.

    Examples
    --------
    >>> matrix = torch.diag(torch.tensor([1.0, 5.0, -7.0]))
    >>> round(top_eigenvalue(lambda v: matrix @ v, torch.zeros(3)).item(), 4)
    5.0
    """
    draw = torch.Generator().manual_seed(seed)
    vector = torch.randn(like.numel(), generator=draw, dtype=torch.float64).to(like.device)
    vector = vector / vector.norm()
    basis, diagonal, beside = [vector], [], []
    for _ in range(min(iterations, like.numel())):
        image = product(basis[-1].to(like.dtype)).double()
        diagonal.append(image @ basis[-1])
        known = torch.stack(basis)
        # Twice, since once leaves what rounding brings back.
        for _ in range(2):
            image = image - known.T @ (known @ image)
        length = image.norm()
        if float(length) <= 1e-6 * float(torch.stack(diagonal).abs().max()) or not bool(length.isfinite()):
            break
        beside.append(length)
        basis.append(image / length)
    size = len(diagonal)
    matrix = torch.diag(torch.stack(diagonal))
    if size > 1:
        off = torch.stack(beside[: size - 1])
        matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    if not bool(matrix.isfinite().all()):
        return torch.full((), torch.nan, dtype=torch.float64, device=like.device)
    largest: Tensor = torch.linalg.eigvalsh(matrix)[-1]
    return largest
