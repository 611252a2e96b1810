"""River's objects as bytes, and back, with no code called on the way but River's, numpy's and that of plain values.

River's models have one way onto disk, pickle, and a pickle may call whatever it names. Here it may name what is
River's, numpy's arrays and plain containers, and nothing else. River's own code has not been audited for what such a
pickle could make it do: load the checkpoints of River's models that you or those you trust have written.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Collection
from importlib.metadata import version as version_of
from types import FunctionType, MappingProxyType, MethodType

from driftline.errors import CheckpointError, ConfigError

VERSION = version_of("river")

SAFE = MappingProxyType(
    {
        "builtins": frozenset(
            (
                "bool",
                "int",
                "float",
                "complex",
                "str",
                "bytearray",
                "tuple",
                "list",
                "dict",
                "set",
                "frozenset",
                "range",
            )
        ),
        "collections": frozenset(("Counter", "OrderedDict", "defaultdict", "deque")),
        "copy": frozenset(("deepcopy",)),
        "datetime": frozenset(("date", "datetime", "time", "timedelta", "timezone")),
        # It can only hold, and call, what may be named itself.
        "functools": frozenset(("partial",)),
        "numpy": frozenset(("dtype", "ndarray")),
        "numpy._core.multiarray": frozenset(("_reconstruct", "scalar")),
        "numpy.core.multiarray": frozenset(("_reconstruct", "scalar")),
        "numpy.random._mt19937": frozenset(("MT19937",)),
        "numpy.random._pcg64": frozenset(("PCG64",)),
        "numpy.random._pickle": frozenset(("__bit_generator_ctor", "__generator_ctor", "__randomstate_ctor")),
        "numpy.random.bit_generator": frozenset(("SeedSequence", "__pyx_unpickle_SeedSequence")),
        "random": frozenset(("Random",)),
        "statistics": frozenset(("NormalDist",)),
    }
)
"""What a pickle may name beside what is River's."""

OUTSIDE = ("river.datasets", "river.stream", "river.checks", "river.bandit.datasets")
"""Parts of River that read files or the network."""


def save(part: object, allow: Collection[type] = ()) -> bytes:
    """Return a River object as bytes that :func:`load` takes.

    Raises
    ------
    ConfigError
        When it holds an object of a class that is neither River's nor in ``allow``.
    """
    try:
        content = pickle.dumps(part, protocol=4)
    except Exception as error:
        raise ConfigError(f"{type(part).__name__} cannot be pickled ({error}), so it cannot be checkpointed") from error
    try:
        _Unpickler(content, allow).load()
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{type(part).__name__} cannot be checkpointed: it {error}; if its code is yours to trust, name the class "
            "in allow=[...]"
        ) from None
    return content


def load(content: bytes, version: str, allow: Collection[type] = ()) -> object:
    """Return the River object that :func:`save` has made bytes of.

    Raises
    ------
    CheckpointError
        When it names anything else than what is River's, the classes in ``allow`` and plain values, is damaged, or was
        saved with another version of River, whose classes may differ.
    """
    if _minor(version) != _minor(VERSION):
        raise CheckpointError(
            f"saved with River {version}, and this is River {VERSION}, which may read it wrongly; install "
            f"river=={version} to go on with it"
        )
    try:
        return _Unpickler(content, allow).load()
    except Exception as error:
        raise CheckpointError(f"the saved River object {error}") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, allow: Collection[type]) -> None:
        super().__init__(io.BytesIO(content))
        self._allow = {(kind.__module__, kind.__qualname__): kind for kind in allow}

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("builtins", "getattr"):
            return _method
        if (module, name) in self._allow:
            return self._allow[module, name]
        if name in SAFE.get(module, ()) or (module.startswith("river._river_rust") and "." not in name):
            return super().find_class(module, name)
        if module.startswith("river.") and not module.startswith(OUTSIDE):
            found = super().find_class(module, name)
            # A dotted name leads through whatever a module has imported; only what is River's itself will do.
            own = str(getattr(found, "__module__", ""))
            if isinstance(found, (type, FunctionType)) and own.startswith("river.") and not own.startswith(OUTSIDE):
                return found
        raise pickle.UnpicklingError(f"holds {module}.{name}, which is not River's")


def _method(part: object, name: str) -> object:
    """Return a method of one of River's objects, which is what pickles use ``getattr`` for."""
    found = getattr(part, name, None) if type(part).__module__.startswith("river.") and name[:2] != "__" else None
    if isinstance(found, MethodType) and found.__self__ is part:
        return found
    raise pickle.UnpicklingError(f"asks for {name} of a {type(part).__name__}, which is no method of River's")


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
