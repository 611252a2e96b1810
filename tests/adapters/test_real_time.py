import json
import math

import pytest
import torch
from torch import nn

import driftline
from driftline.adapters import RealTime, SlidingWindow, Source
from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.metrics import AdaptationCost
from driftline.stream import Dataset, Segment, Stream


class Drifting(Source):
    """Moves the statistics of a batch normalisation at each adaptation."""

    def adapt(self, x):
        self.check(x)
        with torch.no_grad():
            self.model.train()(x)
            self.model.eval()
        return self.predict(x)

    def reset(self):
        self.model.reset_running_stats()


def drifting():
    return Drifting(nn.BatchNorm1d(3).eval())


X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + 2


def adapted(adapter, batches=12):
    found = []
    for i in range(batches):
        adapter.adapt(X[i : i + 4])
        found.append(adapter.adapted)
    return found


@pytest.mark.parametrize(
    ("cost", "rate", "missed"), [(0, 1, 0), (1, 1, 0), (1.5, 1, 1), (3, 1, 2), (3, 0.5, 1), (2, 2, 3), (0.5, 0.1, 0)]
)
def test_adapting_makes_an_adapter_miss_as_many_batches_as_its_cost_says(cost, rate, missed):
    adapter = RealTime(drifting(), cost, rate)
    assert adapted(adapter) == [i % (missed + 1) == 0 for i in range(12)]
    assert adapter.adaptations == math.ceil(12 / (missed + 1)) and adapter.share == adapter.adaptations / 12


def test_a_missed_batch_is_predicted_by_the_model_as_it_is_and_changes_nothing():
    adapter, alone = RealTime(drifting(), 3), drifting()
    for i in range(6):
        state = alone.model.state_dict()
        expected = alone.adapt(X[i : i + 4]) if i % 3 == 0 else alone.predict(X[i : i + 4])
        assert torch.equal(adapter.adapt(X[i : i + 4]), expected)
        assert all(torch.equal(v, state[k]) for k, v in adapter.network().state_dict().items())


def test_a_batch_that_the_inner_adapter_only_predicts_keeps_it_from_nothing():
    adapter = RealTime(SlidingWindow(drifting(), size=3), cost=3)
    found = []
    for sample in X[:11]:
        adapter.adapt(sample[None])
        found.append((adapter.adapted, adapter.delay))
    # Two samples fill the window beside the third; the next two are missed, and then it fills anew.
    assert found == [(False, 0), (False, 0), (True, 2), (False, 1), (False, 0)] * 2 + [(False, 0)]
    assert adapter.adaptations == 2


def test_the_cost_may_depend_on_the_batch():
    adapter = RealTime(drifting(), lambda x: float(len(x)))
    adapter.adapt(X[:3])
    assert adapter.delay == 2
    assert adapter.describe()["parameters"]["cost"].endswith("<lambda>")


def test_measured_time_gives_a_delay_of_at_least_nothing():
    adapter = RealTime(drifting())
    assert adapted(adapter)[0]
    assert adapter.delay >= 0 and 0 < adapter.share <= 1


def test_a_resumed_clock_goes_on():
    whole, first, second = (RealTime(drifting(), 4) for _ in range(3))
    expected = adapted(whole, 10)
    found = adapted(first, 5)
    second.load_state_dict(first.state_dict())
    found += [second.adapt(X[i : i + 4]) is not None and second.adapted for i in range(5, 10)]
    assert found == expected
    assert torch.equal(second.predict(X), whole.predict(X)) and second.share == whole.share


def test_reset_frees_the_adapter():
    adapter = RealTime(drifting(), 10)
    adapter.adapt(X)
    adapter.reset()
    assert adapter.delay == 0 and math.isnan(adapter.share)
    assert torch.equal(adapter.predict(X), drifting().predict(X))


@pytest.mark.parametrize("cost", [-1, math.inf, math.nan, True, "fast", None])
def test_a_cost_that_is_none_is_refused(cost):
    with pytest.raises(ConfigError, match="cost="):
        RealTime(drifting(), cost)


def test_a_bad_cost_of_a_batch_is_refused_before_adapting():
    adapter = RealTime(drifting(), lambda x: -1.0)
    with pytest.raises(ConfigError, match="cost=-1"):
        adapter.adapt(X)
    assert torch.equal(adapter.predict(X), drifting().predict(X))


@pytest.mark.parametrize("rate", [0, -1, math.inf, True, "1"])
def test_a_rate_is_above_zero(rate):
    with pytest.raises(ConfigError, match="rate="):
        RealTime(drifting(), 1, rate)


def test_only_adapters_are_wrapped():
    with pytest.raises(ConfigError, match="inner is Linear, not an adapter"):
        RealTime(nn.Linear(1, 1))


def test_bad_input_leaves_the_clock_alone():
    adapter = RealTime(drifting(), 3)
    adapter.adapt(X)
    with pytest.raises(InputError):
        adapter.adapt(X * torch.nan)
    assert (adapter.delay, adapter.batches) == (2, 1)


def test_a_damaged_clock_is_refused():
    adapter = RealTime(drifting(), 3)
    with pytest.raises(CheckpointError, match="clock"):
        adapter.load_state_dict({**adapter.state_dict(), "delay": -1})
    with pytest.raises(CheckpointError, match="parts"):
        adapter.load_state_dict(drifting().state_dict())


def test_trust_is_handed_on_through_nested_wrappers():
    inner = drifting()
    adapter = RealTime(RealTime(inner, 1), 2)
    adapter.trusted = True
    assert inner.trusted and adapter.trusted
    described = json.loads(json.dumps(adapter.describe()))
    assert described["parameters"]["inner"]["parameters"]["inner"]["name"] == "Source"
    adapter.adapt(X)
    adapter.adapt(X)
    assert not adapter.adapted


def test_both_numbers_side_by_side_and_the_share_in_the_results():
    stream = Stream([Segment.of(Dataset(X, torch.zeros(40, dtype=torch.long), ["a", "b", "c"]))])
    offline = driftline.run(stream, drifting(), batch_size=4, metrics=[AdaptationCost()])
    online = driftline.run(stream, RealTime(drifting(), 3), batch_size=4, metrics=[AdaptationCost()])
    assert offline.results["adapted_share"] == 1.0 and online.results["adapted_share"] == 0.4
