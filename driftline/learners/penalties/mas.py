"""Memory aware synapses: weights matter as much as the model's output changes with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from driftline.errors import ConfigError
from driftline.learners.penalties.consolidation import Form, Named, Variant, check_variant
from driftline.learners.penalties.ewc import MeanImportance
from driftline.learners.replicas import Setting


class MAS(MeanImportance):
    """Memory aware synapses: λ/2 Σ Ω (θ − w)², Ω a mean of abs(∂‖f(x)‖²/∂θ), which needs no labels.

    A hook at the model takes that gradient in each forward pass made with gradients: one backward pass more per step.

    Parameters
    ----------
    model : nn.Module
        The model that will be trained; f(x) is what it returns.
    strength : float or sequence of float
        λ, at least 0; one number, or one for each replica.
    form : {"online", "boundary"}
        "online": Ω and w are running means, which change at every step. "boundary": they change at
        :meth:`consolidate`, to Ω ← γ Ω + the mean since the last time, and w ← θ.
    beta_weight, beta_importance : float or sequence of float
        Decays of the running means w and Ω, within [0, 1); for "online".
    gamma : float or sequence of float
        γ, within [0, 1]; for "boundary". 1: the paper's sum over tasks.
    every : int, optional
        Steps after which it consolidates by itself; for "boundary".
    variant : {"paper", "released"}
        "released" takes absolute values of the training loss's gradient instead, as the code released with UPGD: no
        further backward pass, but labels decide.
    replicas : int, optional
        How many runs the model holds in lockstep.

    Raises
    ------
    ConfigError
        For a setting out of range, or a model without trainable parameters; in a step without a forward pass.

    Notes
    -----
    Aljundi et al., "Memory Aware Synapses: Learning what (not) to forget" (ECCV 2018), whose penalty has no 1/2. The
    paper means absolute gradients of single samples; here, as in its code, they are of batches' means. The "online"
    form is the baseline of Elsayed & Mahmood (ICLR 2024), S-MAS.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = model.weight.data.fill_(3.0)
    >>> penalty = MAS(model, strength=1.0, form="boundary")
    >>> model(torch.ones(1, 1)).sum().backward()
    >>> penalty.add_gradients(model)
    >>> penalty.consolidate()
    >>> penalty.importance("weight").item()
    6.0
    """

    def __init__(
        self,
        model: nn.Module,
        strength: Setting,
        *,
        form: Form = "online",
        beta_weight: Setting = 0.999,
        beta_importance: Setting = 0.999,
        gamma: Setting = 1.0,
        every: int | None = None,
        variant: Variant = "paper",
        replicas: int | None = None,
    ) -> None:
        check_variant(variant, form)
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
        self.variant = variant
        self._output = OutputGradients(tuple(self._own), 0 if replicas is None else 1)
        if variant == "paper" and not self.off:
            model.register_forward_hook(self._output)

    def sizes(self, grads: Named) -> list[Tensor]:
        """Return absolute values, of the output's or the loss's gradients."""
        if self.variant == "paper":
            grads = self._output.take(grads)
        return [grad.abs() for grad in grads.values()]


class OutputGradients:
    """A forward hook that takes the gradient of the output's squared norm, averaged over the batch.

    Parameters
    ----------
    names : tuple of str
        Of the parameters by which.
    lead : int
        Dimensions in front of the batch's: 1 with replicas.
    """

    taken: dict[str, Tensor] | None = None

    def __init__(self, names: tuple[str, ...], lead: int) -> None:
        self.names, self.lead = names, lead

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        """Take it; called by the model after its forward pass, and silent in one without gradients."""
        if not torch.is_grad_enabled() or not output.requires_grad:
            return
        parameters = dict(module.named_parameters())
        of = {name: parameters[name] for name in self.names if parameters[name].requires_grad}
        norm = output.square().sum() / output.shape[self.lead]
        found = torch.autograd.grad(norm, list(of.values()), retain_graph=True, allow_unused=True)
        self.taken = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(of.items(), found)}

    def take(self, names: Named) -> dict[str, Tensor]:
        """Return what was taken last for these parameters, and forget it.

        Raises
        ------
        ConfigError
            When there was no forward pass with gradients since.
        """
        if self.taken is None:
            raise ConfigError(
                "MAS: no forward pass with gradients since the last step; call add_gradients once after each "
                "backward pass, with the model that the penalty was made for"
            )
        taken, self.taken = self.taken, None
        return {name: taken[name] for name in names}

    def __getstate__(self) -> dict[str, object]:
        """Leave the gradients behind."""
        return {"names": self.names, "lead": self.lead}
