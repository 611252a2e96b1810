"""A classifier that never sees inputs, and the shift at which it stops looking good on a stream's labels.

The blind classifier of "Rapid Adaptation in Online Continual Learning: Are We Evaluating It Right?" (Hammoud et al.,
ICCV 2023): where labels come in runs, repeating the recent ones scores high, so online accuracy proves little.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from driftline.errors import CheckpointError, ConfigError, DataError, InputError

Variant = Literal["paper", "released"]
Labels = Sequence[int] | NDArray[np.integer] | Tensor
WINDOWS = (1, 2, 5, 10, 20, 50, 100)


class BlindClassifier:
    """Predicts the most frequent of the last ``window`` labels, whatever the input.

    Among equally frequent labels the newest one wins where it is one of them; otherwise the prediction stays, or, when
    it is the predicted label that leaves the window, goes to the smallest. A label costs constant time, except where
    the predicted one leaves and may be overtaken: then min(window, classes) counts are searched.

    Parameters
    ----------
    window : int, at least 1
        How many labels are remembered.
    classes : int, at least 1
        Number of classes; labels are in ``[0, classes)``. Before the first label class 0 is predicted.
    variant : str
        ``"paper"`` as above. ``"released"`` follows the published code (drimpossible/EvalOCL), which differs in two
        points: when the predicted label leaves, the newest replaces it if as frequent as *it* now is, even where a
        third is more frequent; and :meth:`run` on a new classifier learns the stream's last label first (there by
        indexing with -1), so that one label from the future counts during the first ``window`` steps.

    Raises
    ------
    ConfigError
        When ``window`` or ``classes`` is below 1, or the variant unknown.

    Examples
    --------
    >>> blind = BlindClassifier(window=3, classes=5)
    >>> blind.run([4, 4, 2, 2, 1, 3])
    [0, 4, 4, 4, 2, 2]
    >>> blind.predict()
    3
    """

    def __init__(self, window: int, classes: int, variant: Variant = "paper") -> None:
        if window < 1 or classes < 1:
            raise ConfigError(f"BlindClassifier: window={window}, classes={classes}; both must be at least 1")
        if variant not in ("paper", "released"):
            raise ConfigError(f"BlindClassifier: unknown variant {variant!r}; choose 'paper' or 'released'")
        self.window = window
        self.classes = classes
        self.variant = variant
        self._restore([], mode=0)

    def predict(self) -> int:
        """Return the predicted class of the next sample, or of one further ahead."""
        return self._mode

    def learn(self, label: int) -> None:
        """Take in the newest label.

        Raises
        ------
        InputError
            When the label is not in ``[0, classes)``; nothing has been changed.
        """
        if not 0 <= label < self.classes:
            raise InputError(self._out_of_range(label, ""))
        self._roll([label])

    def run(self, labels: Sequence[int]) -> list[int]:
        """Learn labels one after another; return what was predicted just before each of them.

        Parameters
        ----------
        labels : sequence of int, shape (n,)
            Python integers are fastest: ``tensor.tolist()``.

        Raises
        ------
        InputError
            When a label is not in ``[0, classes)``; nothing has been changed.
        """
        if len(labels) == 0:
            return []
        if min(labels) < 0 or max(labels) >= self.classes:
            bad = next(i for i, label in enumerate(labels) if not 0 <= label < self.classes)
            raise InputError(self._out_of_range(labels[bad], f" at index {bad}"))
        if self.variant == "released" and self._recent[-1] == self.classes:
            self._roll(labels[-1:])
        return self._roll(labels)

    def state_dict(self) -> dict[str, int | list[int]]:
        """Return the state; JSON values."""
        recent = [label for label in self._recent if label < self.classes]
        return {"window": self.window, "classes": self.classes, "recent": recent, "mode": self._mode}

    def load_state_dict(self, state: Mapping[str, int | list[int]]) -> None:
        """Continue from ``state``.

        Raises
        ------
        CheckpointError
            When the state belongs to a classifier with another window or number of classes, or is damaged.
        """
        recent, mode = state["recent"], state["mode"]
        if (state["window"], state["classes"]) != (self.window, self.classes):
            raise CheckpointError(
                f"BlindClassifier: the state was saved with window={state['window']}, classes={state['classes']}, "
                f"this one has window={self.window}, classes={self.classes}; build it with the saved values"
            )
        if not isinstance(recent, list) or not isinstance(mode, int) or len(recent) > self.window:
            raise CheckpointError("BlindClassifier: the state is damaged; load another checkpoint")
        if not all(0 <= label < self.classes for label in [*recent, mode]):
            raise CheckpointError("BlindClassifier: the state holds unknown classes; load another checkpoint")
        self._restore(recent, mode)

    def _restore(self, recent: list[int], mode: int) -> None:
        # Places not filled yet hold a class beyond the last, so that learning needs no case for a short history.
        # It is never predicted: a mode is looked up only once a real label has left, hence all of these have.
        unfilled = [self.classes] * (self.window - len(recent))
        self._recent = deque(unfilled + recent)
        self._counts = [0] * (self.classes + 1)
        for label in self._recent:
            self._counts[label] += 1
        self._mode = mode
        # No class but the mode has a larger count. A bound that may be too high saves most searches for a new mode.
        self._others = len(recent)

    def _out_of_range(self, label: int, where: str) -> str:
        return (
            f"BlindClassifier: label {label}{where} is not in 0..{self.classes - 1}; "
            "build it with classes=(largest label + 1)"
        )

    def _roll(self, labels: Sequence[int]) -> list[int]:
        predictions: list[int] = []
        predicted, enter, leave = predictions.append, self._recent.append, self._recent.popleft
        counts, mode, others, released = self._counts, self._mode, self._others, self.variant == "released"
        for new in labels:
            predicted(mode)
            enter(new)
            old = leave()
            counts[new] += 1
            counts[old] -= 1
            if new == mode:
                continue
            count, top = counts[new], counts[mode]
            if count >= top and (old != mode or count >= others or released):
                mode, others = new, max(others, top)
                continue
            if count > others:
                others = count
            if old == mode and top <= others:
                mode, others = self._most_frequent()
                if counts[new] == counts[mode]:
                    mode, others = new, count
        self._mode, self._others = mode, others
        return predictions

    def _most_frequent(self) -> tuple[int, int]:
        """Return the most frequent class and the largest count among the others."""
        counts, get = self._counts, self._counts.__getitem__
        few = self.classes <= self.window
        most = max(counts) if few else max(map(get, self._recent))
        mode = counts.index(most) if few else min(label for label in self._recent if counts[label] == most)
        counts[mode] = 0
        others = max(counts) if few else max(map(get, self._recent))
        counts[mode] = most
        return mode, others


def blind_accuracy(
    labels: Labels,
    shift: int = 0,
    windows: Sequence[int] = WINDOWS,
    classes: int | None = None,
    variant: Variant = "paper",
) -> dict[int, float]:
    """Return how often the most frequent recent label equals the label ``shift`` steps further ahead.

    Parameters
    ----------
    labels : sequence, array or tensor of int, shape (n,)
        True labels in stream order.
    shift : int, at least 0, below n - 1
        A prediction made from the labels before position t is judged on position ``t + shift``; 0 is online accuracy.
    windows : sequence of int
        Windows of the blind classifiers. The best of them is what a learner should beat.
    classes : int, optional
        Number of classes. Default: the largest label + 1.
    variant : str
        Of :class:`BlindClassifier`. ``"paper"`` leaves out position 0, before which no label is known;
        ``"released"`` counts it. (The published code fails for shift > 0; this is what it sets out to do.)

    Returns
    -------
    dict of int to float
        Accuracy for each window.

    Raises
    ------
    DataError
        When the labels cannot be used, or ``shift`` leaves nothing to judge.
    ConfigError
        On an unknown variant or a window below 1.

    Examples
    --------
    >>> blind_accuracy([0, 0, 0, 1, 1, 1, 0, 0, 0], windows=[1, 5])
    {1: 0.75, 5: 0.25}
    """
    truth = _as_labels(labels)
    first = 0 if variant == "released" else 1
    if not 0 <= shift < len(truth) - first:
        raise DataError(
            f"blind_accuracy: shift={shift} leaves nothing to judge among {len(truth)} labels; "
            f"use a shift of at least 0 and below {len(truth) - first}, or give more labels"
        )
    accuracy = _shifted_accuracy(truth, _predictions(truth, windows, classes, variant), shift, first)
    return dict(zip(windows, accuracy.tolist()))


def decorrelating_shift(
    labels: Labels,
    windows: Sequence[int] = WINDOWS,
    tolerance: float = 0.01,
    prefix: int = 20_000,
    generator: torch.Generator | None = None,
) -> int:
    """Return the smallest shift at which recent labels say no more about a later one than chance does.

    The first S of 0, 1, 2, 4, 8, ... at which, and at the next of them too, the best blind accuracy is within
    ``tolerance`` of the floor. Freeze it before judging learners by near-future accuracy at this shift.

    Parameters
    ----------
    labels : sequence, array or tensor of int, shape (n,)
        True labels in stream order.
    windows : sequence of int
        Windows of the blind classifiers.
    tolerance : float
        Accuracy, in [0, 1], by which the best blind classifier may exceed the floor: the larger of the frequency of
        the most frequent class and the best blind accuracy on the same labels shuffled.
    prefix : int
        At most so many labels, from the start, are looked at.
    generator : torch.Generator, optional
        Draws the shuffle. Default: a new one seeded with 0, so that the result depends on the labels alone.

    Returns
    -------
    int
        Shift in samples.

    Raises
    ------
    DataError
        When no shift below half the number of labels looked at will do.

    Notes
    -----
    The paper chooses the shift by eye from such a sweep and states no rule. The grid is not refined: between its points
    blind accuracy need not fall steadily, and a stream whose labels repeat with a fixed period is judged at these
    shifts only.

    Examples
    --------
    >>> decorrelating_shift(torch.randint(4, (5000,), generator=torch.Generator().manual_seed(1)))
    0
    """
    truth = _as_labels(labels)[: max(prefix, 0)]
    if len(truth) < 4:
        raise DataError(f"decorrelating_shift: {len(truth)} labels are too few to compare shifts; give at least 4")
    predictions = _predictions(truth, windows)
    limit = floor_accuracy(truth, windows, generator) + tolerance

    shift, falling = 0, []
    while shift < len(truth) - 1:
        falling.append((shift, float(_shifted_accuracy(truth, predictions, shift).max())))
        shift = max(1, 2 * shift)
    for (shift, here), (_, after) in pairwise(falling):
        if here <= limit and after <= limit and 2 * shift < len(truth):
            return shift
    curve = ", ".join(f"{shift}: {accuracy:.3f}" for shift, accuracy in falling)
    raise DataError(
        f"decorrelating_shift: within {len(truth)} labels the best blind accuracy never stays below {limit:.3f} at a "
        f"shift under {len(truth) / 2:g} (by shift, {curve}); the stream's label runs are too long for its length: "
        "look at more labels (prefix=), raise tolerance=, or choose a shift yourself"
    )


def floor_accuracy(labels: Labels, windows: Sequence[int] = WINDOWS, generator: torch.Generator | None = None) -> float:
    """Return the accuracy that labels give away without their order.

    The larger of the frequency of the most frequent class and the best blind accuracy on the labels shuffled.

    Parameters
    ----------
    labels, windows, generator
        See :func:`decorrelating_shift`.

    Raises
    ------
    DataError
        When there are fewer than two labels, or they cannot be used.

    Examples
    --------
    >>> floor_accuracy([0, 0, 0, 1])
    0.75
    """
    truth = _as_labels(labels)
    generator = generator or torch.Generator().manual_seed(0)
    shuffled = truth[torch.randperm(len(truth), generator=generator).numpy()]
    constant = float(np.bincount(truth).max()) / len(truth)
    return max(constant, *blind_accuracy(shuffled, windows=windows).values())


def _predictions(
    truth: NDArray[np.int64], windows: Sequence[int], classes: int | None = None, variant: Variant = "paper"
) -> NDArray[np.int64]:
    known = int(truth.max()) + 1 if classes is None else classes
    labels: list[int] = truth.tolist()
    return np.array([BlindClassifier(window, known, variant).run(labels) for window in windows])


def _shifted_accuracy(
    truth: NDArray[np.int64], predictions: NDArray[np.int64], shift: int, first: int = 1
) -> NDArray[np.float64]:
    judged = predictions[:, first : predictions.shape[1] - shift] == truth[first + shift :]
    accuracy: NDArray[np.float64] = judged.mean(1)
    return accuracy


def _as_labels(labels: Labels) -> NDArray[np.int64]:
    array = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer) or array.min() < 0:
        raise DataError(
            f"labels: expected class indices (integers of at least 0) of shape (samples,), got shape {array.shape}, "
            f"dtype {array.dtype}"
        )
    return array.astype(np.int64)
