"""River's drift detectors around learners and adapters."""

import copy
import itertools
import json

import pytest
import torch
from river import drift
from river.datasets import synth

import driftline
from driftline import models
from driftline.adapters import BatchNormAdapter, Source, Tent
from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.interop import river
from driftline.interop.river import DriftResponse, ReplayMore, SwitchingAdapter
from driftline.learners import (
    GradientLearner,
    NearestClassMean,
    SlidingReplay,
    StreamingLDA,
    TaskCrossEntropy,
    in_lockstep,
    squared_error,
)
from driftline.testing import check_adapter, check_learner

LAWS = ["predict changes nothing", "observe is predict, then learn", "bad input is refused and changes nothing"]


def changed_halfway(samples=600):
    x = torch.randn(samples, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    y[samples // 2 :] = 1 - y[samples // 2 :]
    return [(x[i], int(y[i])) for i in range(samples)]


def sine(samples=300):
    """River's sine concept, and its reverse."""

    def concepts():
        return itertools.chain(*(synth.Sine(classification_function=i, seed=i).take(samples) for i in range(2)))

    return river.stream(concepts, [0, 1], dtype=torch.float32)


def accuracy(stream, learner, start, batch_size=1):
    """Share of the samples from ``start`` on that are predicted right before they are learned from."""
    hits = total = 0
    for step in driftline.play(stream, learner, batch_size=batch_size):
        if step.batch.position >= start:
            hits += int((step.prediction.argmax(1) == step.batch.y).sum())
            total += len(step.batch)
    return hits / total


def replaying(updates=None, samples=200):
    model = models.mlp(2, 2, hidden=(8,), seed=0)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    more = None if updates is None else ReplayMore(updates, samples)
    learner = GradientLearner(model, sgd, replay=SlidingReplay(50), replay_ratio=1 if more is None else more)
    return learner if more is None else DriftResponse(learner, drift.ADWIN(), more)


def sure(factor):
    """A model that answers with the first input, as sure as the factor is large."""
    layer = torch.nn.Linear(1, 2, bias=False)
    layer.weight.data = torch.tensor([[factor], [0.0]])
    return layer


def test_starting_afresh_when_labels_are_permuted_beats_going_on():
    stream = driftline.scenarios.permuted_labels(driftline.load("digits"), seed=0, tasks=2)
    half = len(stream) // 2
    watched = DriftResponse(NearestClassMean(classes=10), drift.ADWIN())
    assert accuracy(stream, watched, half, batch_size=10) > 0.75
    assert watched.alarms == 1
    assert accuracy(stream, NearestClassMean(classes=10), half, batch_size=10) < 0.3


def test_starting_afresh_on_rivers_reversed_sine_beats_going_on():
    watched = DriftResponse(StreamingLDA(), drift.ADWIN())
    assert accuracy(sine(), watched, 300) > accuracy(sine(), StreamingLDA(), 300) + 0.5


def test_no_alarm_where_nothing_changes():
    stream = driftline.scenarios.iid(driftline.load("digits"))
    watched = DriftResponse(NearestClassMean(classes=10), drift.ADWIN())
    plain = driftline.run(stream, NearestClassMean(classes=10), batch_size=10)
    assert driftline.run(stream, watched, batch_size=10).results == plain.results and watched.alarms == 0


def test_labels_that_come_late_are_watched_too():
    watched = DriftResponse(NearestClassMean(classes=2), drift.ADWIN())
    stream = driftline.from_iterable(changed_halfway(), classes=2).delay_labels(50)
    driftline.run(stream, watched)
    assert watched.alarms == 1


@pytest.mark.parametrize("detector", [drift.PageHinkley, drift.KSWIN, drift.binary.DDM, drift.binary.HDDMA])
def test_every_kind_of_detector_sees_labels_turn_round(detector):
    watched = DriftResponse(NearestClassMean(classes=2), detector())
    driftline.run(driftline.from_iterable(changed_halfway(400), classes=2), watched)
    assert watched.alarms >= 1


def test_a_watched_learner_keeps_laws():
    check_learner(
        lambda: DriftResponse(NearestClassMean(classes=3), drift.PageHinkley()), steps=100, devices=["cpu"], laws=LAWS
    )


@pytest.mark.parametrize("make", [lambda: DriftResponse(StreamingLDA(), drift.ADWIN()), lambda: replaying(4)])
@pytest.mark.parametrize("stop", [150, 300])
def test_a_run_is_resumed_to_the_same_numbers_before_and_behind_an_alarm(tmp_path, make, stop):
    def play(folder, **options):
        learner = make()
        report = driftline.run(sine(200), learner, out=tmp_path / folder, record_every=20, **options)
        return learner.alarms, report.series, report.results, json.dumps(report.record["learner"])

    whole = play("whole")
    assert whole[0] >= 1
    play("parts", until=lambda step: step.position >= stop)
    assert play("parts", resume=True) == whole


def test_watched_learners_in_lockstep_are_each_as_alone():
    streams = [
        driftline.scenarios.permuted_labels(driftline.load("digits"), seed, tasks=2)[1100:1800] for seed in (0, 1)
    ]

    def make(seed):
        return DriftResponse(NearestClassMean(classes=10), drift.ADWIN())

    together = driftline.run(streams, make, seeds=[0, 1], batch_size=10)
    alone = [driftline.run(stream, make(0), batch_size=10).results["online_accuracy"] for stream in streams]
    assert together.record["replicas"]["results"]["online_accuracy"] == pytest.approx(alone)
    whole = in_lockstep([make(0), make(1)])
    other = in_lockstep([make(0), make(1)])
    x, y = torch.rand(2, 4, 3), torch.arange(4).expand(2, 4)
    whole.learn(x, y)
    other.load_state_dict(whole.state_dict())
    assert torch.equal(other.predict(x), whole.predict(x))


def test_more_is_replayed_for_a_while_after_an_alarm():
    watched = replaying(5, samples=50)
    more = watched.respond
    more(watched.learner)
    assert [more.ratio(position, watched.network()) for position in (0, 49, 50)] == [5, 5, 1]


def test_replaying_more_after_an_alarm_beats_going_on():
    watched = replaying(8)
    assert accuracy(sine(), watched, 300) > accuracy(sine(), replaying(), 300) + 0.1
    assert watched.alarms >= 1


def test_the_record_says_what_an_alarm_does():
    parameters = replaying(4, samples=70).describe()["parameters"]
    assert parameters["respond"] == {"name": "ReplayMore", "updates": 4, "samples": 70, "usual": 1}
    assert "ADWIN" in parameters["detector"]
    assert DriftResponse(StreamingLDA(), drift.ADWIN()).describe()["parameters"]["respond"] == "reset"


def test_a_learner_that_wants_to_be_told_tasks_is_told_through_the_watch():
    model = models.mlp(2, 4, hidden=(8,))
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    watched = DriftResponse(GradientLearner(model, sgd, TaskCrossEntropy()), drift.ADWIN())
    assert watched.task_aware
    watched.begin_task(0, torch.tensor([True, True, False, False]))
    assert watched.learner.loss.competing.sum() == 4
    assert watched.predict_task(torch.rand(3, 2), 0).shape == (3, 4)
    assert not DriftResponse(StreamingLDA(), drift.ADWIN()).task_aware


def test_trust_goes_through_to_the_learner_and_back():
    watched = DriftResponse(NearestClassMean(classes=2), drift.ADWIN())
    driftline.run(driftline.from_iterable(changed_halfway(10), classes=2), watched)
    assert not watched.learner.trusted
    with pytest.raises(InputError):
        watched.learner.learn(torch.tensor([[float("nan"), 0.0]]), torch.tensor([0]))


def test_what_cannot_be_watched_is_refused_at_once():
    with pytest.raises(ConfigError, match="str is no drift detector"):
        DriftResponse(StreamingLDA(), "ADWIN")
    with pytest.raises(ConfigError, match="in_lockstep"):
        DriftResponse(in_lockstep([StreamingLDA(), StreamingLDA()]), drift.ADWIN())
    with pytest.raises(ConfigError, match="replay_ratio="):
        DriftResponse(StreamingLDA(), drift.ADWIN(), ReplayMore(4, 100))
    with pytest.raises(ConfigError, match="replay_ratio="):
        DriftResponse(replaying(4).learner, drift.ADWIN(), ReplayMore(4, 100))
    with pytest.raises(ConfigError, match="samples=0"):
        ReplayMore(4, 0)
    model = models.mlp(2, 1, hidden=(8,))
    regression = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.05), squared_error)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="errors of classes"):
        DriftResponse(regression, drift.ADWIN()).learn(torch.rand(3, 2), torch.rand(3))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_states_of_others_are_refused_and_change_nothing():
    own = DriftResponse(StreamingLDA(), drift.ADWIN())
    own.learn(torch.rand(4, 2), torch.tensor([0, 1, 0, 1]))
    before = own.predict(torch.eye(2))
    for other in (
        DriftResponse(StreamingLDA(), drift.PageHinkley()),
        DriftResponse(StreamingLDA(), drift.ADWIN(), lambda learner: None),
    ):
        with pytest.raises(CheckpointError):
            own.load_state_dict(other.state_dict())
    with pytest.raises(CheckpointError, match="parts"):
        own.load_state_dict({})
    damaged = {**own.state_dict(), "detector": torch.zeros(8, dtype=torch.uint8)}
    with pytest.raises(CheckpointError, match="River object"):
        own.load_state_dict(damaged)
    assert torch.equal(own.predict(torch.eye(2)), before)


@pytest.fixture(scope="module")
def trained():
    digits = driftline.load("digits")
    model = models.mlp(digits.input_shape, 10, hidden=(32,), normalization="batch", seed=0)
    learner = GradientLearner(model, torch.optim.Adam(model.parameters(), lr=0.01))
    for start in range(0, 1400, 20):
        learner.learn(digits.x[start : start + 20], digits.y[start : start + 20])
    clean = digits.test.x[:340]
    return model.eval(), torch.cat((clean, 0.25 * clean + 0.5, 0.25 * clean + 0.5)), digits.test.y[:340].repeat(3)


def right(adapter, x, y, start):
    answers = torch.cat([adapter.adapt(x[i : i + 20]).argmax(1) for i in range(0, len(x), 20)])
    return float((answers == y)[start:].float().mean())


def test_another_adapter_that_takes_over_when_contrast_is_lost_beats_the_source(trained):
    model, x, y = trained
    switching = SwitchingAdapter(Source(copy.deepcopy(model)), BatchNormAdapter(copy.deepcopy(model)), drift.ADWIN())
    assert right(switching, x, y, 340) > right(Source(model), x, y, 340) + 0.3
    assert switching.alarms == 1 and switching.current is switching.adapters[1]
    switching.reset()
    assert switching.alarms == 0 and switching.current is switching.adapters[0]


def test_the_one_that_takes_over_is_not_watched_by_what_the_other_was_sure_of():
    x = torch.ones(20, 1)
    adapter = SwitchingAdapter(Source(sure(5.0)), Source(sure(0.5)), drift.ADWIN())
    for step in range(60):
        # Inputs shrink once; then the other answers, half as sure of itself, for ever.
        adapter.adapt(x if step < 30 else 0.1 * x)
    assert adapter.alarms == 1


def test_scores_that_are_no_numbers_are_no_answer_and_do_not_blind_the_detector():
    broken = sure(5.0)
    adapter = SwitchingAdapter(Source(broken), Source(sure(5.0)), drift.ADWIN())
    for step in range(60):
        if step == 30:
            adapter.adapters[0].network().weight.data.fill_(float("nan"))
        adapter.adapt(torch.ones(20, 1))
    assert adapter.alarms == 1 and bool(adapter.predict(torch.ones(1, 1)).isfinite().all())


def test_a_switching_adapter_continues_from_its_state_behind_a_switch(trained):
    model, x, _ = trained

    def make():
        return SwitchingAdapter(Source(copy.deepcopy(model)), Tent(copy.deepcopy(model)), drift.ADWIN())

    one, other = make(), make()
    for start in range(0, 800, 20):
        one.adapt(x[start : start + 20])
    assert one.alarms >= 1
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for start in range(800, 1000, 20):
        batch = x[start : start + 20]
        assert torch.equal(one.adapt(batch), other.adapt(batch))
    assert one.alarms == other.alarms


def test_a_switching_adapter_refuses_one_model_for_two_and_foreign_states(trained):
    model, x, _ = trained
    first = Source(copy.deepcopy(model))
    with pytest.raises(ConfigError, match="same model"):
        SwitchingAdapter(first, first, drift.ADWIN())
    with pytest.raises(ConfigError, match="no drift detector"):
        SwitchingAdapter(first, Tent(copy.deepcopy(model)), None)
    adapter = SwitchingAdapter(first, Tent(copy.deepcopy(model)), drift.ADWIN())
    before = adapter.predict(x[:5])
    smaller = SwitchingAdapter(Source(sure(1.0)), Source(sure(2.0)), drift.ADWIN())
    for state in ({}, smaller.state_dict(), {**adapter.state_dict(), "second": smaller.state_dict()["second"]}):
        with pytest.raises(CheckpointError):
            adapter.load_state_dict(state)
    assert torch.equal(adapter.predict(x[:5]), before)


def test_a_switching_adapter_keeps_laws():
    def make(model):
        return SwitchingAdapter(Source(copy.deepcopy(model)), Tent(model), drift.PageHinkley())

    def make_model():
        return models.mlp(4, 3, hidden=(8,), normalization="batch")

    check_adapter(make, make_model, steps=100, devices=["cpu"], laws=["predict changes nothing"])
