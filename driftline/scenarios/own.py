"""Scenarios from a user's own file or module."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from driftline.errors import ConfigError, unknown
from driftline.stream.scenario import Scenario


def load_own(address: str) -> Scenario[...]:
    """Return the scenario at ``"path/to/file.py:function"`` or ``"module:function"``.

    A file is run each time it is asked for, so edits count; a stream made from it pickles within this process.

    Raises
    ------
    ConfigError
        When the file or module is not there or does not import, or has no such scenario.
    """
    place, _, name = address.rpartition(":")
    module = from_file(Path(place).expanduser()) if place.endswith(".py") else _from_module(place)
    found = {key: value for key, value in vars(module).items() if isinstance(value, Scenario)}
    if name in found:
        return found[name]
    if hasattr(module, name):
        raise ConfigError(f"{address}: {name} is not a scenario; put @driftline.scenario above its def")
    raise unknown(f"scenario in {place}:", name, found)


def from_file(path: Path) -> ModuleType:
    """Return the module in a file, run anew.

    Raises
    ------
    ConfigError
        When the file is not there or does not import.
    """
    if not path.is_file():
        raise ConfigError(f"no file {path} (looked for it from {Path.cwd()})")
    # Under a name of its own, so that a file called like a module of Python does not stand in its way.
    name = f"driftline_own_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    # Pickling looks a scenario's functions up here.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{path} does not import: {type(error).__name__}: {error}") from error
    return module


def _from_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ConfigError(
            f"module {name!r} does not import: {type(error).__name__}: {error}; give a file as path/to/file.py:function"
            ", or a live source that `driftline list sources` shows"
        ) from error
