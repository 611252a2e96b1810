"""Looking into a network while it makes a forward pass: its hidden units, and the features its last layer sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from driftline.activations import Activation
from driftline.errors import ConfigError, unknown
from driftline.plasticity.units import Kind

ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.Threshold, nn.Tanh, nn.Hardtanh, nn.Sigmoid,
    nn.Hardsigmoid, nn.Hardswish, nn.GLU, Activation,
)  # fmt: skip
"""Modules whose outputs are taken for hidden units (``ReLU6`` is a ``Hardtanh``)."""

See = Callable[[Tensor, Kind], object]
"""Is shown a layer's activations (samples, units, *space), and what counts as active among them."""


def hidden_layers(network: nn.Module, layers: Sequence[str] | None = None) -> list[nn.Module]:
    """Return the modules whose outputs are a network's hidden units: those named, or all activation modules.

    Parameters
    ----------
    network : nn.Module
        Where to look.
    layers : sequence of str, optional
        Names as in ``network.named_modules()``.

    Raises
    ------
    ConfigError
        For an unknown name, or when no name is given and there is no activation module.

    Examples
    --------
    >>> hidden_layers(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
    [ReLU()]
    >>> hidden_layers(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), ["0"])
    [Linear(in_features=2, out_features=3, bias=True)]
    """
    modules = {name: module for name, module in network.named_modules() if name}
    if layers is not None:
        for name in layers:
            if name not in modules:
                raise unknown("layer", name, modules)
        return [modules[name] for name in layers]
    found: list[nn.Module] = [module for module in network.modules() if isinstance(module, ACTIVATIONS)]
    if not found:
        raise ConfigError(
            f"{type(network).__name__} has no activation modules (such as nn.ReLU) to find its hidden units by; name "
            f"the modules whose outputs they are: layers=[...] of {', '.join(modules) or 'none'}"
        )
    return found


class Glance:
    """What a forward pass showed besides its hidden units.

    Attributes
    ----------
    features : Tensor, shape (samples, features), optional
        What the last layer saw: the input of the last linear layer, or the output of the last hidden layer if no
        linear layer follows it.
    """

    def __init__(self, see: See) -> None:
        self.features: Tensor | None = None
        self._see = see

    def see_output(self, module: nn.Module, inputs: object, output: object) -> None:
        """Show a hidden layer at once; later layers may change its activations in place."""
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, Tensor) and hidden.dim() > 1:
            self._see(hidden, _kind(module))
            self.features = hidden.flatten(1)

    def see_input(self, module: nn.Module, inputs: tuple[object, ...]) -> None:
        """Note what a linear layer is given."""
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim() > 1:
            self.features = inputs[0].flatten(1)


@contextmanager
def watching(network: nn.Module, see: See, layers: Sequence[str] | None = None) -> Iterator[Glance]:
    """Watch the forward passes made inside; the network's hooks are as before afterwards.

    Parameters
    ----------
    network : nn.Module
        Whose forward passes.
    see : callable
        ``see(activations, kind)`` is called for each hidden layer, in the order of the forward pass.
    layers : sequence of str, optional
        See :func:`hidden_layers`.

    Examples
    --------
    >>> import torch
    >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> with watching(network, lambda hidden, kind: print(kind, tuple(hidden.shape))) as glance:
    ...     scores = network(torch.zeros(4, 2))
    relu (4, 3)
    >>> glance.features.shape
    torch.Size([4, 3])
    """
    glance = Glance(see)
    handles = [module.register_forward_hook(glance.see_output) for module in hidden_layers(network, layers)]
    handles += [m.register_forward_pre_hook(glance.see_input) for m in network.modules() if _is_linear(m)]
    try:
        yield glance
    finally:
        for handle in handles:
            handle.remove()


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, torch's own or one like it."""
    return all(hasattr(module, name) for name in ("weight", "in_features", "out_features"))


def _kind(module: nn.Module) -> Kind:
    if isinstance(module, nn.Tanh):
        return "tanh"
    return "sigmoid" if isinstance(module, nn.Sigmoid) else "relu"
