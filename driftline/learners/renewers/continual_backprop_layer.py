"""Continual backprop as a layer: it renews the units in front of it while gradients flow back through it.

The released code's second form of the method (``CBPLinear`` and ``CBPConv``); for new work, prefer
:class:`~driftline.learners.renewers.ContinualBackprop`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from driftline.errors import ConfigError, unknown
from driftline.learners.draws import Draws
from driftline.learners.lockstep.modules import kind_of
from driftline.learners.renewers.counting import RenewalCounter
from driftline.learners.renewers.initialization import INITIALIZATIONS, Initialization, bound
from driftline.learners.renewers.resetting import reset_units
from driftline.learners.renewers.tracing import ELEMENTWISE
from driftline.learners.renewers.unit_groups import UnitGroup, check_groups
from driftline.learners.renewers.unit_state import Chosen
from driftline.learners.renewers.utility import instantaneous
from driftline.learners.replicas import check_setting


class ContinualBackpropLayer(nn.Module):
    """Passes activations on as they are, and renews the units that made them during the backward pass.

    Put it between nonlinearity (and pooling) and the next layer. Units older than ``maturity`` that contribute least
    to the next layer, judged by the current batch, get fresh incoming weights and outgoing weights of zero.

    Parameters
    ----------
    in_layer : nn.Linear or nn.Conv2d
        The layer that makes the units.
    out_layer : nn.Linear or nn.Conv2d
        The next layer.
    norms : sequence of nn.Module
        Normalisations between, whose entries are reset along with the units.
    replacement_rate : float
        Renewals expected for each mature unit and step, in [0, 1].
    maturity : int
        Steps for which a new unit is safe.
    initialization : str
        ``kaiming``, ``default``, ``xavier`` or ``lecun``; convolutions always take ``default``.
    activation : str
        The nonlinearity, by torch's functional name.
    decay : float
        Of a running average of the batches' activations, entry by entry, in [0, 1); above 0, batches must be of one
        size.
    seed : int
        Decides new weights; give the layers of a model different ones.

    Raises
    ------
    ConfigError
        For a value out of range, or layers that do not fit.

    Notes
    -----
    As in the code of Dohare et al., "Loss of plasticity in deep continual learning" (Nature 2024): the optimizer's
    next step applies gradients of the old units to the new ones, so outgoing weights do not stay zero; what flows on
    to earlier layers passes through the new incoming weights; the optimizer forgets nothing and no bias compensates.
    Other than there, nothing is counted in evaluation mode.

    Examples
    --------
    >>> first, last = nn.Linear(4, 16), nn.Linear(16, 2)
    >>> renewing = ContinualBackpropLayer(first, last, replacement_rate=0.1, maturity=2)
    >>> model = nn.Sequential(first, nn.ReLU(), renewing, last)
    >>> for x in torch.rand(5, 1, 4):
    ...     model(x).sum().backward()
    >>> renewing.birth.max()
    tensor(5)
    """

    birth: Tensor
    utility: Tensor

    def __init__(
        self,
        in_layer: nn.Module,
        out_layer: nn.Module,
        norms: Sequence[nn.Module] = (),
        replacement_rate: float = 1e-4,
        maturity: int = 100,
        initialization: Initialization = "kaiming",
        activation: str = "relu",
        decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if initialization not in INITIALIZATIONS:
            raise unknown("initialization", initialization, INITIALIZATIONS)
        if activation not in (known := ["linear", *ELEMENTWISE.values()]):
            raise unknown("activation", activation, known)
        check_setting("replacement_rate", replacement_rate, None, 0, 1)
        check_setting("maturity", maturity, None, 0)
        check_setting("decay", decay, None, 0, 1 - 1e-12)
        if {kind_of(in_layer), kind_of(out_layer)} - {"linear", "conv"}:
            found = f"in_layer={type(in_layer).__name__}, out_layer={type(out_layer).__name__}"
            raise ConfigError(f"{found}: give linear layers or convolutions")
        columns = int(out_layer.in_features if kind_of(out_layer) == "linear" else out_layer.in_channels)  # type: ignore[arg-type]
        group = UnitGroup(in_layer, (out_layer,), tuple(norms), activation=activation, name="in_layer")
        repeat = max(columns // group.units, 1) if group.is_conv else 1
        self.group = UnitGroup(in_layer, (out_layer,), tuple(norms), repeat, activation, "in_layer")
        check_groups(nn.ModuleList([in_layer, out_layer, *norms]), [self.group])
        self.replacement_rate, self.maturity, self.initialization = replacement_rate, maturity, initialization
        self.activation, self.decay, self.seed = activation, decay, seed
        self.draws = Draws(seed, "continual backprop layer")
        self.counter = RenewalCounter(group.units, replacement_rate, maturity)
        self.step = 0
        weight = cast(Tensor, in_layer.weight).detach()
        self.register_buffer("utility", weight.new_zeros(group.units))
        self.register_buffer("birth", torch.zeros_like(self.utility, dtype=torch.int64))
        self._heard: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations as they are."""
        if self.training and x.requires_grad and torch.is_grad_enabled():
            now = x.detach()
            if self.decay:
                before = 0.0 if self._heard is None else self.decay * self._heard
                now = before + (1 - self.decay) * now
            self._heard = now
            x.register_hook(self._renew)  # type: ignore[no-untyped-call]
        return x

    def _renew(self, gradient: Tensor) -> None:
        """Count a step, and renew the units that are due; called when the gradient of the activations is known."""
        self.step += 1
        if not (due := self.counter.due(self.step)):
            return
        with torch.no_grad():
            group = self.group
            heard = cast(Tensor, self._heard)
            heard = heard.flatten(1) if group.is_conv and kind_of(group.out_module) == "linear" else heard
            self.utility.copy_(instantaneous("contribution", group, group.samples(heard), self.utility))
            ranks = self.utility.nan_to_num(torch.finfo(self.utility.dtype).max)
            young = self.step - self.birth <= self.maturity
            chosen = Chosen(ranks.masked_fill_(young, torch.inf).topk(due, largest=False).indices)
            fan_in = cast(Tensor, group.in_module.weight)[0].numel()
            drawn = self.draws.uniform(self.step, due * fan_in, device=ranks.device, dtype=ranks.dtype)
            reset_units(group, chosen, (2 * drawn - 1) * bound(group, self.initialization, released=True))
            chosen.write(self.birth, self.step)

    def get_extra_state(self) -> dict[str, object]:
        """Return what ``state_dict`` holds besides ages and utilities."""
        average = self._heard if self.decay else None
        return {"step": self.step, "counter": self.counter.state_dict(), "average": average}

    def set_extra_state(self, state: dict[str, object]) -> None:
        """Continue from :meth:`get_extra_state`."""
        self.step, average = cast(int, state["step"]), cast("Tensor | None", state["average"])
        self.counter.load_state_dict(cast("dict[str, object]", state["counter"]))
        self._heard = None if average is None else average.to(self.utility.device, copy=True)
