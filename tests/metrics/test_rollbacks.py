"""Rollbacks in the record: where they are, what they were for, and that a resumed run has the same."""

import math
import warnings

import pytest
import torch

import driftline
from driftline.adapters import CollapseGuard, SlidingWindow, Source, Tent
from driftline.metrics import Rollbacks
from driftline.stream import Dataset, Segment, Stream
from driftline.stream.play import play
from tests.adapters.trained import shifted, source_model

pytestmark = pytest.mark.filterwarnings("ignore:Tent has collapsed")


def stream(samples=600):
    x, y = shifted()
    half = samples // 2
    names = [str(c) for c in range(10)]
    return Stream([Segment.of(Dataset(x[i : i + half], y[i : i + half], names)).named(f"part {i}") for i in (0, half)])


def guarded(**settings):
    """One whose Tent steps far too far."""
    return CollapseGuard(Tent(source_model(), lr=0.5), **{"pause": 2, **settings})


def test_each_rollback_is_in_the_series_with_batch_signal_value_and_level():
    metric, adapter = Rollbacks(), guarded()
    expected, before = [], 0
    for number, step in enumerate(play(stream(), adapter, batch_size=20, metrics=[metric])):
        if adapter.rollbacks > before:
            event, before = adapter.events[-1], adapter.rollbacks
            expected += [
                (step.position, f"rollback_{name}/{event['signal']}", value)
                for name, value in {"batch": number, "value": event["value"], "level": event["level"]}.items()
            ]
    assert len(expected) >= 6
    assert metric.points(step.position) == [*expected, (600, "rollbacks", before)]
    values = metric.value()
    assert values.pop("rollbacks") == before == sum(values.values())


def test_the_position_of_single_samples_in_a_window_is_the_samples_own():
    metric, adapter = Rollbacks(), SlidingWindow(guarded(), size=20)
    for _ in play(stream(200), adapter, batch_size=1, metrics=[metric]):
        pass
    found = [(p, v) for p, name, v in metric.points(200) if name.startswith("rollback_batch")]
    assert found and all(p % 20 == 0 and v == p - 1 for p, v in found)


def test_the_count_goes_on_when_the_adapter_returns_to_its_source():
    report = driftline.run(stream(), guarded(), batch_size=20, metrics=[Rollbacks()], reset="segment")
    positions = [p for p, name, _ in report.series if name.startswith("rollback_batch")]
    assert min(positions) <= 300 < max(positions)
    assert report.results["rollbacks"] == len(positions)


def test_a_rollback_at_the_first_batch_after_a_reset_is_not_missed():
    class Diverged(Source):
        def adapt(self, x):
            self.check(x)
            return torch.full((len(x), 10), torch.nan)

    adapter = CollapseGuard(Diverged(source_model()), pause=1000)
    with pytest.warns(UserWarning, match="not finite"):
        report = driftline.run(stream(), adapter, batch_size=20, metrics=[Rollbacks()], reset="segment")
    assert [v for _, name, v in report.series if name == "rollback_batch/not finite"] == [0, 15]
    assert report.results == {"rollbacks": 2, "rollbacks/not finite": 2}
    assert not any("value" in name or "level" in name for _, name, _ in report.series)


def test_a_resumed_run_has_the_rollbacks_of_an_undisturbed_one(tmp_path):
    kept = []
    for name, stops in (("whole", ()), ("parts", (100, 360))):
        options = {"batch_size": 20, "out": tmp_path / name, "name": "x", "record_every": 120}
        for i, stop in enumerate(stops):
            until = lambda step, stop=stop: step.position >= stop  # noqa: E731
            driftline.run(stream(), guarded(), **options, metrics=[Rollbacks()], until=until, resume=i > 0)
        report = driftline.run(stream(), guarded(), **options, metrics=[Rollbacks()], resume=bool(stops))
        kept.append([(tmp_path / name / file).read_bytes() for file in ("record.json", "series.csv")])
    assert report.results["rollbacks"] >= 2
    assert kept[0] == kept[1]


def test_without_a_guard_there_is_no_number():
    metric = Rollbacks()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = driftline.run(stream(40), Source(source_model()), batch_size=20, metrics=[metric])
    assert math.isnan(metric.value()["rollbacks"]) and report.results == {"rollbacks": None}
