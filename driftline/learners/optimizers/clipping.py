"""Weights kept within bounds that depend on their layer's size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from driftline.errors import ConfigError
from driftline.learners.optimizers.fans import fan_ins
from driftline.learners.optimizers.passes import Factors, combine
from driftline.learners.optimizers.wrapper import Wrapper
from driftline.learners.replicas import Setting, check_setting


class WeightClipping(Wrapper):
    """Clamps every parameter to kappa / sqrt(fan-in of its layer) after each step of any optimizer.

    Parameters
    ----------
    optimizer : Optimizer
        Makes the steps.
    kappa : float or sequence of float
        Bound in units of the layer's initial range, above 0; 1 to 3 in the paper.
    clip_last_layer : bool
        Whether the last weight and what follows it (its bias) is clamped too.
    measure : bool
        Count what is clipped, for :meth:`clipped_proportion`; costs two more passes over the weights.
    replicas : int, optional
        Number of runs in lockstep.

    Raises
    ------
    ConfigError
        For a kappa that is not above 0.

    Notes
    -----
    Elsayed, Lan, Lyle & Mahmood, "Weight Clipping for Deep Continual and Reinforcement Learning" (RLC 2024). The
    layers are read off the order of the parameters: a vector, such as a bias, has the fan-in of the weight before
    it; one before any weight is left alone, as are frozen parameters.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(4, 3)
    >>> optimizer = WeightClipping(torch.optim.SGD(model.parameters(), lr=10.0), kappa=1.0)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    >>> model.weight.detach().abs().max().item()
    0.5
    """

    def __init__(
        self,
        optimizer: Optimizer,
        kappa: Setting = 1.0,
        *,
        clip_last_layer: bool = True,
        measure: bool = False,
        replicas: int | None = None,
    ) -> None:
        check_setting("kappa", kappa, replicas, low=1e-12)
        self.kappa, self.clip_last_layer, self.measure, self.replicas = kappa, clip_last_layer, measure, replicas
        self._clipped: Tensor | None = None
        self._factor = Factors()
        super().__init__(optimizer)

    def after_step(self) -> None:
        """Clamp."""
        bounded = self._bounded()
        if self.measure and bounded:
            self._clipped = self._share(bounded)
        for p, bound in bounded:
            if isinstance(bound, Tensor):
                p.clamp_(-bound, bound)
            else:
                p.clamp_(-bound, bound)

    def clipped_proportion(self) -> Tensor:
        """Return the share of the considered entries that the last step left out of bounds: 0-dim, or (R,).

        It stays on the device: nothing waits until somebody reads it.

        Raises
        ------
        ConfigError
            When it is not measured, or before the first step.
        """
        if self._clipped is None:
            raise ConfigError("nothing was counted: build WeightClipping with measure=True, and make a step")
        return self._clipped

    def own_settings(self) -> dict[str, Any]:
        """Return what this one adds to the optimizer's defaults."""
        return {"kappa": self.kappa}

    def _bounded(self) -> list[tuple[Tensor, float | Tensor]]:
        """Return the parameters that are clamped, with their bounds."""
        lead = 0 if self.replicas is None else 1
        params = self.parameters()
        fans = fan_ins(params, self.replicas)
        last = max((i for i, p in enumerate(params) if p.dim() - lead >= 2), default=len(params))
        bounded: list[tuple[Tensor, float | Tensor]] = []
        for p, fan in zip(params if self.clip_last_layer else params[:last], fans):
            if fan and p.requires_grad:
                bound = self._factor(combine(lambda kappa, fan=fan: kappa / fan**0.5, self.kappa), [p])
                bounded.append((p, bound[0] if isinstance(bound, list) else bound))
        return bounded

    def _share(self, bounded: list[tuple[Tensor, float | Tensor]]) -> Tensor:
        """Return the share of entries out of bounds."""
        entries = sum(p.numel() for p, _ in bounded) // (self.replicas or 1)
        outside = [p.abs() > bound for p, bound in bounded]
        if self.replicas is None:
            counts = [o.sum() for o in outside]
        else:
            counts = [o.view(self.replicas, -1).sum(1) for o in outside]
        return torch.stack(counts).sum(0) / entries
