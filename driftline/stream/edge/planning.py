"""A trial of one adaptation, before anything is served: what memory it takes, what time, and whether that fits."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from driftline.errors import ConfigError
from driftline.learners import Learner
from driftline.stream.edge.int8 import Int8
from driftline.stream.edge.memory import RESERVE, MemoryPlan, PeakBytes, bytes_of, resident
from driftline.stream.edge.pace import Pace
from driftline.stream.edge.serving import Player, is_allocation, learn, predict

SAVING = 4
"""States in memory while one is saved: the copy that is the last good one too, and three buffers of its bytes."""


def plan(
    player: Player,
    x: Tensor,
    *,
    batch_size: int,
    window: int = 1,
    waiting: int = 0,
    background: bool = False,
    limit: int | None = None,
    pace: Pace | None = None,
    int8: Int8 | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> MemoryPlan:
    """Try one adaptation on a copy of the player; halve the batch until it fits.

    Parameters
    ----------
    player : Adapter or Learner
        Not changed.
    x : Tensor, shape (1, *input)
        A sample such as will come.
    batch_size, window : int
        Samples of one adaptation, and of one prediction.
    waiting : int
        Samples that may wait in queues.
    background : bool
        Whether the player will have two copies.
    limit : int, optional
        Bytes that there may be in all.
    pace : Pace, optional
        Told what adapting and predicting take.
    int8 : Int8, optional
        How the player will predict.

    Raises
    ------
    ConfigError
        When not even a batch of one fits; the message has the table.
    """
    size = batch_size
    while True:
        found = _try(player, x, size, window, waiting, background, limit, pace, int8, clock)
        if isinstance(found, MemoryPlan) and found.fits:
            return found
        if size == 1:
            raise ConfigError(f"this does not fit the memory there is:\n{found}\nraise memory_budget, or adapt less")
        size //= 2


def _try(
    player: Player,
    x: Tensor,
    size: int,
    window: int,
    waiting: int,
    background: bool,
    limit: int | None,
    pace: Pace | None,
    int8: Int8 | None,
    clock: Callable[[], float],
) -> MemoryPlan | str:
    try:
        # A guard that watches what is predicted in eight bits has the same ones.
        twin, bits = copy.deepcopy((player, int8))
        batch = x.expand(size, *x.shape[1:]).contiguous()
        y = torch.zeros(size, dtype=torch.long) if isinstance(player, Learner) else None
        # A guard need not tell that it takes equal samples for a collapse.
        with warnings.catch_warnings(action="ignore"):
            with PeakBytes() as made:
                learn(twin, batch, y)
            with PeakBytes() as predicted:
                predict(twin, x.expand(window, *x.shape[1:]), bits)
            if pace is not None:
                started = clock()
                learn(twin, batch, y)
                between = clock()
                predict(twin, x.expand(window, *x.shape[1:]), bits)
                pace.adapted(size, between - started)
                pace.predicted(clock() - between)
    except (RuntimeError, MemoryError) as error:
        if not is_allocation(error):
            raise
        return f"a batch of {size} cannot even be tried: {error}"
    state = bytes_of(twin.state_dict())
    network = twin.network()
    weights = 0 if network is None else bytes_of([*network.parameters(), *network.buffers()])
    return MemoryPlan(
        batch_size=size,
        process=resident(),
        weights=weights,
        state=max(0, state - weights),
        copies=state * (SAVING + 2 * background + isinstance(player, Learner)),
        int8=0 if bits is None else bits.nbytes * (1 + 2 * background),
        queues=x.nbytes * (waiting + size + window),
        step=int(RESERVE * max(made.peak, predicted.peak)),
        limit=limit,
    )
