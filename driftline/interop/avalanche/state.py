"""What an Avalanche strategy and its plugins remember, as tensors and plain values: no code is saved, none is loaded.

Avalanche keeps a strategy's state in attributes of any kind. Those made of tensors, numbers, containers, datasets of
samples, copies of the model and objects of Avalanche's own classes are understood; anything else is refused by name.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections import OrderedDict, defaultdict, deque
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset, _make_taskaware_classification_dataset
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.training.utils import ParamData
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from driftline.errors import CheckpointError
from driftline.interop.rows import draws, read

Plain = Any
TRANSIENT = frozenset(
    {
        *("model", "optimizer", "plugins", "evaluator", "clock", "_criterion", "device", "optimized_param_id"),
        *("experience", "adapted_dataset", "dataloader", "mbatch", "mb_output", "loss", "is_training"),
        *("current_eval_stream", "_eval_streams"),
    }
)
"""Attributes of a strategy that are made anew, or saved in another way."""
KINDS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "deque": deque}
MAPPINGS: dict[str, Any] = {"dict": dict, "ordered": OrderedDict}


def packed(strategy: Any) -> Plain:
    """Return what a strategy and its plugins (its evaluator left out) remember.

    Raises
    ------
    CheckpointError
        For something that cannot be expressed, saying where it is.
    """
    pack = Packing(strategy)
    own = {name: value for name, value in vars(strategy).items() if name not in TRANSIENT}
    plugins = [plugin for plugin in strategy.plugins if plugin is not strategy.evaluator]
    return {
        "kind": type(strategy).__name__,
        "own": {name: pack(value, f"{type(strategy).__name__}.{name}") for name, value in own.items()},
        "plugins": [pack(plugin, type(plugin).__name__) for plugin in plugins],
        "prepared": getattr(strategy, "optimized_param_id", None) is not None,
    }


def unpack(strategy: Any, state: Mapping[str, Any]) -> None:
    """Bring a strategy made the same way to a state of :func:`packed`.

    Raises
    ------
    CheckpointError
        When the state is another strategy's.
    """
    plugins = [plugin for plugin in strategy.plugins if plugin is not strategy.evaluator]
    names = [type(plugin).__name__ for plugin in plugins]
    saved = [plugin["class"].rpartition(":")[2] for plugin in state["plugins"]]
    if state["kind"] != type(strategy).__name__ or saved != names:
        raise CheckpointError(
            f"the state is that of {state['kind']} with plugins {saved}, this strategy is {type(strategy).__name__} "
            f"with {names}; build it as it was saved"
        )
    unpacking = Unpacking(strategy)
    for name, value in state["own"].items():
        setattr(strategy, name, unpacking(value, getattr(strategy, name, None)))
    for plugin, value in zip(plugins, state["plugins"]):
        unpacking(value, plugin)
    prepared = dict(strategy.model.named_parameters()) if state["prepared"] else None
    if hasattr(strategy, "optimized_param_id"):
        strategy.optimized_param_id = prepared


class Packing:
    """Turns values into plain ones; an object met twice is saved once."""

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy
        self.numbers: dict[int, int] = {}
        self.kept: list[object] = []
        self.parameters = {id(p): name for name, p in strategy.model.named_parameters()}

    def __call__(self, value: Any, where: str) -> Plain:
        """Return a value as a plain one."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Tensor):
            known = self.parameters.get(id(value))
            return {"kind": "tensor", "value": value.detach().clone()} if known is None else _ref("parameter", known)
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray):
            return {"kind": "array", "value": torch.from_numpy(value.copy())}
        if isinstance(value, torch.device):
            return {"kind": "device", "value": str(value)}
        if isinstance(value, torch.Size):
            return {"kind": "size", "value": list(value)}
        for name in ("model", "optimizer", "evaluator"):
            if value is getattr(self.strategy, name, None):
                return _ref("part", name)
        if value is self.strategy:
            return _ref("part", "strategy")
        if id(value) in self.numbers:
            return _ref("seen", self.numbers[id(value)])
        self.numbers[id(value)] = len(self.numbers)
        self.kept.append(value)  # so that no other object gets its id
        return self._object(value, where)

    def _object(self, value: Any, where: str) -> Plain:
        if isinstance(value, (dict, OrderedDict, defaultdict)):
            kind = "ordered" if isinstance(value, OrderedDict) else "dict"
            return {"kind": kind, "items": [[self(k, where), self(v, f"{where}[{k!r}]")] for k, v in value.items()]}
        for name, cls in KINDS.items():
            if type(value) is cls:
                return {"kind": name, "items": [self(v, f"{where}[{i}]") for i, v in enumerate(value)]}
        if isinstance(value, AvalancheDataset):
            return self._samples(value, where)
        if isinstance(value, ParamData):
            return {"kind": "param", "name": value.name, "value": value.data.detach().clone()}
        if isinstance(value, nn.Module):
            if type(value) is not type(self.strategy.model):
                raise CheckpointError(f"{where}: a {type(value).__name__}, which is no copy of the model; {CANNOT}")
            return {"kind": "copy", "value": {k: v.clone() for k, v in value.state_dict().items()}}
        if isinstance(value, torch.Generator):
            return {"kind": "generator", "value": value.get_state()}
        if inspect.isroutine(value) or isinstance(value, type) or not hasattr(value, "__dict__"):
            raise CheckpointError(f"{where}: a {type(value).__name__}; {CANNOT}")
        attributes = {name: self(v, f"{where}.{name}") for name, v in vars(value).items()}
        return {"kind": "object", "class": _class(value), "state": attributes}

    def _samples(self, data: Any, where: str) -> Plain:
        if not len(data):
            return {"kind": "samples", "x": None}
        if draws(data, where):
            raise CheckpointError(f"{where}: samples with random augmentations; {CANNOT}")
        got = read(data, where)
        return {"kind": "samples", "x": got.x, "y": got.y, "tasks": got.tasks}


class Unpacking:
    """Turns plain values back, into objects that are there already where they are of the same class."""

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy
        self.seen: list[Any] = []
        self.parameters = dict(strategy.model.named_parameters())

    def __call__(self, value: Plain, here: Any) -> Any:
        """Return the value; ``here`` is what stands in its place now."""
        if not isinstance(value, dict):
            return value
        kind = value["kind"]
        if kind == "parameter":
            return self.parameters[value["value"]]
        if kind == "part":
            return self.strategy if value["value"] == "strategy" else getattr(self.strategy, value["value"])
        if kind == "seen":
            return self.seen[value["value"]]
        if kind == "tensor":
            return value["value"].to(self.strategy.device if not isinstance(here, Tensor) else here.device, copy=True)
        if kind == "array":
            return value["value"].numpy().copy()
        if kind == "device":
            return torch.device(value["value"])
        if kind == "size":
            return torch.Size(value["value"])
        number = len(self.seen)
        self.seen.append(None)
        made = self._object(kind, value, here, number)
        self.seen[number] = made
        return made

    def _object(self, kind: str, value: Plain, here: Any, number: int) -> Any:
        if kind in MAPPINGS:
            old = dict(here) if isinstance(here, dict) else {}
            made = MAPPINGS[kind]() if not isinstance(here, dict) else here  # which keeps a defaultdict's default
            self.seen[number] = made
            items = [(self(k, None), v) for k, v in value["items"]]
            made.clear()
            for key, saved in items:
                made[key] = self(saved, old.get(key))
            return made
        if kind in KINDS:
            known = list(here) if isinstance(here, (list, tuple)) else []
            known += [None] * (len(value["items"]) - len(known))
            return KINDS[kind](self(saved, one) for saved, one in zip(value["items"], known))
        if kind == "samples":
            return _dataset(value)
        if kind == "param":
            return ParamData(value["name"], init_tensor=value["value"].clone(), device=value["value"].device)
        if kind == "copy":
            made = here if isinstance(here, nn.Module) else copy.deepcopy(self.strategy.model)
            made.load_state_dict(value["value"])
            return made
        if kind == "generator":
            return torch.Generator().set_state(value["value"])
        made = here if here is not None and _class(here) == value["class"] else _new(value["class"])
        self.seen[number] = made
        for name, saved in value["state"].items():
            made.__dict__[name] = self(saved, made.__dict__.get(name))
        return made


CANNOT = "a checkpoint cannot hold that; play this strategy without checkpoints, or give it another plugin"


def _ref(kind: str, value: object) -> Plain:
    return {"kind": kind, "value": value}


def _class(value: object) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _new(name: str) -> Any:
    """Return an empty object of one of Avalanche's classes; no other is made from a file."""
    module, _, qualified = name.partition(":")
    if not module.startswith("avalanche.") or "." in qualified:
        raise CheckpointError(f"the state has an object of {name}, which this strategy lacks; build it as it was saved")
    found = getattr(importlib.import_module(module), qualified, None)
    if not isinstance(found, type):
        raise CheckpointError(f"the state has an object of {name}, which this version of Avalanche does not have")
    return object.__new__(found)


def _dataset(value: Plain) -> Any:
    if value["x"] is None:
        return concat_datasets([])
    x, y, tasks = (cast(Tensor, value[name]) for name in ("x", "y", "tasks"))
    rows = TensorDataset(x.clone(), y.clone())
    return _make_taskaware_classification_dataset(rows, targets=y.tolist(), task_labels=tasks.tolist())
