"""The process's global random states, for foreign code that draws from them: lent for a while, then put back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import Tensor

State = dict[str, object]


def seeds(seed: int) -> State:
    """Return the global states that seeding torch, numpy and random with one number gives; nothing is changed.

    Examples
    --------
    >>> with lent(seeds(0)):
    ...     drawn = torch.rand(1)
    >>> torch.equal(drawn, torch.rand(1, generator=torch.Generator().manual_seed(0)))
    True
    """
    with _put_back():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        return now()


def now() -> State:
    """Return the global states as tensors and plain values."""
    _, words, gauss = random.getstate()
    numpy = cast("dict[str, object]", np.random.get_state(legacy=False))
    mersenne = cast("dict[str, object]", numpy["state"])
    return {
        "torch": torch.get_rng_state(),
        "cuda": [state.cpu() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
        "python": torch.tensor(words),
        "python_gauss": gauss,
        "numpy": torch.from_numpy(np.asarray(mersenne["key"]).astype(np.int64)),
        "numpy_place": int(cast(int, mersenne["pos"])),
        "numpy_gauss": [int(cast(int, numpy["has_gauss"])), float(cast(float, numpy["gauss"]))],
    }


def set_now(state: Mapping[str, object]) -> None:
    """Put global states in place that :func:`now` gave."""
    torch.set_rng_state(cast(Tensor, state["torch"]))
    cuda = cast("list[Tensor]", state["cuda"])
    # Saved where there were other devices: theirs stay as they are.
    if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
    words = tuple(cast(Tensor, state["python"]).tolist())
    random.setstate((3, words, cast("float | None", state["python_gauss"])))
    has_gauss, gauss = cast("list[float]", state["numpy_gauss"])
    key = cast(Tensor, state["numpy"]).numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, cast(int, state["numpy_place"]), int(has_gauss), gauss))


@contextmanager
def lent(state: State) -> Iterator[None]:
    """Let the global states be these for a while; ``state`` is brought to where they have got to."""
    with _put_back():
        set_now(state)
        try:
            yield
        finally:
            state.update(now())


@contextmanager
def _put_back() -> Iterator[None]:
    before = now()
    try:
        yield
    finally:
        set_now(before)


def same(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Whether two states are equal: whether nothing was drawn between them."""
    tensors = ("torch", "python", "numpy")
    return all(torch.equal(cast(Tensor, one[name]), cast(Tensor, other[name])) for name in tensors) and all(
        one[name] == other[name] for name in ("python_gauss", "numpy_place", "numpy_gauss")
    )
