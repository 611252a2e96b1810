"""A floor under the accuracy: by the labels that come back, serve the better of adapted and shipped model."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import cast

from driftline.adapters.settings import at_least
from driftline.errors import ConfigError

MOST_PATIENCE = 16
"""Windows that the adapted model must prove itself for at most."""


class Floor:
    """Decides which model is served, so that over no window the served one errs much more than the shipped one.

    Of each sample whose label comes back, both models' predictions are compared with it. The adapted model is served
    as long as one more error of its own, where the shipped model is right, would keep every run of at most ``window``
    labelled samples within ``margin * window`` more errors than the shipped model makes. Otherwise the shipped model
    takes over, and the adapted one, which begins anew, must be no worse in its shadow over a whole window before it is
    served again: two windows after the second fall, then four, up to sixteen.

    Where labels come at once, the bound holds without exception. Where they come late, up to as many errors are added
    as samples were answered by the adapted model, and labelled later, before the error that was one too many was known.

    Parameters
    ----------
    window : int
        Labelled samples.
    margin : float
        Share of the window, at least 1 / window and at most 1.

    Attributes
    ----------
    adapted : bool
        Whether the adapted model is served.
    falls : int
        Times that the shipped model took over.

    Raises
    ------
    ConfigError
        For a margin that allows less than one error.

    Examples
    --------
    >>> floor = Floor(window=50, margin=0.04)
    >>> [floor.feedback(served=False, shipped=True, adapted=False) for _ in range(2)]
    [False, True]
    >>> floor.adapted
    False
    """

    def __init__(self, window: int = 200, margin: float = 0.05) -> None:
        at_least("window", window, 1)
        if not 1 / window <= margin <= 1:
            raise ConfigError(f"margin={margin}: give a share of the window between {1 / window:.3g} (one error) and 1")
        self.window, self.margin = window, margin
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.adapted, self.falls = True, 0
        self._excess: deque[int] = deque(maxlen=self.window)
        self._shadow, self._proved = 0, 0

    @property
    def excess(self) -> int:
        """The most by which the served model's errors exceed the shipped one's, of all runs that end now."""
        worst = run = 0
        for difference in reversed(self._excess):
            run += difference
            worst = max(worst, run)
        return worst

    def feedback(self, served: bool, shipped: bool, adapted: bool) -> bool:
        """Take in which models were right on a sample; return whether the shipped model has to take over now.

        Parameters
        ----------
        served : bool
            Whether the answer given was right.
        shipped, adapted : bool
            Whether each model's was, or would have been.
        """
        self._excess.append(int(shipped) - int(served))
        room = self.excess + 1 <= self.margin * self.window + 1e-9
        if self.adapted:
            if room:
                return False
            self.adapted = False
            self.falls += 1
            self._shadow = self._proved = 0
            return True
        self._shadow += int(adapted) - int(shipped)
        self._proved += 1
        if self._proved >= self.window * min(2 ** (self.falls - 1), MOST_PATIENCE):
            if self._shadow >= 0 and room:
                self.adapted = True
            self._shadow = self._proved = 0
        return False

    def state_dict(self) -> dict[str, object]:
        """Return what was counted."""
        return {
            "adapted": self.adapted,
            "falls": self.falls,
            "excess": list(self._excess),
            "shadow": self._shadow,
            "proved": self._proved,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Count on."""
        self.adapted, self.falls = bool(state["adapted"]), cast(int, state["falls"])
        self._excess = deque(cast(list[int], state["excess"]), maxlen=self.window)
        self._shadow, self._proved = cast(int, state["shadow"]), cast(int, state["proved"])
