"""What lies behind each layer of a model: the forward pass traced with ``torch.fx`` and followed to the next layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from torch import fx, nn
from torch.nn.modules import activation as activations
from torch.nn.modules import dropout, pooling

from driftline.activations import ASH, Activation
from driftline.errors import ConfigError
from driftline.learners.lockstep.modules import Replicated, kind_of

ELEMENTWISE = {
    name.replace("_", ""): name
    for name in (
        "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh",
        "sigmoid", "softplus", "softsign", "hardtanh", "hardswish", "hardsigmoid", "logsigmoid", "threshold",
    )
}  # fmt: skip
"""Nonlinearities that act on each unit alone, by their names without underscores."""
UNCHANGED = {"identity", "neg", "contiguous", "clone", "float", "double", "to", "dropout", "dropout1d", "dropout2d",
             "alphadropout", "featurealphadropout"}  # fmt: skip
SPATIAL = {"maxpool2d", "avgpool2d", "lppool2d", "adaptiveavgpool2d", "adaptivemaxpool2d", "fractionalmaxpool2d"}
FLATTENING = {"flatten", "view", "reshape"}
SIZES = {"size", "dim", "getattr", "getitem", "len"}
SCALAR = {"add", "sub", "mul", "truediv", "div"}
POOLS = tuple(k for k in vars(pooling).values() if isinstance(k, type) and k.__module__ == pooling.__name__)
DROPOUTS = (dropout._DropoutNd,)


@dataclass(frozen=True)
class Path:
    """From a layer's units to the layers that hear them."""

    norms: tuple[str, ...]
    out_modules: tuple[str, ...]
    activation: str
    flattened: bool


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep every layer of torch's and of ours, and every layer with replicas, whole."""
        if kind_of(m) is not None or isinstance(m, (Replicated, Activation)):
            return True
        of_torch = any(base.__module__.startswith("torch.nn") for base in type(m).__mro__ if base is not nn.Module)
        return of_torch and not any(True for _ in m.children())


def activation_of(module: nn.Module) -> str | None:
    """Return the functional name of a module that acts on each unit alone, otherwise None.

    ASH looks at other units for its threshold only: it counts as what it becomes above that, a ReLU.
    """
    if isinstance(module, ASH):
        return "relu"
    known = next((base for base in type(module).__mro__ if base.__module__ == activations.__name__), None)
    return None if known is None else ELEMENTWISE.get(known.__name__.lower())


def trace(model: nn.Module) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the path behind each hidden layer, and why there is none for others.

    Layers whose output leaves the model are in neither.

    Raises
    ------
    ConfigError
        When the forward pass cannot be traced.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever the model's own code raises when it is given no tensors
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"the forward pass of {type(model).__name__} cannot be traced ({reason}); name the layers to renew with "
            "find_unit_groups(model, layers=[...])"
        ) from error
    return _Followed(model, graph).result()


class _Followed:
    """All layers of a traced model, each followed to the layers behind it."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.graph = graph
        self.calls = Counter(id(self.modules[str(n.target)]) for n in graph.nodes if n.op == "call_module")

    def result(self) -> tuple[dict[str, Path], dict[str, str]]:
        paths: dict[str, Path] = {}
        problems: dict[str, str] = {}
        for node in self.graph.nodes:
            name = str(node.target)
            if node.op == "call_module" and kind_of(self.modules[name]) in ("linear", "conv"):
                found = self._layer(name, node)
                if isinstance(found, Path):
                    paths[name] = found
                elif found is not None:
                    problems[name] = found
        first_names = {id(module): name for name, module in reversed(self.modules.items())}
        for name in first_names.values():
            module, kind = self.modules[name], kind_of(self.modules[name])
            called = self.calls[id(module)] > 0
            idle = not called and not any(p.requires_grad for p in module.parameters(recurse=False))
            if kind in ("linear", "conv") and not called and name and not idle:
                problems[name] = "it is not called as a layer of its own in the forward pass"
            elif called and kind is None and activation_of(module) is None and any(True for _ in module.parameters()):
                problems[name] = f"it is a {type(module).__name__}, whose units are not known"
        return paths, problems

    def _layer(self, name: str, node: fx.Node) -> Path | str | None:
        walk = _Walk(self.modules)
        walk.follow(node)
        for other in (name, *walk.norms, *walk.outs):
            if self.calls[id(self.modules[other])] > 1:
                return f"{other!r} is used {self.calls[id(self.modules[other])]} times in one forward pass"
        if walk.problem is not None:
            return walk.problem
        if walk.leaves and walk.outs:
            return "its units are also an output of the model"
        if not walk.outs:
            return None
        return Path(tuple(walk.norms), tuple(walk.outs), walk.activation or "linear", walk.flattened)


class _Walk:
    """One layer's output, followed through whatever keeps its units apart."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self.norms: list[str] = []
        self.outs: list[str] = []
        self.activation: str | None = None
        self.flattened = self.leaves = False
        self.problem: str | None = None

    def follow(self, node: fx.Node) -> None:
        for user in node.users:
            if user.op == "output":
                self.leaves = True
            elif user.op == "call_module":
                self._module(str(user.target), user)
            else:
                self._function(_name(user.target), user)

    def _module(self, name: str, user: fx.Node) -> None:
        module = self.modules[name]
        kind = kind_of(module)
        if kind in ("linear", "conv"):
            if name not in self.outs:
                self.outs.append(name)
            return
        if kind is not None:
            self.norms.append(name)
        elif (activation := activation_of(module)) is not None:
            self.activation = self.activation or activation
        elif isinstance(module, nn.Flatten):
            self.flattened = True
        elif not isinstance(module, (*POOLS, *DROPOUTS, nn.Identity)):
            self._stop(f"its units go through {name!r}, a {type(module).__name__}")
            return
        self.follow(user)

    def _function(self, name: str, user: fx.Node) -> None:
        inputs = len(user.all_input_nodes)
        plain = name.rstrip("_").replace("_", "")
        if plain in SIZES:
            return
        if plain in ELEMENTWISE:
            self.activation = self.activation or ELEMENTWISE[plain]
        elif plain in FLATTENING or (plain == "mean" and _over_pixels(user)):
            self.flattened = True
        elif plain in SCALAR | {"iadd", "isub", "imul"} and inputs > 1:
            what = "an addition (residual connection)" if "add" in plain else f"an operation of two tensors ({name})"
            self._stop(f"its units go through {what}, together with those of other layers")
            return
        elif plain in ("cat", "concat", "concatenate", "stack", "hstack"):
            self._stop(f"its units go through a concatenation ({name})")
            return
        elif plain not in UNCHANGED | SPATIAL | SCALAR:
            self._stop(f"its units go through {name}, which is not known to keep them apart")
            return
        self.follow(user)

    def _stop(self, problem: str) -> None:
        self.problem = self.problem or problem


def _name(target: str | Callable[..., object]) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _over_pixels(user: fx.Node) -> bool:
    """Whether a mean is taken over the pixels of images (B, C, H, W) only."""
    dims = user.kwargs.get("dim", user.args[1] if len(user.args) > 1 else None)
    return isinstance(dims, (list, tuple)) and {d % 4 for d in dims if isinstance(d, int)} == {2, 3}
