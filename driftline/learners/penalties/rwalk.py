"""Riemannian walk: weights matter by their Fisher information, and by what their own steps took off the loss."""

from __future__ import annotations

from torch import Tensor, nn

from driftline.learners.penalties.base import factor
from driftline.learners.penalties.consolidation import Form, Named, PathConsolidation, Variant, average_, check_decay
from driftline.learners.replicas import Setting, check_setting


class RWalk(PathConsolidation):
    """Riemannian walk: λ/2 Σ (F + s) (θ − w)², F a mean of squared gradients and s a score of each weight's steps.

    A step's score is max(0, −g Δθ) / (F Δθ² / 2 + ε): what it took off the loss, by its length in the metric F. Goes
    first among ``penalties=[...]``, so that gradients are of the loss alone.

    Parameters
    ----------
    model : nn.Module
        The model that will be trained.
    strength : float or sequence of float
        λ, at least 0; one number, or one for each replica.
    form : {"online", "boundary"}
        "boundary": scores are summed, and at :meth:`consolidate` s ← (s + sum) / 2 and w ← θ. "online": after each
        step s ← (s + score) / 2, and w is a running mean.
    beta_weight : float or sequence of float
        Decay of the running mean w, within [0, 1); for "online".
    beta_importance : float or sequence of float
        Decay of the running mean F, within [0, 1); for both forms.
    epsilon : float or sequence of float
        ε, above 0.
    every : int, optional
        Steps after which it consolidates by itself; for "boundary".
    variant : {"paper", "released"}
        "released" is "online" as in the code released with UPGD: F is a mean of squared weights, not of squared
        gradients; scores are forgotten at once (s is half of the last one's); the first step is taken to come from
        0, and each is multiplied by the gradient at its end.
    replicas : int, optional
        How many runs the model holds in lockstep.

    Raises
    ------
    ConfigError
        For a setting out of range, or a model without trainable parameters.

    Notes
    -----
    Chaudhry et al., "Riemannian Walk for Incremental Learning: Understanding Forgetting and Intransigence" (ECCV
    2018). The "online" form is the baseline of Elsayed & Mahmood (ICLR 2024), S-RWalk, with what its code leaves out.
    F and s are added as they are, without rescaling either.

    Examples
    --------
    >>> import torch
    >>> model = nn.Linear(1, 1, bias=False)
    >>> penalty = RWalk(model, strength=1.0, form="boundary", epsilon=1.0)
    >>> (2.0 * model.weight).sum().backward()
    >>> penalty.add_gradients(model)
    >>> torch.optim.SGD(model.parameters(), lr=0.5).step()
    >>> penalty.consolidate()
    >>> round(penalty.importance("weight").item(), 3)
    4.333
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
            ("fisher", "score") if form == "online" else ("fisher", "score", "sum"),
            variant=variant,
            form=form,
            beta_weight=beta_weight,
            every=every,
            replicas=replicas,
        )
        self.beta_importance, self.epsilon = beta_importance, epsilon

    def gather(self, thetas: Named, grads: Named) -> None:
        """Score the last step, and take the gradients into F."""
        for name, theta in thetas.items():
            score = self._score(name, *self.step(name, theta, grads[name]), seen=self.steps - 1)
            if self.form == "boundary":
                self._kept["sum"][name].add_(score)
            elif self.variant == "paper":
                self._kept["score"][name].add_(score).mul_(0.5)
            else:
                self._kept["score"][name] = score.mul_(0.5)
        of = thetas if self.variant == "released" else grads
        average_(self.kept("fisher", thetas), [value.square() for value in of.values()], self.beta_importance)
        self.note(thetas, grads)

    def _score(self, name: str, way: Tensor, gain: Tensor, seen: int) -> Tensor:
        """Return a step's score by an F that has seen so many gradients."""
        fisher = self._kept["fisher"][name]
        if self.variant == "paper" and seen:
            fisher = fisher / (1.0 - factor(self.beta_importance, fisher) ** seen)
        return gain.clamp_min(0.0) / (way.square() * fisher * 0.5 + factor(self.epsilon, way))

    def running(self, name: str) -> Tensor:
        """Return F + s."""
        fisher = self._kept["fisher"][name]
        return fisher / self.corrected(self.beta_importance, fisher) + self._kept["score"][name]

    def settled(self, name: str) -> Tensor:
        """Return F + s, with s the mean of the old one and the sum since the last boundary."""
        way = self._own[name].detach() - self._kept["previous"][name]
        last = self._score(name, way, self.finish(name), seen=self.steps)
        score, since = self._kept["score"][name], self._kept["sum"][name]
        score.add_(since + last).mul_(0.5)
        since.zero_()
        return self.running(name) if self.steps else score.clone()
