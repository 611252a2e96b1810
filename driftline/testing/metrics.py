"""The laws of metrics, to be tried on any class that implements :class:`driftline.metrics.Metric`."""

from __future__ import annotations

import fnmatch
import json
import math
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self, cast, runtime_checkable

from driftline.learners.base import Learner
from driftline.metrics.base import Metric
from driftline.stream import checkpoint
from driftline.stream.live import LiveStream
from driftline.stream.play import place
from driftline.stream.stream import Stream
from driftline.testing.data import blobs
from driftline.testing.laws import Law, copied, demand, demand_same, enforce, name_of, usable_devices
from driftline.testing.measuring import MetricCase, Offline, small_learner


@runtime_checkable
class Mergeable(Protocol):
    """A metric whose parts can be measured apart."""

    def merge(self, later: Self) -> None:
        """Add what was measured on a later part of the stream."""


def check_metric(
    make_metric: Callable[[], Metric],
    stream: Stream | LiveStream | None = None,
    make_learner: Callable[[], Learner] | None = None,
    *,
    offline: Offline | None = None,
    batch_size: int = 10,
    any_batch_size: bool = False,
    resident: bool = True,
    devices: Sequence[str] | None = None,
    laws: Collection[str] | None = None,
) -> None:
    """Try the laws of metrics on a class; needs no test framework.

    Parameters
    ----------
    make_metric : callable
        Makes a new metric.
    stream : Stream or LiveStream, optional
        What to measure on; it must start over when it is played again. Default: :func:`driftline.testing.blobs`.
    make_learner : callable, optional
        Makes the learner that is measured. Default: a small network with dropout and plain gradient descent, for
        the default stream.
    offline : callable, optional
        ``offline(record) -> {name: value}`` computes values again from the full :data:`driftline.testing.Record`.
    batch_size : int
        Samples in a step.
    any_batch_size : bool
        Declare that values for a learner that does not learn are the same for every batch size.
    resident : bool
        Whether ``before`` and ``update`` never wait for the device after the first step (tried on CUDA only).
    devices : sequence of str, optional
        Where to try the laws. Default: the CPU, and CUDA where there is one.
    laws : collection of str, optional
        Names of the laws to try, of :data:`METRIC_LAWS`. Default: all.

    Raises
    ------
    LawBroken
        Names the laws that do not hold, and what was found.
    ConfigError
        When there is no such law or device.

    Examples
    --------
    >>> from driftline.metrics import OnlineAccuracy
    >>> from driftline.testing import check_metric
    >>> def offline(record):
    ...     right = [(scores.argmax(1) == y).sum() for position, y, scores in record]
    ...     return {"online_accuracy": float(sum(right)) / sum(len(y) for position, y, scores in record)}
    >>> check_metric(OnlineAccuracy, offline=offline, any_batch_size=True)
    """
    stream = blobs() if stream is None else stream
    make_learner = make_learner or small_learner
    for device in usable_devices(devices):
        case = MetricCase(
            make_metric,
            make_learner,
            place(stream, device),
            offline,
            batch_size,
            any_batch_size,
            resident and device.type == "cuda",
            device,
        )
        enforce(name_of(make_metric, device), METRIC_LAWS, case, laws)


def values_are_named_floats(case: MetricCase) -> None:
    """``value()`` gives floats with a definition for each, before the first step too; the record takes them."""
    for metric, age in ((case.begun(), "new"), (case.measured(), "done")):
        values = metric.value()
        demand(bool(values), f"value() of a {age} one is empty")
        for name, value in values.items():
            demand(type(value) is float, f"{name} of a {age} one is {value!r}, not a float")
            demand(not set(name) & set(",\n"), f"the name {name!r} has a comma or line break in it")
            defined = any(fnmatch.fnmatchcase(name, pattern) for pattern in metric.definitions)
            demand(defined, f"{name} is not in definitions: {list(metric.definitions)}")
        for position, name, value in metric.points(7):
            demand(type(position) is int and type(name) is str and type(value) is float, f"points: {name} = {value!r}")
        json.dumps(metric.describe(), allow_nan=False)


def reading_changes_nothing(case: MetricCase) -> None:
    """``value()`` and ``state_dict()`` can be asked for any number of times."""
    metric = case.measured()
    values, state = metric.value(), copied(metric.state_dict())
    for _ in range(2):
        demand_same(values, metric.value(), "reading value() again", "value")
        demand_same(state, metric.state_dict(), "reading value()")


def reading_often_or_never(case: MetricCase) -> None:
    """The final value is the same whether it was read at every step or only at the end."""
    metric = case.begun()

    def read(i: int) -> Metric:
        metric.value()
        if i % 3 == 0:
            metric.state_dict()
        return metric

    case.play(read)
    demand_close_values(case.measured().value(), metric.value(), "read at the end only, then at every step")


def state_round_trip(case: MetricCase) -> None:
    """A new one that loads a state mid-stream, from a checkpoint on disk, goes on bit-identically."""
    n = case.length()
    when = (0, n // 3, 2 * n // 3)
    original, loaded = case.begun(), case.begun()

    def saved(i: int) -> Metric:
        if i in when:
            original.state_dict()
        return original

    def replaced(i: int) -> Metric:
        nonlocal loaded
        if i in when:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "checkpoint"
                checkpoint.save(file, loaded.state_dict())
                loaded = case.begun()
                loaded.load_state_dict(checkpoint.load(file))
        return loaded

    case.play(saved)
    case.play(replaced)
    demand_same(original.value(), loaded.value(), "measured by one, then by ones that loaded its state", "value")
    demand_same(original.state_dict(), loaded.state_dict(), "measured by one, then by ones that loaded its state")
    demand_same(original.points(n), loaded.points(n), "measured by one, then by ones that loaded its state", "points")


def loading_copies(case: MetricCase) -> None:
    """After ``b.load_state_dict(a.state_dict())`` what b measures does not reach a."""
    half = case.length() // 2
    giver, taker = case.begun(), case.begun()
    state: object = None

    def turn(i: int) -> Metric:
        nonlocal state
        if i == half:
            taker.load_state_dict(giver.state_dict())
            state = copied(giver.state_dict())
        return giver if i < half else taker

    case.play(turn)
    demand_same(state, giver.state_dict(), "after b.load_state_dict(a.state_dict()), updates of b changed a")


def measuring_changes_nothing(case: MetricCase) -> None:
    """The learner's scores and state are bit for bit those of a run without the metric."""
    metric = case.begun()
    quiet, watched = case.play(None), case.play(lambda i: metric)
    demand_same(quiet[0], watched[0], "played without the metric, then with it", "record")
    demand_same(quiet[1], watched[1], "played without the metric, then with it", "learner")


def offline_gives_the_same(case: MetricCase) -> None:
    """The streaming values are those computed again from the full record."""
    if case.offline is None:
        return
    metric = case.begun()
    record, _ = case.play(lambda i: metric)
    expected, found = dict(case.offline(record)), metric.value()
    demand(set(expected) <= set(found), f"offline computes {sorted(expected)}, the metric {sorted(found)}")
    demand_close_values(expected, {name: found[name] for name in expected}, "offline, then streaming")


def merging_gives_the_whole(case: MetricCase) -> None:
    """Parts measured apart and merged give the values of the whole, and measure on; the later part stays."""
    if not isinstance(case.begun(), Mergeable):
        return
    n = case.length()
    whole = case.measured().value()
    for cut, joined in ((n // 2, n), (n // 3, 2 * n // 3), (0, n // 2), (n // 2, n // 2)):
        found = measured_apart(case, cut, joined, n).value()
        demand_close_values(whole, found, f"the whole, then merged at step {joined} with what was measured from {cut}")


def measured_apart(case: MetricCase, cut: int, joined: int, n: int) -> Metric:
    """Return a metric for the whole, with which steps ``cut`` to ``joined`` were merged that another measured."""
    first, later = case.begun(), case.begun()

    def join() -> None:
        state = copied(later.state_dict())
        cast(Mergeable, first).merge(cast(Mergeable, later))
        demand_same(state, later.state_dict(), f"merging steps {cut}..{joined} changed the later part")

    def turn(i: int) -> Metric:
        if i == joined:
            join()
        return later if cut <= i < joined else first

    case.play(turn)
    if joined == n:
        join()
    return first


def batch_size_does_not_matter(case: MetricCase) -> None:
    """Where declared, values for a learner that does not learn are the same for every batch size."""
    if not case.any_batch_size:
        return
    expected = case.measured(64, learns=False).value()
    for size in (1, 7):
        found = case.measured(size, learns=False).value()
        demand_close_values(expected, found, f"batches of 64, then of {size}")


def demand_close_values(expected: Mapping[str, float], found: Mapping[str, float], when: str) -> None:
    """Raise AssertionError when values have other names, or differ by more than rounding."""
    demand(list(expected) == list(found), f"{when}: values {list(expected)}, then {list(found)}")
    for name, value in expected.items():
        other = found[name]
        same = math.isclose(value, other, rel_tol=1e-6, abs_tol=1e-6) or (math.isnan(value) and math.isnan(other))
        demand(same, f"{when}: {name} is {value!r}, then {other!r}")


METRIC_LAWS: Mapping[str, Law[MetricCase]] = {
    "values are named floats": values_are_named_floats,
    "reading changes nothing": reading_changes_nothing,
    "read often or never, the result is the same": reading_often_or_never,
    "the state round trip continues bit-identically": state_round_trip,
    "loading a state copies it": loading_copies,
    "measuring changes nothing": measuring_changes_nothing,
    "the streaming value is the offline value": offline_gives_the_same,
    "merged parts give the whole": merging_gives_the_whole,
    "batch size does not matter": batch_size_does_not_matter,
}
"""The laws of metrics, by name."""
