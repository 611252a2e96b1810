"""Unit groups: what belongs to the units of a hidden layer, for every method that renews or watches units.

A unit is a neuron of a linear layer or a channel of a convolution. It owns a row of the layer's weight and bias, an
entry of the normalisations behind it, and a column (or several, behind a flattening) of the layers that hear it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import cast

from torch import Tensor, nn

from driftline.errors import ConfigError, unknown
from driftline.learners.lockstep.modules import kind_of
from driftline.learners.renewers.tracing import Path, activation_of, trace

WEIGHTED = ("linear", "conv")
Chain = Sequence["str | Sequence[str]"]


@dataclass(frozen=True, repr=False)
class UnitGroup:
    """The units of one hidden layer: the modules that they are part of.

    A unit's activation is what the first of ``out_modules`` receives from it: after nonlinearity, normalisation and
    pooling.

    Parameters
    ----------
    in_module : nn.Module
        The layer, linear or convolutional: a unit's incoming weights are a row of it.
    out_modules : tuple of nn.Module
        The layers that hear the units: a unit's outgoing weights are columns of each. All linear, or all
        convolutional.
    norms : tuple of nn.Module
        Normalisations between, of which a unit has an entry of scale, shift and running statistics.
    out_repeat : int
        Consecutive columns of a unit: the pixels of a channel behind convolution and flattening, otherwise 1.
    activation : str
        The nonlinearity, by torch's functional name; ``"linear"`` for none. It decides how large new weights are.
    name : str
        Name of ``in_module`` in its model.

    Examples
    --------
    >>> group = UnitGroup(nn.Linear(4, 8), (nn.Linear(8, 3),), activation="relu", name="body.0")
    >>> group
    UnitGroup('body.0', 8 units, relu)
    """

    in_module: nn.Module
    out_modules: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...] = ()
    out_repeat: int = 1
    activation: str = "linear"
    name: str = ""

    def __repr__(self) -> str:
        return f"UnitGroup({self.name!r}, {self.units} units, {self.activation})"

    @cached_property
    def units(self) -> int:
        """How many units there are."""
        return _units(self.in_module)

    @property
    def out_module(self) -> nn.Module:
        """The first layer that hears the units."""
        return self.out_modules[0]

    @cached_property
    def is_conv(self) -> bool:
        """Whether units are channels."""
        return kind_of(self.in_module) == "conv"

    @cached_property
    def heard_by_conv(self) -> bool:
        """Whether the layers that hear the units are convolutions."""
        return kind_of(self.out_module) == "conv"

    @cached_property
    def lead(self) -> int:
        """Number of dimensions in front of the units' own: 1 with replicas, otherwise 0."""
        return int(hasattr(self.in_module, "replicas"))

    @cached_property
    def out_weights(self) -> int:
        """How many outgoing weights each column has."""
        weights = [weight_of(module) for module in self.out_modules]
        return sum(w.numel() // (w.shape[self.lead + 1] * (len(w) if self.lead else 1)) for w in weights)

    def samples(self, activation: Tensor) -> Tensor:
        """Lay out what the first hearer received as (R?, samples, units * out_repeat); each pixel is a sample."""
        lead = self.lead
        if self.heard_by_conv:
            return activation.movedim(lead + 1, -1).flatten(lead, -2)
        return activation if activation.dim() == lead + 2 else activation.flatten(lead, -2)

    def fold(self, columns: Tensor) -> Tensor:
        """Average (R?, units * out_repeat) over each unit's columns: (R?, units)."""
        return columns if self.out_repeat == 1 else columns.view(*columns.shape[:-1], -1, self.out_repeat).mean(-1)


def weight_of(module: nn.Module) -> Tensor:
    """Return a layer's weight; on every step's path, where ``getattr`` is slow."""
    weight = module._parameters["weight"]
    assert weight is not None
    return weight


def find_unit_groups(
    model: nn.Module, *, layers: Sequence[str | Chain] | None = None, skip: Sequence[str] = ()
) -> list[UnitGroup]:
    """Return the unit groups of all hidden layers of a model, in the order of the forward pass.

    A hidden layer is one whose output reaches another linear or convolutional layer through normalisation,
    elementwise activation, pooling, dropout and flattening only. Finding them means tracing the forward pass with
    ``torch.fx``, which works for any module without data-dependent control flow.

    Parameters
    ----------
    model : nn.Module
        Of linear, convolutional, normalisation, pooling and elementwise layers; with replicas or without.
    layers : sequence, optional
        The layers by name instead of tracing: a chain of names in forward order, as in ``["fc1", "bn1", "fc2",
        "head"]``, or several chains. Each linear or convolutional layer of a chain but the last is a group that the
        next one hears; normalisations and activations between are named as well. A chain may end in several
        layers that hear the same units: ``[["fc1", ("policy", "value")]]``.
    skip : sequence of str
        Names of layers that are no group, with wildcards: ``["stem", "*.conv2"]``.

    Raises
    ------
    ConfigError
        Names each layer that is not resolved, with the reason: a residual addition or concatenation that other
        layers share, a module used twice, tied or computed weights, frozen parameters, code that cannot be traced.
        Also for a name that the model does not have, and when no group is left.

    Notes
    -----
    The layer that makes the model's output has no unit group. Units of a layer without bias have none to reset, and
    what they say to a layer without bias cannot be compensated there.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    >>> find_unit_groups(model)
    [UnitGroup('0', 8 units, relu), UnitGroup('2', 6 units, tanh)]
    >>> find_unit_groups(model, layers=["0", "1", "2"])
    [UnitGroup('0', 8 units, relu)]
    """
    known = dict(model.named_modules(remove_duplicate=False))
    if layers is not None:
        if not layers:
            raise ConfigError("layers is empty: there is no unit to renew")
        if skip:
            raise ConfigError("give layers=, the layers to take, or skip=, the layers to leave out, but not both")
        paths, problems = _named(layers, known), dict[str, str]()
    else:
        paths, problems = trace(model)
    for pattern in skip:
        matches = [name for name in known if fnmatchcase(name, pattern)]
        if not matches:
            raise unknown("layer in skip", pattern, [name for name, m in known.items() if kind_of(m) in WEIGHTED])
        for name in matches:
            paths.pop(name, None)
            problems.pop(name, None)
    for name, path in paths.items():
        if name not in problems and (problem := _problem(name, path, known)):
            problems[name] = problem
    if problems:
        raise ConfigError(_explain(problems))
    if not paths:
        raise ConfigError(
            "the model has no hidden layer whose units could be renewed: it needs two linear or convolutional "
            "layers, one after the other" + (f" (left out: {', '.join(skip)})" if skip else "")
        )
    return [_group(name, path, known) for name, path in paths.items()]


def check_groups(model: nn.Module, groups: Iterable[UnitGroup]) -> tuple[UnitGroup, ...]:
    """Return groups that a user gives, or raise if their modules are not the model's or cannot be renewed.

    Raises
    ------
    ConfigError
    """
    known = dict(model.named_modules(remove_duplicate=False))
    names = {id(module): name for name, module in reversed(known.items())}
    given = tuple(groups)
    for group in given:
        for module in (group.in_module, *group.norms, *group.out_modules):
            if id(module) not in names:
                raise ConfigError(
                    f"{group} has a {type(module).__name__} that is not the model's; make it with "
                    "find_unit_groups(model)"
                )
        norms, hearers = (tuple(names[id(m)] for m in part) for part in (group.norms, group.out_modules))
        path = Path(norms, hearers, group.activation, flattened=True)
        if problem := _problem(names[id(group.in_module)], path, known):
            raise ConfigError(_explain({group.name: problem}))
        if (repeat := _repeat(group.in_module, group.out_module, flattened=True)) != group.out_repeat:
            raise ConfigError(
                f"{group} has out_repeat={group.out_repeat}, but there are {repeat} columns for each unit"
            )
    if not given:
        raise ConfigError("groups is empty: there is no unit to renew")
    return given


def _named(layers: Sequence[str | Chain], known: Mapping[str, nn.Module]) -> dict[str, Path]:
    """Return what lies behind each layer of the user's chains."""
    chains = cast("Sequence[Chain]", [layers] if isinstance(layers[0], str) else layers)
    paths: dict[str, Path] = {}
    for chain in chains:
        layer, norms, activation = None, list[str](), "linear"
        for part in chain:
            names: tuple[str, ...] = (part,) if isinstance(part, str) else tuple(part)
            for name in names:
                if name not in known:
                    raise unknown("layer in layers", str(name), [n for n in known if n])
            kinds = {kind_of(known[name]) for name in names}
            if kinds <= set(WEIGHTED):
                if layer is not None:
                    paths[layer] = Path(tuple(norms), names, activation, flattened=True)
                layer, norms, activation = names[0] if len(names) == 1 else None, [], "linear"
            elif kinds == {None}:
                activation = activation_of(known[names[0]]) or activation
            else:
                norms += names
    return paths


def _group(name: str, path: Path, known: Mapping[str, nn.Module]) -> UnitGroup:
    norms, hearers = (tuple(known[n] for n in part) for part in (path.norms, path.out_modules))
    repeat = _repeat(known[name], hearers[0], path.flattened)
    return UnitGroup(known[name], hearers, norms, repeat, path.activation, name)


def _problem(name: str, path: Path, known: Mapping[str, nn.Module]) -> str | None:
    """Return why a layer's units cannot be renewed, if so."""
    layer, hearers = known[name], [known[n] for n in path.out_modules]
    for part in (name, *path.norms, *path.out_modules):
        if problem := parameters_problem(part, known):
            return problem
    repeats = {_repeat(layer, hearer, path.flattened) for hearer in hearers}
    if 0 in repeats:
        return f"the columns of {_listed(path.out_modules)} do not correspond to its {_units(layer)} units"
    if len(repeats) > 1 or len({kind_of(hearer) for hearer in hearers}) > 1:
        return f"the layers that hear it, {_listed(path.out_modules)}, are of different kind"
    lead = int(hasattr(layer, "replicas"))
    for other in path.norms:
        weight = getattr(known[other], "weight", None)
        if weight is not None and weight.shape[lead] not in (_units(layer), _units(layer) * max(repeats)):
            return f"the parameters of {other!r} do not correspond to its {_units(layer)} units"
    return None


def _units(layer: nn.Module) -> int:
    return int(layer.out_features if kind_of(layer) == "linear" else layer.out_channels)  # type: ignore[arg-type]


def _repeat(layer: nn.Module, hearer: nn.Module, flattened: bool) -> int:
    """Return how many columns of a hearer belong to each unit; 0: there is no correspondence."""
    units = _units(layer)
    if kind_of(hearer) == "conv":
        return int(kind_of(layer) == "conv" and hearer.groups == 1 and hearer.in_channels == units)
    columns = int(hearer.in_features)  # type: ignore[arg-type]
    if columns % units or (kind_of(layer) == "linear" and columns != units) or not (flattened or columns == units):
        return 0
    return columns // units


def parameters_problem(name: str, known: Mapping[str, nn.Module]) -> str | None:
    """Return why a module's parameters cannot be changed unit by unit, if so."""
    module = known[name]
    if kind_of(module) in WEIGHTED and not isinstance(module._parameters.get("weight"), nn.Parameter):
        return f"the weight of {name!r} is computed from other parameters (parametrization)"
    for key, parameter in module.named_parameters(recurse=False):
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            return f"{name}.{key} is not initialised yet; make one forward pass first"
        if not parameter.requires_grad:
            return f"{name}.{key} is frozen (requires_grad=False)"
        for other, theirs in known.items():
            if theirs is not module and any(p is parameter for p in theirs.parameters(recurse=False)):
                return f"{name}.{key} is also a parameter of {other or 'the model'!r} (tied weights)"
    return None


def _explain(problems: Mapping[str, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for name, reason in problems.items():
        by_reason.setdefault(reason, []).append(name)
    reasons = "; ".join(f"{_listed(names)}: {reason}" for reason, names in by_reason.items())
    return (
        f"the units of some layers cannot be renewed: {reasons}. Leave them out with "
        f"find_unit_groups(model, skip={list(problems)}), or name the layers to renew with layers="
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
