"""What the law suites share: a broken law as an error, exact comparison of states, and a watch on global randomness."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from driftline.errors import ConfigError, unknown

C = TypeVar("C")
Law = Callable[[C], None]

PLAY_SEED = 20
"""Torch's global generators start here when a law begins to play, as :func:`driftline.run` would set them."""


class LawBroken(AssertionError):
    """A class does not keep a law.

    Attributes
    ----------
    law : str
        Name of the first law broken.
    broken : mapping of str to str
        What was found, for each law broken.

    Examples
    --------
    >>> error = LawBroken("MyLearner", {"predict changes nothing": "state['seen']: 10 became 20"})
    >>> error.law
    'predict changes nothing'
    >>> print(error)
    MyLearner breaks 1 law
      predict changes nothing: state['seen']: 10 became 20
    """

    def __init__(self, subject: str, broken: Mapping[str, str]) -> None:
        lines = [f"{subject} breaks {len(broken)} law{'s' if len(broken) > 1 else ''}"]
        super().__init__("\n  ".join([*lines, *(f"{law}: {found}" for law, found in broken.items())]))
        self.broken = dict(broken)
        self.law = next(iter(self.broken))


def enforce(subject: str, laws: Mapping[str, Law[C]], case: C, only: Collection[str] | None) -> None:
    """Try every law (or ``only`` some) on a case; raise for those that are broken, all together.

    Raises
    ------
    LawBroken
    ConfigError
        When ``only`` names a law that there is not.
    """
    for name in only or ():
        if name not in laws:
            raise unknown("law", name, laws)
    broken: dict[str, str] = {}
    cause: Exception | None = None
    for name, law in laws.items():
        if only is not None and name not in only:
            continue
        try:
            with apart():
                law(case)
        except Exception as error:
            own = isinstance(error, AssertionError)
            broken[name] = str(error) if own else f"raised {type(error).__name__}: {error}"
            cause = cause or (None if own else error)
    if broken:
        raise LawBroken(subject, broken) from cause


@contextmanager
def apart() -> Iterator[None]:
    """Give back torch's global generators afterwards as they were, and have convolutions repeat to the last bit."""
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.random.fork_rng(devices=cuda), exact:
        yield


def name_of(make: Callable[[], object], device: torch.device) -> str:
    """Return what is tried where, for messages."""
    with apart():
        return f"{type(make()).__name__} on {device.type}"


def demand(kept: bool, found: str) -> None:
    """Raise AssertionError with what was found, unless the law is kept (also under ``python -O``)."""
    if not kept:
        raise AssertionError(found)


def usable_devices(wanted: Sequence[str] | None) -> list[torch.device]:
    """Return the devices to try laws on: those wanted, by default the CPU, and CUDA where there is one.

    Raises
    ------
    ConfigError
        When CUDA is wanted and absent.
    """
    names = wanted if wanted is not None else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found = [torch.device(name) for name in names]
    if any(d.type == "cuda" for d in found) and not torch.cuda.is_available():
        raise ConfigError(f"devices={list(names)}: there is no CUDA device here")
    return found


def seed_torch(seed: int, device: torch.device) -> None:
    """Set torch's global generators, as :func:`driftline.run` does for models that draw (dropout)."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def copied(state: object) -> object:
    """Return a state with every tensor in it copied."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [copied(value) for value in state]
    return state


def difference(before: object, after: object, where: str = "state") -> str | None:
    """Return the first place where two states differ in any bit, and how; None when they are the same."""
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return _tensor_difference(before.detach(), after.detach(), where)
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        if list(before) != list(after):
            return f"{where} has entries {list(before)}, then {list(after)}"
        pairs = ((f"{where}[{key!r}]", before[key], after[key]) for key in before)
        return next((d for place, a, b in pairs if (d := difference(a, b, place))), None)
    if isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)):
        if len(before) != len(after):
            return f"{where} has length {len(before)}, then {len(after)}"
        pairs = ((f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(before, after)))
        return next((d for place, a, b in pairs if (d := difference(a, b, place))), None)
    same = type(before) is type(after) and (before == after or (before != before and after != after))
    return None if same else f"{where} is {before!r}, then {after!r}"


def _tensor_difference(before: Tensor, after: Tensor, where: str) -> str | None:
    for what in ("shape", "dtype", "device"):
        a, b = getattr(before, what), getattr(after, what)
        if a != b:
            return f"{where} has {what} {a}, then {b}"
    bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (before, after)]
    if torch.equal(*bits):
        return None
    unequal = (bits[0] != bits[1]).view(-1, before.element_size()).any(1)
    place = int(unequal.nonzero()[0])
    values = f"{before.reshape(-1)[place].item()!r}, then {after.reshape(-1)[place].item()!r}"
    return f"{where}: {int(unequal.sum())} of {before.numel()} values differ; the first, number {place}, is {values}"


def demand_same(before: object, after: object, when: str, where: str = "state") -> None:
    """Raise AssertionError when two states differ in any bit."""
    found = difference(before, after, where)
    demand(found is None, f"{when}: {found}")


def demand_close(expected: Tensor, found: Tensor, when: str, tolerance: float = 1e-5) -> None:
    """Raise AssertionError when two tensors differ by more than rounding."""
    demand(expected.shape == found.shape, f"{when}: shape {tuple(expected.shape)}, then {tuple(found.shape)}")
    if not torch.allclose(expected, found, rtol=tolerance, atol=tolerance, equal_nan=True):
        gap = float((expected - found).abs().max())
        raise AssertionError(f"{when}: values differ by up to {gap:.3g} (allowed: {tolerance:g})")


@dataclass(frozen=True)
class Randomness:
    """The states of the global random generators."""

    torch_state: Tensor
    cuda_state: Tensor | None
    numpy_state: tuple[bytes, object]
    python_state: object

    @classmethod
    def now(cls) -> Randomness:
        """Return them as they are."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        _, words, *rest = np.random.get_state(legacy=True)
        return cls(torch.get_rng_state(), cuda, (np.asarray(words).tobytes(), rest), random.getstate())

    def changed(self, torch_may: bool = False) -> list[str]:
        """Return which of the global generators have been drawn from since."""
        now = Randomness.now()
        cuda = self.cuda_state is not None and now.cuda_state is not None
        found = {
            "torch": not torch_may and not torch.equal(self.torch_state, now.torch_state),
            "torch.cuda": not torch_may and cuda and difference(self.cuda_state, now.cuda_state) is not None,
            "numpy": self.numpy_state != now.numpy_state,
            "python's random": self.python_state != now.python_state,
        }
        return [name for name, moved in found.items() if moved]


@contextmanager
def no_global_draws(when: str, torch_may: bool = False) -> Iterator[None]:
    """Raise AssertionError when a global random generator was drawn from or seeded inside."""
    before = Randomness.now()
    yield
    moved = before.changed(torch_may)
    demand(not moved, f"{when} drew from or seeded global randomness: {', '.join(moved)}; use a generator of your own")
