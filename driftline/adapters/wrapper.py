"""What adapters around another adapter share: everything goes on to the inner one, unless a wrapper says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, cast

import torch
from torch import Tensor, nn

from driftline.adapters.base import Adapter
from driftline.errors import CheckpointError, ConfigError
from driftline.stream.parts import settings_of

INNER = "inner"


class Wrapper(Adapter):
    """An adapter around another one, which it hands everything on to.

    A subclass overrides :meth:`adapt` and what else it does differently; what it keeps itself goes into
    :meth:`own_state` and :meth:`load_own_state`, and is forgotten in :meth:`reset`.

    Parameters
    ----------
    inner : Adapter
        Used, not copied.

    Raises
    ------
    ConfigError
        When ``inner`` is no adapter.

    Examples
    --------
    >>> import torch
    >>> from driftline.adapters import Source
    >>> from driftline.adapters.wrapper import Wrapper
    >>> class Counting(Wrapper):
    ...     seen = 0
    ...     def adapt(self, x):
    ...         self.seen += len(x)
    ...         return self.inner.adapt(x)
    ...     def reset(self):
    ...         self.seen = 0
    ...         super().reset()
    ...     def own_state(self):
    ...         return {"seen": self.seen}
    ...     def load_own_state(self, state):
    ...         self.seen = state["seen"]
    >>> adapter = Counting(Source(torch.nn.Linear(4, 3)))
    >>> adapter.adapt(torch.ones(2, 4)).shape, adapter.seen, list(adapter.state_dict())
    (torch.Size([2, 3]), 2, ['inner', 'seen'])
    """

    def __init__(self, inner: Adapter) -> None:
        if not isinstance(inner, Adapter):
            raise ConfigError(f"{type(self).__name__}: inner is {type(inner).__name__}, not an adapter; wrap one")
        self.inner = inner

    @property
    def trusted(self) -> bool:
        """Whether the inner adapter need not look at its input."""
        return self.inner.trusted

    @trusted.setter
    def trusted(self, value: bool) -> None:
        self.inner.trusted = value

    @property
    def input_shape(self) -> tuple[int, ...] | None:  # type: ignore[override]
        """Shape of a sample, once known."""
        return self.inner.input_shape

    @property
    def num_classes(self) -> int | None:  # type: ignore[override]
        """Number of scores, once known."""
        return self.inner.num_classes

    @property
    def adapted(self) -> bool:
        """Whether the last batch was adapted to."""
        return bool(getattr(self.inner, "adapted", True))

    def predict(self, x: Tensor) -> Tensor:
        """Return the inner adapter's scores (B, classes); changes nothing."""
        return self.inner.predict(x)

    def adapt(self, x: Tensor) -> Tensor:
        """Let the inner adapter adapt to samples (B, *input); return its scores."""
        return self.inner.adapt(x)

    def reset(self) -> None:
        """Return the inner adapter to its source model; a subclass forgets its own state, too."""
        self.inner.reset()

    def own_state(self) -> dict[str, object]:
        """Return what the wrapper itself keeps: tensors and plain values, with the same names at all times."""
        return {}

    def load_own_state(self, state: Mapping[str, object]) -> None:
        """Continue from an :meth:`own_state`; raise CheckpointError before anything is changed."""

    def state_dict(self) -> dict[str, object]:
        """Return the inner adapter's state under ``"inner"``, and the wrapper's own beside it."""
        return {INNER: self.inner.state_dict(), **self.own_state()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When it belongs to another adapter; nothing has been changed then.
        """
        before = self.own_state()
        if set(state) != {INNER, *before}:
            raise CheckpointError(
                f"the state has parts {sorted(state)}, {type(self).__name__} {sorted([INNER, *before])}; "
                "it is another adapter's"
            )
        self.load_own_state({name: value for name, value in state.items() if name != INNER})
        try:
            self.inner.load_state_dict(cast(Mapping[str, object], state[INNER]))
        except Exception:
            self.load_own_state(before)
            raise

    def network(self) -> nn.Module | None:
        """Return the inner adapter's model."""
        return self.inner.network()

    def adapted_parameters(self) -> list[nn.Parameter]:
        """Return those of the inner adapter."""
        return self.inner.adapted_parameters()

    def as_module(self) -> nn.Module | None:
        """Return the inner adapter's, unless the wrapper predicts in a way of its own."""
        return self.inner.as_module() if type(self).predict is Wrapper.predict else None

    def describe(self) -> dict[str, object]:
        """Return name, the settings that are plain values and, nested, the inner adapter (JSON values)."""
        plain = (bool, int, float, str, type(None))
        own = {name: value for name, value in settings_of(self).items() if isinstance(value, plain)}
        return {"name": type(self).__name__, "parameters": {**own, INNER: self.inner.describe()}}

    def to(self, device: torch.device | str) -> Self:
        """Move the inner adapter to ``device``; a subclass moves its own tensors, too."""
        self.inner = self.inner.to(device)
        return self

    def check(self, x: Tensor) -> None:
        """Raise if the inner adapter cannot use a batch, before any state changes."""
        self.inner.check(x)
