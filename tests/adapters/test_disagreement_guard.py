import copy

import pytest
import torch

from driftline.adapters import (
    T3A,
    BatchNormAdapter,
    CollapseGuard,
    CoTTA,
    DisagreementGuard,
    RealTime,
    RoTTA,
    SlidingWindow,
    Source,
    Tent,
)
from driftline.adapters.wrapper import Wrapper
from driftline.errors import ConfigError, InputError
from tests.adapters.trained import correlated, shifted, source_model


def batches(size=50):
    return [part for part in shifted()[0].split(size) if len(part) == size]


def classes(adapter, x):
    return adapter.predict(x).argmax(1)


# The untrained counterpart of Tent is normalisation by the batch, which can be written down beside it.
@pytest.mark.parametrize(("every", "window"), [(1, 200), (3, 120), (2, 25), (1, 1000)])
def test_over_no_window_do_more_predictions_differ_than_the_level_allows(every, window):
    guarded = DisagreementGuard(Tent(source_model(), lr=0.3), level=0.1, window=window, every=every)
    untrained = BatchNormAdapter(source_model(), "batch")
    different, rested, returns = [], 0, 0
    for number, x in enumerate(correlated()[0].split(50)):
        scores = guarded.adapt(x)
        rested += not guarded.adapted
        if number % every == 0:
            returned, returns = guarded.rollbacks > returns, guarded.rollbacks
            if returned:
                event = guarded.events[-1]
                assert (event["batch"], event["signal"], event["level"], event["to"]) == (
                    number,
                    "disagreement",
                    0.1,
                    0,
                )
                assert event["value"] > 0.1
            if returned or not guarded.adapted:
                # What was seen to be too far away is not served: this is the source's prediction.
                assert torch.equal(scores, untrained.predict(x))
            different.append(int((classes(guarded, x) != classes(untrained, x)).sum()))
            whole = different[-max(1, -(-window // 50)) :]
            assert guarded.disagreement == sum(whole) / window <= 0.1
    assert returns > 0 and (rested > 0 or window == 25)


@pytest.mark.parametrize("lr", [0.2, 0.3])
def test_steps_that_are_too_large_cost_no_more_than_the_level(lr):
    x, y = correlated()

    def error(adapter):
        return float((torch.cat([adapter.adapt(part).argmax(1) for part in x.split(50)]) != y).float().mean())

    guarded = DisagreementGuard(Tent(source_model(), lr=lr), level=0.1, window=500, every=1)
    untrained, bare, found = error(BatchNormAdapter(source_model())), error(Tent(source_model(), lr=lr)), error(guarded)
    # Measured: 0.12; 0.83 and 0.86; 0.16 and 0.14.
    assert bare > 0.7 and guarded.rollbacks > 0, (untrained, bare, found)
    assert found <= untrained + 0.1, (untrained, bare, found)


def test_an_adapter_that_stays_near_is_left_alone():
    bare, guarded = Tent(source_model(), lr=0.003), DisagreementGuard(Tent(source_model(), lr=0.003), every=1)
    for x in batches():
        assert torch.equal(bare.adapt(x), guarded.adapt(x))
    assert guarded.rollbacks == 0 and guarded.events == []
    assert 0 < guarded.disagreement < 0.15


def test_statistics_that_follow_the_stream_are_no_disagreement():
    guarded = DisagreementGuard(RoTTA(source_model(), 10, lr=1e-9), every=1)
    for x in batches()[:10]:
        guarded.adapt(x)
    x = batches()[0]
    assert guarded.disagreement == 0
    assert (classes(guarded, x) != classes(Source(source_model()), x)).float().mean() > 0.05


@pytest.mark.parametrize(
    "make", [lambda model: RoTTA(model, 10, lr=0.1, nu=0.5), lambda model: CoTTA(model, lr=0.1, momentum=0.5)]
)
def test_teachers_are_compared_too(make):
    guarded = DisagreementGuard(make(source_model()), level=0.9, every=1)
    for x in batches()[:8]:
        guarded.adapt(x)
    assert guarded.disagreement > 0


def test_an_adapter_that_has_adapted_already_is_compared_with_its_source():
    tent = Tent(source_model(), lr=0.1)
    for x in batches()[:6]:
        tent.adapt(x)
    before = copy.deepcopy(tent.state_dict())
    guarded = DisagreementGuard(tent, level=0.9, every=1)
    assert all(torch.equal(value, before["model"][name]) for name, value in tent.model.state_dict().items())
    x = batches()[6]
    guarded.adapt(x)
    differing = (classes(tent, x) != classes(BatchNormAdapter(source_model()), x)).sum()
    assert guarded.disagreement == int(differing) / 1000 > 0


def test_comparing_changes_nothing():
    guarded = DisagreementGuard(Tent(source_model(), lr=0.1), level=0.9, every=1)
    x = batches()[0]
    guarded.adapt(x)
    before = copy.deepcopy(guarded.state_dict()["inner"])
    places = [parameter.data_ptr() for parameter in guarded.adapted_parameters()]
    guarded._differing(x)
    assert [parameter.data_ptr() for parameter in guarded.adapted_parameters()] == places
    after = guarded.state_dict()["inner"]
    assert all(torch.equal(value, after["model"][name]) for name, value in before["model"].items())
    with pytest.raises(RuntimeError), guarded._untrained():
        raise RuntimeError
    assert [parameter.data_ptr() for parameter in guarded.adapted_parameters()] == places


def test_a_guard_inside_begins_anew_too():
    inner = CollapseGuard(Tent(source_model(), lr=0.1), None, None, None, None, every=1)
    guarded = DisagreementGuard(inner, level=0.05, window=100, every=1)
    for x in batches():
        guarded.adapt(x)
        if guarded.rollbacks:
            break
    assert guarded.rollbacks == 1
    state = source_model().state_dict()
    assert all(torch.equal(value, state[name]) for name, value in inner._good["inner"]["model"].items())


def test_inside_of_a_window_and_of_real_time_it_works_as_well():
    guarded = SlidingWindow(DisagreementGuard(Tent(source_model(), lr=0.1), level=0.1, window=100), size=32)
    slow = RealTime(guarded, cost=1)
    for x in shifted()[0][:800].split(1):
        slow.adapt(x)
    assert guarded.inner.batches == 800 // 32
    assert guarded.inner.disagreement > 0 or guarded.inner.rollbacks > 0


def test_an_adapter_that_cannot_predict_any_more_is_left_to_others():
    guarded = DisagreementGuard(Tent(source_model(), lr=0.01), every=1)
    x = batches()[0]
    guarded.adapt(x)
    with torch.no_grad():
        guarded.network()[0].weight.fill_(float("nan"))
    with pytest.raises(InputError, match="NaN"):
        guarded.adapt(x)
    assert guarded.batches == 1


@pytest.mark.parametrize("inner", [lambda: Source(source_model()), lambda: T3A(source_model())])
def test_what_trains_nothing_needs_no_guard(inner):
    with pytest.raises(ConfigError, match="trains no parameters"):
        DisagreementGuard(inner())
    with pytest.raises(ConfigError, match="trains no parameters"):
        DisagreementGuard(Wrapper(inner()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": 0}, "level=0"),
        ({"level": 1.0}, r"level=1\.0"),
        ({"window": 0}, "window=0"),
        ({"every": 0}, "every=0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        DisagreementGuard(Tent(source_model()), **settings)
