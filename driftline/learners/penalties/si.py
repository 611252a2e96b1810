"""Synaptic intelligence: weights matter as much as their own way lowered the loss."""

from __future__ import annotations

from torch import Tensor, nn

from driftline.learners.penalties.base import factor
from driftline.learners.penalties.consolidation import Form, Named, PathConsolidation, Variant, average_, check_decay
from driftline.learners.replicas import Setting, check_setting


class SynapticIntelligence(PathConsolidation):
    """Synaptic intelligence: λ/2 Σ Ω (θ − w)², Ω what a weight's way took off the loss by the square of that way.

    Goes first among ``penalties=[...]``, so that gradients are of the loss alone.

    Parameters
    ----------
    model : nn.Module
        The model that will be trained.
    strength : float or sequence of float
        λ, at least 0; one number, or one for each replica. The paper's c is λ/2.
    form : {"online", "boundary"}
        "boundary": at :meth:`consolidate`, Ω ← Ω + max(0, ω) / ((θ − w)² + ξ) and w ← θ, where ω = −Σ g Δθ over the
        steps since the last time. "online": Ω = max(0, mean of −g Δθ) / ((mean of Δθ)² + ξ), with running means.
    beta_weight, beta_importance : float or sequence of float
        Decays of the running means, of w and of those in Ω, within [0, 1); for "online".
    epsilon : float or sequence of float
        ξ, above 0.
    every : int, optional
        Steps after which it consolidates by itself; for "boundary".
    variant : {"paper", "released"}
        "released" is "online" as in the code released with UPGD: the first way comes from 0, each way is multiplied
        by the gradient at its end, and Ω may be negative.
    replicas : int, optional
        How many runs the model holds in lockstep.

    Raises
    ------
    ConfigError
        For a setting out of range, or a model without trainable parameters.

    Notes
    -----
    Zenke, Poole & Ganguli, "Continual Learning Through Synaptic Intelligence" (ICML 2017). The "online" form is the
    baseline of Elsayed & Mahmood (ICLR 2024), S-SI.

    Examples
    --------
    >>> import torch
    >>> model = nn.Linear(1, 1, bias=False)
    >>> penalty = SynapticIntelligence(model, strength=1.0, form="boundary", epsilon=1.0)
    >>> (2.0 * model.weight).sum().backward()
    >>> penalty.add_gradients(model)
    >>> torch.optim.SGD(model.parameters(), lr=0.5).step()
    >>> penalty.consolidate()
    >>> round(penalty.importance("weight").item(), 3)
    1.0
    """

    def __init__(
        self,
        model: nn.Module,
        strength: Setting,
        *,
        form: Form = "online",
        beta_weight: Setting = 0.999,
        beta_importance: Setting = 0.999,
        epsilon: Setting = 1e-3,
        every: int | None = None,
        variant: Variant = "paper",
        replicas: int | None = None,
    ) -> None:
        check_decay("beta_importance", beta_importance, replicas)
        check_setting("epsilon", epsilon, replicas, low=1e-30)
        super().__init__(
            model,
            strength,
            ("gain", "way") if form == "online" else ("gain",),
            variant=variant,
            form=form,
            beta_weight=beta_weight,
            every=every,
            replicas=replicas,
        )
        self.beta_importance, self.epsilon = beta_importance, epsilon

    def gather(self, thetas: Named, grads: Named) -> None:
        """Take the last step into the means, or into the sum since the last boundary."""
        ways, gains = zip(*(self.step(name, theta, grads[name]) for name, theta in thetas.items()))
        if self.form == "online":
            average_(self.kept("gain", thetas), gains, self.beta_importance)
            average_(self.kept("way", thetas), ways, self.beta_importance)
        else:
            for total, gain in zip(self.kept("gain", thetas), gains):
                total.add_(gain)
        self.note(thetas, grads)

    def running(self, name: str) -> Tensor:
        """Return the mean gain by the squared mean way."""
        gain, way = self._kept["gain"][name], self._kept["way"][name]
        c = self.corrected(self.beta_importance, gain)
        gain = gain / c if self.variant == "released" else (gain / c).clamp_min(0.0)
        return gain / ((way / c).square() + factor(self.epsilon, gain))

    def settled(self, name: str) -> Tensor:
        """Return Ω plus the gain since the last boundary by the squared way since then."""
        gain, old = self._kept["gain"][name], self._kept["importance"][name]
        whole = (gain + self.finish(name)).clamp_min(0.0)
        gain.zero_()
        away = self._own[name].detach() - self._kept["weight"][name]
        return old + whole / (away.square() + factor(self.epsilon, old))
