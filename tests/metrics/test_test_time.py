"""Metrics of test-time adaptation, each on streams small enough to be counted by hand."""

import json
import math

import pytest
import torch
from torch import nn

import driftline
from driftline.adapters import Source, Tent
from driftline.errors import CheckpointError, ConfigError, DataError
from driftline.learners import NearestClassMean
from driftline.metrics import AdaptationCost, Calibration, DomainError, SourceError
from driftline.metrics.cost import Arithmetic
from driftline.stream import Dataset, Segment, Stream
from driftline.stream.play import play


def look(name, samples=10, share=1.0):
    """Samples that the identity classifies right or wrong, all but the first ``1 - share`` of them right."""
    y = torch.arange(samples) % 2
    x = nn.functional.one_hot(y, 2).float()
    x[: round(samples * (1 - share))] *= -1
    return Segment.of(Dataset(x, y, ["a", "b"])).named(name)


def measured(metric, *segments, adapter=None, batch_size=3):
    for _ in play(Stream(segments), adapter or Source(nn.Identity()), batch_size=batch_size, metrics=[metric]):
        pass
    return metric.value()


# --- error by domain


def test_every_domain_counts_the_same_in_the_mean():
    values = measured(DomainError(), look("a", 10, 0.5), look("b", 30, 0.9))
    assert values == pytest.approx({"domain_error": 0.3, "domain_error/a": 0.5, "domain_error/b": 0.1})


def test_each_visit_to_a_domain_that_comes_back_is_told():
    values = measured(DomainError(), look("a", 10, 0.5), look("b", 10, 0.9), look("a", 10, 0.7))
    assert values["domain_error/a"] == pytest.approx(0.4)
    assert values["domain_error_visit/a/0"] == pytest.approx(0.5)
    assert values["domain_error_visit/a/1"] == pytest.approx(0.3)
    assert "domain_error_visit/b/0" not in values


def test_domains_of_a_mixed_stream_are_told_apart():
    parts = [look(name, 10, share).in_domain(name) for name, share in (("fog", 0.5), ("snow", 0.9))]
    mixed = driftline.concatenate(*parts).shuffle(torch.Generator().manual_seed(0))
    values = measured(DomainError(), mixed.named("mixed"))
    assert values == pytest.approx({"domain_error": 0.3, "domain_error/fog": 0.5, "domain_error/snow": 0.1})


def test_the_curve_of_a_domain_is_its_error_since_the_last_value():
    metric, found = DomainError(), []
    for step in play(Stream([look("a", 10, 0.6)]), Source(nn.Identity()), batch_size=2, metrics=[metric]):
        found += [v for _, name, v in metric.points(step.position) if name == "domain_error_now/a"]
    assert found == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_names_fit_into_the_series():
    assert list(measured(DomainError(), look("a, b\nc"))) == ["domain_error", "domain_error/a; b c"]


def test_visits_to_domains_of_mixed_segments_that_come_back_are_told_apart():
    def mixed(fog, snow):
        parts = [look(name, 10, share).in_domain(name) for name, share in (("snow", snow), ("fog", fog))]
        return driftline.concatenate(*parts).shuffle(torch.Generator().manual_seed(0)).named("mixed")

    values = measured(DomainError(), mixed(0.5, 0.9), look("fog", 10, 1.0), mixed(0.7, 0.8))
    visits = {name.partition("/")[2]: v for name, v in values.items() if name.startswith("domain_error_visit")}
    assert visits == pytest.approx({"snow/0": 0.1, "snow/1": 0.2, "fog/0": 0.5, "fog/1": 0.0, "fog/2": 0.3})


def kept(metric):
    """Bytes of tensors in a metric's state."""
    return sum(t.numel() * t.element_size() for t in metric.state_dict().values())


def test_what_is_kept_of_a_long_stream_grows_with_its_segments_alone():
    new, recurring = DomainError(), DomainError()
    walk = [look(f"step {i}", 2, i % 2 / 2) for i in range(1000)]
    values = measured(new, *walk, batch_size=2)
    assert values["domain_error"] == pytest.approx(0.75) and len(values) == 1001
    # With a domain of its own for each of 1 000 segments, and for 20 visits to each of 15 domains.
    assert kept(new) == 1000 * 2 * 8 + 1000 * 2 * 8
    days = [look(f"weather {i % 15}", 2, 0.5) for i in range(300)]
    assert measured(recurring, *days, batch_size=2)["domain_error_visit/weather 14/19"] == 0.5
    assert kept(recurring) == 300 * 2 * 8 + 15 * 2 * 8


def test_a_state_of_other_domains_is_refused():
    one, two = DomainError(), DomainError()
    measured(one, look("a"))
    two.begin(Stream([look("a"), look("b")]), 1)
    with pytest.raises(CheckpointError, match="1 domains"):
        two.load_state_dict(one.state_dict())


# --- calibration


def test_calibration_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    y = torch.tensor([0, 1, 1, 1])
    stream = Segment.of(Dataset(p.log(), y, ["a", "b"]))
    values = measured(Calibration(window=None), stream)
    assert values["calibration_error"] == pytest.approx((2 * 0.4 + 0.4 + 0.2) / 4)
    assert values["negative_log_likelihood"] == pytest.approx(-sum(map(math.log, (0.9, 0.1, 0.6, 0.8))) / 4)
    assert values["brier_score"] == pytest.approx((0.02 + 1.62 + 0.32 + 0.08) / 4)


def test_the_window_holds_the_most_recent_samples():
    values = measured(Calibration(window=10), look("a", 10, 0.0), look("b", 10))
    alone = measured(Calibration(window=10), look("b", 10))
    assert values["brier_score_window"] == pytest.approx(alone["brier_score"])
    assert values["brier_score"] > values["brier_score_window"]


def test_an_impossible_class_costs_much_and_not_everything():
    p = torch.tensor([[0.0, -torch.inf]])
    metric = Calibration()
    metric._pending.append((p, torch.tensor([1]), False))
    metric._pending.append((p[:, :1], torch.tensor([1]), False))
    assert metric.value()["negative_log_likelihood"] == pytest.approx(-math.log(1e-12))


@pytest.mark.parametrize("options", [{"bins": 0}, {"window": 0}])
def test_calibration_refuses_what_makes_no_sense(options):
    with pytest.raises(ConfigError, match="at least 1"):
        Calibration(**options)


def test_a_state_with_other_bins_is_refused():
    metric = Calibration(10)
    measured(metric, look("a"))
    with pytest.raises(CheckpointError, match="10 bins"):
        Calibration().load_state_dict(metric.state_dict())


# --- forgetting the source


class Worse(Source):
    """Turns its scores around once it has adapted."""

    sign = 1.0

    def predict(self, x):
        return self.sign * super().predict(x)

    def adapt(self, x):
        self.sign = -1.0
        return self.predict(x)


def test_forgetting_is_the_rise_of_the_error_on_clean_samples():
    metric = SourceError(look("clean", 20, 0.8).recipes[0].data, every=5, batch_size=7)
    values = measured(metric, look("a", 12), adapter=Worse(nn.Identity()))
    expected = {"source_error": 0.8, "source_error_start": 0.2, "source_forgetting": 0.6}
    assert values == pytest.approx(expected)
    assert [p for p, _, _ in metric.points(12)] == [0, 6, 12]


def test_by_default_the_clean_samples_are_the_streams_own_without_transforms():
    assert measured(SourceError(None), look("a").transform(torch.neg))["source_error"] == 0.0


def test_other_classes_and_missing_labels_are_refused():
    with pytest.raises(DataError, match=r"\[3\] classes"):
        SourceError(Dataset(torch.zeros(3, 2), torch.arange(3))).begin(Stream([look("a")]), 1)
    with pytest.raises(DataError, match="labels"):
        SourceError(Dataset(torch.zeros(3, 2))).begin(Stream([look("a")]), 1)
    with pytest.raises(ConfigError, match="every=0"):
        SourceError(every=0)


# --- cost


def network():
    return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


class Thrice(Source):
    """Looks at each batch three times."""

    def adapt(self, x):
        return (self.predict(x) + self.predict(x) + self.predict(x)) / 3


def test_forwards_and_backwards_are_counted():
    assert measured(AdaptationCost(2), look("a"), adapter=Source(network()))["adapt_forwards"] == 1.0
    assert measured(AdaptationCost(2), look("a"), adapter=Thrice(network()))["adapt_forwards"] == 3.0
    tent = measured(AdaptationCost(2), look("a"), adapter=Tent(network()), batch_size=5)
    assert tent["adapt_forwards"] == 1.0
    assert 0 < tent["adapt_backwards"] <= 1.0  # weights are not trained, and the input needs no gradient


def test_inference_mode_and_full_training_are_counted():
    layer, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), torch.ones(2, 4)
    with Arithmetic() as counted, torch.inference_mode():
        layer(x)
    assert counted.forward == 2 * 2 * (4 * 8 + 8 * 3)
    with Arithmetic() as counted:
        layer(x).sum().backward()
    assert counted.backward == 2 * counted.forward - 2 * 2 * 4 * 8


def test_nothing_to_count_is_no_number():
    assert math.isnan(measured(AdaptationCost(), look("a"))["adapt_forwards"])


def test_times_are_kept_out_of_the_record(tmp_path):
    stream = Stream([look("a", 40)])
    driftline.run(stream, Source(network()), batch_size=2, metrics=[AdaptationCost()], out=tmp_path)
    timing = json.loads((tmp_path / "timing.json").read_text())
    assert timing["adapt_seconds_per_sample"] > 0 and timing["adapt_relative_time"] > 0
    assert "seconds" not in (tmp_path / "record.json").read_text() + (tmp_path / "series.csv").read_text()


def test_it_watches_no_replicas_and_needs_two_steps():
    with pytest.raises(ConfigError, match="at least 2"):
        AdaptationCost(1)
    from driftline.metrics.replicas import ReplicaMetric

    with pytest.raises(ConfigError, match="replicas apart"):
        ReplicaMetric(AdaptationCost(), 2)


# --- reset at each segment


class Counting(Source):
    """Counts its resets."""

    resets = 0

    def reset(self):
        self.resets += 1


def test_an_adapter_is_reset_before_each_segment_when_asked():
    stream = Stream([look("a"), look("b"), look("c")])
    never, each = Counting(nn.Identity()), Counting(nn.Identity())
    driftline.run(stream, never, batch_size=3)
    report = driftline.run(stream, each, batch_size=3, reset="segment")
    assert (never.resets, each.resets) == (0, 3)
    assert report.record["protocol"]["reset"] == "segment" and report.record["protocol"]["normalization"] is None


def test_a_resumed_run_resets_where_an_undisturbed_one_does(tmp_path):
    stream, records = Stream([look("a", 20), look("b", 20, 0.5)]), []
    for name, stops in (("whole", ()), ("parts", (6, 20))):
        options = {"batch_size": 2, "reset": "segment", "metrics": [DomainError()], "out": tmp_path / name, "name": "x"}
        for i, stop in enumerate(stops):
            until = lambda step, stop=stop: step.position >= stop  # noqa: E731
            driftline.run(
                stream, Tent(start(), lr=0.1), **{**options, "metrics": [DomainError()]}, until=until, resume=i > 0
            )
        driftline.run(stream, Tent(start(), lr=0.1), **options, resume=bool(stops))
        records.append([(tmp_path / name / file).read_bytes() for file in ("record.json", "series.csv")])
    assert records[0] == records[1]


def start():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return network()


def test_learners_and_unknown_policies_are_refused():
    with pytest.raises(ConfigError, match="learner does not have"):
        play(Stream([look("a")]), NearestClassMean(), reset="segment")
    with pytest.raises(ConfigError, match="reset='shift'"):
        play(Stream([look("a")]), Source(nn.Identity()), reset="shift")


def test_plans_reset_and_run_in_real_time(tmp_path):
    from driftline.plan import Plan

    plan = Plan("domain_incremental", adapter="source", reset="segment", real_time=3.0, samples=300, metrics=("cost",))
    report = plan.run(tmp_path)
    assert report.results["adapted_share"] == pytest.approx(1 / 3, abs=0.01)
    assert report.record["learner"]["name"] == "RealTime"
    assert Plan.of_run(tmp_path).real_time == 3.0
    with pytest.raises(ConfigError, match="only adapters miss batches"):
        Plan("iid", real_time="measured").run()
