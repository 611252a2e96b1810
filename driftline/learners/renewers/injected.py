"""A part of a network that can be given a second start without forgetting what it says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn


class Injected(nn.Module):
    """A head h, after an injection h_frozen + (h_trained - h_fresh), where h_fresh is h_trained as it began.

    Before, it is the trained head alone. After loading a state it knows from the weights which of both it is.

    Parameters
    ----------
    head : nn.Module
        Goes on to hold the trained weights; the two other parts are frozen copies.

    Examples
    --------
    >>> head = Injected(nn.Linear(2, 1))
    >>> before = head(torch.ones(1, 2))
    >>> head.inject(lambda trained: nn.init.zeros_(trained.weight))
    >>> torch.equal(head(torch.ones(1, 2)), before)
    True
    """

    lockstep = True
    """Replicas may be stacked: the forward only hands on to the parts."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.trained = head
        self.frozen = copy.deepcopy(head).requires_grad_(False)
        self.fresh = copy.deepcopy(head).requires_grad_(False)
        # One object, which views of replicas share.
        self._switch = {"on": False}
        self.register_load_state_dict_post_hook(_look)  # type: ignore[no-untyped-call]

    @property
    def injected(self) -> bool:
        """Whether there was an injection."""
        return self._switch["on"]

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's scores."""
        scores = cast(Tensor, self.trained(x))
        return self.frozen(x) + (scores - self.fresh(x)) if self.injected else scores

    @torch.no_grad()
    def inject(self, start_again: Callable[[nn.Module], object]) -> None:
        """Freeze what the head is, and let it start again.

        Parameters
        ----------
        start_again : callable
            Gives a module new weights.
        """
        _copy(self.trained, self.frozen)
        start_again(self.trained)
        _copy(self.trained, self.fresh)
        self._switch["on"] = True

    def unshared(self) -> None:
        """Part with copies that were made without copying what they share."""
        self._switch = dict(self._switch)


def _copy(source: nn.Module, target: nn.Module) -> None:
    for old, new in zip(target.parameters(), source.parameters()):
        old.copy_(new)


def _look(module: nn.Module, _: Any) -> None:
    """Recognise after loading whether there was an injection; until then both frozen parts are alike."""
    head = cast(Injected, module)
    pairs = zip(head.frozen.parameters(), head.fresh.parameters())
    head._switch["on"] = not all(torch.equal(one, other) for one, other in pairs)
