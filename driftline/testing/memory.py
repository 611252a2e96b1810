"""Whether something that goes on and on keeps more and more: counted in bytes and objects, never in seconds."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn.parameter import is_lazy

WARM_UP = 0.6
"""Share of the steps after which memory must not grow any more."""

ALLOWED = {
    "bytes of tensors in the state": (1.0, 0.0),
    "bytes of tensors alive": (4.0, 0.0),
    "nodes of autograd graphs alive": (0.05, 0.0),
    "Python objects": (0.25, 200.0),
    "bytes of Python objects": (16.0, 32_000.0),
}
"""Growth per step, and in all, that is put down to noise: one tensor, object or list of labels per step is more.

The interpreter's own noise levels off: bytes seem to grow a little while old objects are replaced by ones that are
counted. Lists of small numbers show in bytes only, other objects in their number first.
"""


@dataclass(frozen=True)
class Usage:
    """What is held at one moment."""

    amounts: Mapping[str, float]

    @classmethod
    def now(cls, state: Callable[[], object]) -> Usage:
        """Count."""
        held = tensor_bytes(state())
        # Collecting also empties the interpreter's own lists of spare objects.
        gc.collect()
        python = (sys.getallocatedblocks(), tracemalloc.get_traced_memory()[0])
        tensors = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
        amounts = (held, storage_bytes(tensors), graph_nodes(tensors), *python)
        return cls(dict(zip(ALLOWED, amounts)))


def growth(step: Callable[[int], None], state: Callable[[], object], steps: int) -> str | None:
    """Return what grew over the last steps, and how fast; None when nothing did.

    Parameters
    ----------
    step : callable
        ``step(i)`` does the i-th step.
    state : callable
        Returns the state, of which the tensors are counted.
    steps : int
        How many to do; the first :data:`WARM_UP` of them may fill memories. Where something grew, as many as follow
        these are done again.
    """
    warm = int(WARM_UP * steps)
    was_tracing, had_frozen = tracemalloc.is_tracing(), gc.get_freeze_count() > 0
    before = None
    if not had_frozen:
        # What exists already was not kept by the steps to come, and searching it each time takes long.
        gc.freeze()
    try:
        for i in range(steps):
            if i == int(0.8 * warm) and not was_tracing:
                # A little before the warm-up ends, so that what is only replaced at each step is known by then.
                tracemalloc.start()
            if i == warm:
                before = Usage.now(state)
            step(i)
        after = Usage.now(state)
        assert before is not None
        if _grown(before, after, steps - warm) is not None:
            # Other threads, and what is made once only, count too: what grows because of the steps grows again.
            before = after
            for i in range(steps, 2 * steps - warm):
                step(i)
            after = Usage.now(state)
    finally:
        if not was_tracing:
            tracemalloc.stop()
        if not had_frozen:
            gc.unfreeze()
    what = _grown(before, after, steps - warm)
    if what is None:
        return None
    first, last = before.amounts[what], after.amounts[what]
    return f"{what} grew from {first:.0f} to {last:.0f} in {steps - warm} steps, after {warm} or more"


def _grown(before: Usage, after: Usage, steps: int) -> str | None:
    """Return the first amount that grew more than is put down to noise."""
    for what, (each, once) in ALLOWED.items():
        if after.amounts[what] - before.amounts[what] > each * steps + once:
            return what
    return None


def tensor_bytes(state: object) -> int:
    """Return the bytes of all tensors in a state."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(tensor_bytes(value) for value in state.values())
    if isinstance(state, (list, tuple)):
        return sum(tensor_bytes(value) for value in state)
    return 0


def storage_bytes(tensors: list[Tensor]) -> int:
    """Return the bytes of memory behind tensors, each counted once."""
    real = (t for t in tensors if t.layout == torch.strided and t.device.type != "meta" and not is_lazy(t))
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in real)}
    return sum(storages.values())


def graph_nodes(tensors: list[Tensor]) -> int:
    """Return how many autograd nodes are kept alive by tensors: a loss summed up over steps keeps every step's."""
    waiting = [t.grad_fn for t in tensors if t.grad_fn is not None]
    found: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions if following is not None]
    return len(found)
