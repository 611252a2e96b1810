"""Hooks that keep what a layer last received, for methods that look at hidden units between two steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from driftline.errors import ConfigError
from driftline.learners.renewers.unit_groups import UnitGroup


class Watcher:
    """Keeps what a layer received in the last forward pass that was made with gradients.

    A forward pass under ``torch.no_grad()``, such as a prediction, leaves it as it is. Copies and pickles of a model
    take their hooks along; what was kept does not travel.
    """

    activation: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Keep the layer's input; called by the layer before its forward pass."""
        if torch.is_grad_enabled():
            self.activation = inputs[0].detach()

    def __getstate__(self) -> None:
        """Leave the activation behind."""
        return None


class Watch:
    """The activations of unit groups, taken at the layers that hear them.

    Parameters
    ----------
    groups : sequence of UnitGroup
        Which.

    Examples
    --------
    >>> from driftline.learners.renewers.unit_groups import find_unit_groups
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> watch = Watch(find_unit_groups(model))
    >>> scores = model(torch.zeros(5, 4))
    >>> watch.take()[0].shape
    torch.Size([5, 8])
    >>> watch.close()
    """

    def __init__(self, groups: tuple[UnitGroup, ...] | list[UnitGroup]) -> None:
        self.names = [group.name for group in groups]
        self.watchers = [Watcher() for _ in groups]
        self.handles = [g.out_module.register_forward_pre_hook(w) for g, w in zip(groups, self.watchers)]

    def take(self) -> list[Tensor]:
        """Return what the first hearer of each group received last, and forget it.

        Raises
        ------
        ConfigError
            When a layer has received nothing since; nothing is forgotten then.
        """
        taken = []
        for name, watcher in zip(self.names, self.watchers):
            if watcher.activation is None:
                raise ConfigError(
                    f"no forward pass with gradients has used the units of {name!r} since the last renewal; call "
                    "renew once after each optimizer step, with the model that the renewer was made for"
                )
            taken.append(watcher.activation)
        for watcher in self.watchers:
            watcher.activation = None
        return taken

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self.handles:
            handle.remove()
