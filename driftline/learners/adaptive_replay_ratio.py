"""A replay ratio that rises once the network has stopped losing plasticity.

Ma, Li, Tan, Zhang, Zhang & Tao, "Revisiting Plasticity in Visual Reinforcement Learning: Data, Modules and Training
Stages" (ICLR 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self, cast

import torch
from torch import Tensor, nn

from driftline.errors import CheckpointError, ConfigError, SignalError, unknown
from driftline.learners.replay_ratio import State, updates_of
from driftline.plasticity import active_units, dead_units, dormant_units, effective_rank, singular_values
from driftline.plasticity.units import Kind
from driftline.plasticity.watch import hidden_layers, watching

Signal = Callable[[Sequence[Tensor], Sequence[Kind]], Tensor]
"""Maps activations (samples, units, *space) and kind of each layer to a number (), more of which is more plastic."""

SIGNALS: Mapping[str, Signal] = {
    "active_units": active_units,
    "awake_units": lambda layers, kinds: 1 - dormant_units(layers, 0.025),
    "live_units": lambda layers, kinds: 1 - dead_units(layers),
    "effective_rank": lambda layers, kinds: effective_rank(singular_values(layers[-1].flatten(1))),
}
"""Signals of plasticity by name: shares of units that are active, not dormant, not dead; rank of the last layer."""


class AdaptiveReplayRatio:
    """Few updates while plasticity moves, more once it has settled: the replay ratio goes up a level at a check.

    A signal of plasticity (by default the fraction of active units) is averaged over the updates of the last
    ``window`` samples before each check. Where the average has moved by at most ``gap`` since the check before, the
    ratio goes up one level. The defaults are the published rule: one switch, for good, from an update every second
    step to two updates at each.

    Parameters
    ----------
    levels : sequence of float
        Updates per step, rising, each above 0; at least two. Fractions are spread as in
        :class:`~driftline.learners.FixedReplayRatio`.
    gap : float
        Largest change between two checks at which the signal counts as settled, at least 0.
    every : int
        Samples from one check to the next. The checks are at multiples of it, as soon as there were updates.
    window : int
        Samples before a check whose updates are averaged, 1 to ``every``; hidden units are watched only there. Where
        no update fell into it, the last one watched counts.
    signal : str or callable
        A name in :data:`SIGNALS`, or ``signal(layers, kinds)``, which maps the activations of each hidden layer and
        their kinds (what counts as active there) to a scalar; more must be more plastic. It may leave them aside and
        look at the model's weights.
    back_off : float, optional
        Go down one level when the signal is more than this below what it was when the ratio last changed; at least 0.
        Default: never, as published.
    layers : sequence of str, optional
        Names of the modules whose outputs are hidden units. Default: all activation modules.

    Attributes
    ----------
    level : int
        Which of the levels it is at.
    average : float, optional
        The signal at the last check.
    changes : list of (int, float)
        Where the ratio changed, and to what.

    Raises
    ------
    ConfigError
        For a setting out of range. At the first step: for a model in which no hidden units are found, or with
        replicas, which cannot make different numbers of updates
        (:func:`~driftline.learners.in_lockstep` steps such learners side by side).
    SignalError
        At a check, when the signal is NaN or infinite; nothing has been changed then.

    Notes
    -----
    Positions count samples that were learned from. The published rule counts episodes: it averages over the last one
    before each check. With one sample per step and episodes of fixed length, ``window`` is that length and ``every``
    a multiple of it; the defaults are those of the DeepMind Control Suite, 50 episodes of 500 steps. The first value to
    compare with is the first update's. Nothing is read back from the device but at checks.

    The published rule measures the critic's hidden layers after ReLU, and leaves its first part (a Tanh) out: name
    them by ``layers`` where a model has activations that are not to count.

    Examples
    --------
    >>> from driftline import models
    >>> from driftline.learners import AdaptiveReplayRatio, GradientLearner, SlidingReplay
    >>> model = models.mlp(4, 3, (16,))
    >>> ratio = AdaptiveReplayRatio(every=100, window=20, gap=0.05)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> learner = GradientLearner(model, sgd, replay=SlidingReplay(100), replay_ratio=ratio)
    >>> rng = torch.Generator().manual_seed(0)
    >>> for x in torch.rand(300, 1, 4, generator=rng):
    ...     learner.learn(x, x.argmax(1).clamp(max=2))
    >>> ratio.changes
    [(200, 2)]
    """

    def __init__(
        self,
        levels: Sequence[float] = (0.5, 2),
        gap: float = 1e-3,
        every: int = 25_000,
        window: int = 500,
        signal: str | Signal = "active_units",
        back_off: float | None = None,
        layers: Sequence[str] | None = None,
    ) -> None:
        if isinstance(levels, str) or not isinstance(levels, Sequence) or len(levels) < 2:
            raise ConfigError(f"levels={levels!r}: give at least two numbers; for one, replay_ratio={levels!r} itself")
        rising = all(a < b for a, b in zip(levels, levels[1:]))
        if not levels[0] > 0 or not levels[-1] < math.inf or not rising:
            raise ConfigError(f"levels={levels!r}: must rise, each a number above 0; without updates nothing is seen")
        if not 0 <= gap < math.inf:
            raise ConfigError(f"gap={gap}: must be a number of at least 0")
        if every < 1:
            raise ConfigError(f"every={every}: there are no checks; give at least 1 sample from one to the next")
        if not 1 <= window <= every:
            raise ConfigError(f"window={window}: must be from 1 to every={every} samples")
        if back_off is not None and not 0 <= back_off < math.inf:
            raise ConfigError(f"back_off={back_off}: must be a number of at least 0, or None")
        if isinstance(signal, str) and signal not in SIGNALS:
            raise unknown("signal", signal, SIGNALS)
        if isinstance(layers, str):
            raise ConfigError(f"layers={layers!r}: give a list of names")
        self.levels, self.gap, self.every, self.window = tuple(levels), gap, every, window
        self.signal, self.back_off = signal, back_off
        self.layers = None if layers is None else tuple(layers)
        self._measure = SIGNALS[signal] if isinstance(signal, str) else signal
        self.level = 0
        self.average: float | None = None
        self.changes: list[tuple[int, float]] = []
        self._settled: float | None = None
        self._steps, self._position = 0, 0
        # Of the updates in the window: sum and number of values, and the last one there was.
        self._sum: Tensor | None = None
        self._count = 0
        self._first: Tensor | None = None
        self._latest: Tensor | None = None

    def ratio(self, position: int, model: nn.Module) -> int:
        """Return the number of updates for the batch that begins at this sample, after a check where one is due."""
        if self._first is None:
            if getattr(model, "replicas", None) is not None:
                raise ConfigError(
                    "AdaptiveReplayRatio: the model has replicas, and all of them make the same number of updates; "
                    "give each learner its own, and put the learners together with in_lockstep"
                )
            hidden_layers(model, self.layers)
        elif position // self.every > self._position // self.every:
            self._check(position)
        self._position = position
        updates = updates_of(self._steps, self.levels[self.level])
        self._steps += 1
        return updates

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Take in the signal of the forward pass made inside, where it is wanted."""
        inside = self._position % self.every >= self.every - self.window
        if not inside and self._first is not None:
            yield
            return
        layers: list[Tensor] = []
        kinds: list[Kind] = []

        def see(hidden: Tensor, kind: Kind) -> None:
            # A copy, because later layers may write over it.
            layers.append(hidden.detach().clone())
            kinds.append(kind)

        with watching(model, see, self.layers):
            yield
        with torch.no_grad():
            value = self._measure(layers, kinds).double()
        self._latest = value
        self._first = value if self._first is None else self._first
        if inside:
            self._sum = value if self._sum is None else self._sum + value
            self._count += 1

    def _check(self, position: int) -> None:
        """Compare the window's average with that of the check before, and change the level."""
        average = float(cast(Tensor, self._latest if self._sum is None else self._sum / self._count))
        before = float(cast(Tensor, self._first)) if self.average is None else self.average
        if not math.isfinite(average - before):
            name = self.signal if isinstance(self.signal, str) else getattr(self.signal, "__name__", "signal")
            raise SignalError(
                f"AdaptiveReplayRatio: the signal {name} is {before:g} and then {average:g} over the {self.window} "
                f"samples before sample {position}, so it says nothing; look at what made it so (weights that "
                "diverged?), or give another signal"
            )
        level = self.level
        if self.back_off is not None and level > 0 and average < cast(float, self._settled) - self.back_off:
            level -= 1
        elif abs(average - before) <= self.gap:
            level = min(level + 1, len(self.levels) - 1)
        if level != self.level:
            self.level, self._settled = level, average
            self.changes.append((position, self.levels[level]))
        self.average, self._sum, self._count = average, None, 0

    def to(self, device: torch.device | str) -> Self:
        """Move what is being averaged to ``device``."""
        self._sum, self._first, self._latest = (
            None if value is None else value.to(device) for value in (self._sum, self._first, self._latest)
        )
        return self

    def state_dict(self) -> State:
        """Return the level, what was found at checks, and what is being averaged."""
        return {
            "levels": list(self.levels),
            "level": self.level,
            "average": self.average,
            "settled": self._settled,
            "changes": [list(change) for change in self.changes],
            "steps": self._steps,
            "position": self._position,
            "sum": self._sum,
            "count": self._count,
            "first": self._first,
            "latest": self._latest,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When the levels were others; nothing has been changed then.
        """
        if state["levels"] != list(self.levels):
            raise CheckpointError(f"saved with the levels {state['levels']}, but these are {list(self.levels)}")
        self.level, self._steps = cast(int, state["level"]), cast(int, state["steps"])
        self.average, self._settled = cast("float | None", state["average"]), cast("float | None", state["settled"])
        changes = cast("Sequence[tuple[int, float]]", state["changes"])
        self.changes = [(position, ratio) for position, ratio in changes]
        self._position, self._count = cast(int, state["position"]), cast(int, state["count"])
        # Tensors are replaced, never written to, so they need not be copied.
        self._sum, self._first, self._latest = (
            cast("Tensor | None", state[name]) for name in ("sum", "first", "latest")
        )
