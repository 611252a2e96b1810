"""What a loop will need of the device's memory, found out before it starts."""

from __future__ import annotations

import ctypes
import resource
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

RESERVE = 1.25
"""A step's tensors times this: the rest is what kernels use inside, and what the allocator cannot give back."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a loop needs.

    Parameters
    ----------
    batch_size : int
        Samples of one adaptation.
    process : int
        Resident now: Python, torch, the models.
    weights, state : int
        Of that, or to come with the first step: the adapted model; the rest of the state (optimizer, memories, a
        guard's copies).
    copies : int
        States to come: the last good one, the one being written, a second and a third player in the background.
    queues : int
        Samples that wait: in the queue, for their label, for a batch.
    step : int
        The most that the tensors of one adaptation take at a time, gradients included, with a reserve of a quarter.
    limit : int, optional
        What there may be in all.
    int8 : int
        Weights in eight bits, and the float copies that they are compared with.
    """

    batch_size: int
    process: int
    weights: int
    state: int
    copies: int
    queues: int
    step: int
    limit: int | None = None
    int8: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.process + self.copies + self.int8 + self.queues + self.step

    @property
    def fits(self) -> bool:
        """Whether it is within the limit."""
        return self.limit is None or self.total <= self.limit

    def __str__(self) -> str:
        """Return a table in megabytes."""
        rows = [
            ("process now", self.process),
            ("  weights", self.weights),
            ("  other state", self.state),
            ("copies of the state", self.copies),
            *([("weights in eight bits", self.int8)] if self.int8 else []),
            ("samples that wait", self.queues),
            (f"one step, batch of {self.batch_size}", self.step),
            ("in all", self.total),
        ]
        if self.limit is not None:
            rows.append(("budget", self.limit))
        return "\n".join(f"{name:24}{size / 1e6:10.1f} MB" for name, size in rows)


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors made inside, those of the backward pass too: ``live`` now and at the ``peak``.

    Examples
    --------
    >>> import torch
    >>> with PeakBytes() as made:
    ...     x = torch.ones(250)
    ...     y = (x + 1) * 2
    >>> made.live, made.peak
    (2000, 3000)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say no: torch would load its compiler for that, 70 MB that a device may not have."""
        return False

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        given = {_address(leaf) for leaf in _pytree.tree_leaves((args, kwargs)) if _has_address(leaf)}
        made = func(*args, **(kwargs or {}))
        for leaf in _pytree.tree_leaves(made):
            if _has_address(leaf) and _address(leaf) not in given | self._known:
                self._note(leaf)
        return made

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        self._known.add(address)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size


def _has_address(leaf: object) -> TypeGuard[Tensor]:
    # What oneDNN has laid out for itself has none.
    return isinstance(leaf, Tensor) and not leaf.is_mkldnn


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def bytes_of(state: object) -> int:
    """Return the bytes of all tensors in a state.

    Examples
    --------
    >>> import torch
    >>> bytes_of({"weight": torch.ones(3), "more": [torch.ones(2), 5]})
    20
    """
    return sum(leaf.nbytes for leaf in _pytree.tree_leaves(state) if isinstance(leaf, Tensor))


def resident() -> int:
    """Return the bytes of memory that this process has now (Linux; elsewhere the most it has had)."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmRSS:")[1].split()[0])
    except (OSError, IndexError):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def major_faults() -> int:
    """Return how often this process has waited for a page from the disk since its start.

    Where that goes on after the first minute, memory is too small for code and data together, and steps take long.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def give_back() -> bool:
    """Let the allocator return what it keeps but does not use to the system; return whether it did (glibc).

    Between tensors of many sizes the heap comes to hold tens of megabytes of gaps, in bursts. This takes some
    milliseconds.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return False
    return bool(trim(0))
