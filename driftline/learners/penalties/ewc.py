"""Online EWC: weights matter as much as the loss's gradients were large there (a diagonal Fisher information)."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from driftline.learners.penalties.base import factor
from driftline.learners.penalties.consolidation import Consolidation, Form, Named, average_, check_decay
from driftline.learners.replicas import Setting, check_setting


class MeanImportance(Consolidation):
    """A consolidation whose Ω is a mean of some size of gradients; a subclass says which size of which.

    Parameters
    ----------
    model, strength, form, beta_weight, every, replicas
        As for :class:`Consolidation`.
    beta_importance : float or sequence of float
        Decay of the running mean Ω, within [0, 1); for "online".
    gamma : float or sequence of float
        What is left of the old Ω at a boundary, where the mean since the last one is added; for "boundary".
    """

    def __init__(
        self,
        model: nn.Module,
        strength: Setting,
        *,
        form: Form,
        beta_weight: Setting,
        beta_importance: Setting,
        gamma: Setting,
        every: int | None,
        replicas: int | None,
    ) -> None:
        check_decay("beta_importance", beta_importance, replicas)
        check_setting("gamma", gamma, replicas, low=0, high=1)
        super().__init__(model, strength, ("size",), form=form, beta_weight=beta_weight, every=every, replicas=replicas)
        self.beta_importance, self.gamma = beta_importance, gamma

    @abstractmethod
    def sizes(self, grads: Named) -> list[Tensor]:
        """Return how large gradients are, of the parameters in order."""

    def gather(self, thetas: Named, grads: Named) -> None:
        """Take the gradients' sizes into their mean, or into the sum since the last boundary."""
        sizes, traces = self.sizes(grads), self.kept("size", grads)
        if self.form == "online":
            average_(traces, sizes, self.beta_importance)
        else:
            torch._foreach_add_(traces, sizes)

    def running(self, name: str) -> Tensor:
        """Return the mean size."""
        size = self._kept["size"][name]
        return size / self.corrected(self.beta_importance, size)

    def settled(self, name: str) -> Tensor:
        """Return γ Ω plus the mean size since the last boundary."""
        size, old = self._kept["size"][name], self._kept["importance"][name]
        new = old * factor(self.gamma, old) + size / max(self.gathered, 1)
        size.zero_()
        return new


class OnlineEWC(MeanImportance):
    """Online elastic weight consolidation: λ/2 Σ F (θ − w)², where F is a mean of the loss's squared gradients.

    Goes first among ``penalties=[...]``, so that F is of the loss alone.

    Parameters
    ----------
    model : nn.Module
        The model that will be trained.
    strength : float or sequence of float
        λ, at least 0; one number, or one for each replica.
    form : {"online", "boundary"}
        "online": F and w are running means, which change at every step. "boundary": they change at
        :meth:`consolidate`, to F ← γ F + mean of squared gradients since the last time, and w ← θ.
    beta_weight, beta_importance : float or sequence of float
        Decays of the running means w and F, within [0, 1); for "online".
    gamma : float or sequence of float
        γ, within [0, 1]; for "boundary".
    every : int, optional
        Steps after which it consolidates by itself; for "boundary".
    replicas : int, optional
        How many runs the model holds in lockstep.

    Raises
    ------
    ConfigError
        For a setting out of range, or a model without trainable parameters.

    Notes
    -----
    "boundary": Schwarz et al., "Progress & Compress" (ICML 2018), after Kirkpatrick et al., "Overcoming catastrophic
    forgetting in neural networks" (PNAS 2017). "online": the baseline of Elsayed & Mahmood (ICLR 2024), S-EWC. The
    papers take squared gradients of single samples in a second pass over a task; a stream has no second pass, so here
    they are of the batches met, whose mean gradients are smaller: λ is to be larger for larger batches.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> penalty = OnlineEWC(model, strength=1.0, form="boundary")
    >>> (3.0 * model.weight).sum().backward()
    >>> penalty.add_gradients(model)
    >>> penalty.consolidate()
    >>> _ = model.weight.data.add_(2.0)
    >>> penalty.importance("weight").item(), round(penalty(model).item(), 3)
    (9.0, 18.0)
    """

    def __init__(
        self,
        model: nn.Module,
        strength: Setting,
        *,
        form: Form = "online",
        beta_weight: Setting = 0.999,
        beta_importance: Setting = 0.999,
        gamma: Setting = 0.95,
        every: int | None = None,
        replicas: int | None = None,
    ) -> None:
        super().__init__(
            model,
            strength,
            form=form,
            beta_weight=beta_weight,
            beta_importance=beta_importance,
            gamma=gamma,
            every=every,
            replicas=replicas,
        )

    def sizes(self, grads: Named) -> list[Tensor]:
        """Return squares."""
        return [grad.square() for grad in grads.values()]
