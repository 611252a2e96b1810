"""A guard against slow harm: it bounds in how many predictions an adapter's training may differ from its source."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self, cast

import torch
from torch import Tensor, nn

from driftline.adapters.base import Adapter
from driftline.adapters.collapse_guard import KEPT_EVENTS
from driftline.adapters.settings import at_least
from driftline.adapters.wrapper import Wrapper
from driftline.errors import ConfigError, InputError


class DisagreementGuard(Wrapper):
    """Return an adapter to its source model when its training has led it too far away, in the classes it predicts.

    From time to time a batch is predicted twice: by the adapter as it is, and with the parameters that it began with,
    everything else the same (normalisation by the batch or by statistics that have followed the stream, memories,
    prototypes). Among the last ``window`` samples so compared at most ``level * window`` may get another class. With
    one more the adapter returns to its source, from which this batch is predicted, too, and predicts without adapting
    until no more than half as many are left in the window.

    Where two predictions are the same, neither is better. So over any ``window`` samples compared, whatever they show
    and however often the adapter has returned, it makes at most ``level * window`` more errors than it would without
    any training. No label is needed.

    Parameters
    ----------
    inner : Adapter
        Who is guarded.
    level : float
        Share of the window in whose class the two may differ, above 0 and below 1.
    window : int
        Samples compared, at least 1.
    every : int
        Compare one batch of so many, at least 1.

    Attributes
    ----------
    disagreement : float
        Samples of the window that differ, as a share of the whole window, 0 to ``level``.
    events : list of dict
        The last returns: ``batch`` (number since the beginning, from 0), ``signal`` ("disagreement"), ``value``,
        ``level``, and ``to``, the number of batches the state returned to had met: 0.
    rollbacks : int
        All of them.

    Raises
    ------
    ConfigError
        For a setting out of range, or an adapter that trains no parameters: it needs no such guard.

    Notes
    -----
    No published method. RDumb (Press et al., NeurIPS 2023) returns to the source after a number of batches that must
    be known beforehand; here it is the harm that may be done which is chosen. Small steps that undo a network little by
    little pass below the levels of a :class:`CollapseGuard`, which watches for what goes wrong at once; put this guard
    around that one, so that its copies begin anew, too. The two forward passes come with every ``every``-th batch.

    The bound is towards the adapter without its training, not towards the source as it is: where normalising by the
    batch harms, as with batches of few classes, this guard does not see it. Nor does an adapter gain more than
    ``level`` by its training. While it rests it predicts from its source; statistics do not follow then.
    The default was chosen on ResNet-20 and CIFAR-10 under six corruptions that come and go, by batches of 16: Tent on
    scales and shifts, which helps throughout, differed in 2, 7, 9, 11, 15, 14, 16 % of 2 000 samples after one another;
    Tent on low-rank pairs in 2, 14, 15, 18, 22, 27 %, and was no better than the unadapted network by then.
    :class:`driftline.metrics.Rollbacks` puts each return into a run's record.
    Single samples: as the inner adapter; inside of a ``SlidingWindow`` the whole window is compared.

    Examples
    --------
    >>> from driftline.adapters import DisagreementGuard, Tent
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    >>> adapter = DisagreementGuard(Tent(model, lr=1.0), level=0.1, window=100, every=1)
    >>> for x in torch.randn(20, 50, 4, generator=torch.Generator().manual_seed(0)):
    ...     scores = adapter.adapt(x)
    >>> adapter.rollbacks > 0, adapter.disagreement <= 0.1
    (True, True)
    """

    def __init__(self, inner: Adapter, level: float = 0.15, window: int = 1000, every: int = 4) -> None:
        if not 0 < level < 1:
            raise ConfigError(f"level={level}: must be above 0 and below 1")
        at_least("window", window, 1)
        at_least("every", every, 1)
        super().__init__(inner)
        self.level, self.window, self.every = level, window, every
        if not self._parameters():
            raise ConfigError(
                f"{type(inner).__name__} trains no parameters (adapted_parameters() is empty): nothing to guard"
            )
        now = copy.deepcopy(inner.state_dict())
        inner.reset()
        self._shipped = [parameter.detach().clone() for parameter in self._parameters()]
        inner.load_state_dict(now)
        self._begin()

    def _begin(self) -> None:
        self.batches = self.rollbacks = 0
        self.events: list[dict[str, object]] = []
        self._compared: deque[tuple[int, int]] = deque()
        self._samples = self._different = 0
        self._resting, self._adapted = False, True

    def _bare(self) -> Adapter:
        """Return the adapter inside of all wrappers: what they predict with is no matter here."""
        inner = self.inner
        while isinstance(inner, Wrapper):
            inner = inner.inner
        return inner

    def _parameters(self) -> list[nn.Parameter]:
        return self._bare().adapted_parameters()

    @property
    def disagreement(self) -> float:
        """Samples of the window that differ, as a share of the whole window."""
        return self._different / self.window

    @property
    def adapted(self) -> bool:
        """Whether the last batch was adapted to, if only to be undone; False while the adapter rests."""
        return self._adapted and super().adapted

    def adapt(self, x: Tensor) -> Tensor:
        """Let the inner adapter adapt to samples (B, *input), compare if it is time; return its scores."""
        self.check(x)
        self._adapted = not self._resting
        scores = (self.inner.predict if self._resting else self.inner.adapt)(x)
        if self.batches % self.every == 0:
            different = 0 if self._resting else self._differing(x)
            self._take_in(len(x), different)
            if self._different > self._room:
                self._return()
                scores = self.inner.predict(x)
            elif self._different <= self._room / 2:
                self._resting = False
        self.batches += 1
        return scores

    @property
    def _room(self) -> float:
        return self.level * self.window + 1e-9

    def _differing(self, x: Tensor) -> int:
        """Return in how many samples training has changed the class."""
        adapter = self._bare()
        try:
            ours = adapter.predict(x)
        except InputError:
            # The adapter itself may have come to what cannot predict; that is for others to see.
            return 0
        with self._untrained():
            theirs = adapter.predict(x)
        return int((ours.argmax(1) != theirs.argmax(1)).sum())

    def _take_in(self, samples: int, different: int) -> None:
        """Put a batch into the window, which holds no fewer samples than it should, if there have been so many."""
        self._compared.append((samples, different))
        self._samples += samples
        self._different += different
        while self._samples - self._compared[0][0] >= self.window:
            gone, differed = self._compared.popleft()
            self._samples -= gone
            self._different -= differed

    @contextmanager
    def _untrained(self) -> Iterator[None]:
        """Put the parameters of the beginning in the place of those of now, and back."""
        parameters = self._parameters()
        now = [parameter.data for parameter in parameters]
        try:
            for parameter, value in zip(parameters, self._shipped, strict=True):
                parameter.data = value
            yield
        finally:
            for parameter, value in zip(parameters, now, strict=True):
                parameter.data = value

    def _return(self) -> None:
        event = {"batch": self.batches, "signal": "disagreement", "value": self.disagreement, "level": self.level}
        self.events = [*self.events, {**event, "to": 0}][-KEPT_EVENTS:]
        self.rollbacks += 1
        self.inner.reset()
        # This batch is predicted by the source.
        samples, different = self._compared.pop()
        self._compared.append((samples, 0))
        self._different -= different
        self._resting = True

    def reset(self) -> None:
        """Return to the source model, and forget what was compared."""
        super().reset()
        self._begin()

    def own_state(self) -> dict[str, object]:
        """Return the counts and events."""
        return {
            "batches": self.batches,
            "rollbacks": self.rollbacks,
            "events": copy.deepcopy(self.events),
            "resting": self._resting,
            "adapted": self._adapted,
            "compared": [list(pair) for pair in self._compared],
        }

    def load_own_state(self, state: Mapping[str, object]) -> None:
        """Continue from an :meth:`own_state`."""
        self.batches, self.rollbacks = cast(int, state["batches"]), cast(int, state["rollbacks"])
        self.events = copy.deepcopy(cast("list[dict[str, object]]", state["events"]))
        self._resting, self._adapted = bool(state["resting"]), bool(state["adapted"])
        self._compared = deque((int(n), int(k)) for n, k in cast("list[list[int]]", state["compared"]))
        self._samples = sum(samples for samples, _ in self._compared)
        self._different = sum(different for _, different in self._compared)

    def to(self, device: torch.device | str) -> Self:
        """Move everything to ``device``."""
        super().to(device)
        self._shipped = [value.to(device) for value in self._shipped]
        return self
