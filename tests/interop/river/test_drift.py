import copy

import torch
from river import drift

import driftline
from driftline import models
from driftline.adapters import Source, Tent
from driftline.interop.river import DriftResponse, ReplayMore, SwitchingAdapter
from driftline.learners import GradientLearner, NearestClassMean, ReservoirReplay
from driftline.testing import check_adapter, check_learner

LAWS = ["predict changes nothing", "observe is predict, then learn", "bad input is refused and changes nothing"]


def changed_halfway(samples=600):
    x = torch.randn(samples, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    y[samples // 2 :] = 1 - y[samples // 2 :]
    return [(x[i], int(y[i])) for i in range(samples)]


def test_starting_afresh_at_an_alarm_beats_going_on():
    def accuracy(learner):
        return driftline.run(driftline.from_iterable(changed_halfway(), classes=2), learner).results["online_accuracy"]

    watched = DriftResponse(NearestClassMean(classes=2), drift.ADWIN())
    assert accuracy(watched) > accuracy(NearestClassMean(classes=2)) + 0.1
    assert watched.alarms >= 1


def test_a_watched_learner_keeps_laws_and_continues_from_its_state():
    def make():
        return DriftResponse(NearestClassMean(classes=3), drift.PageHinkley())

    check_learner(make, steps=100, devices=["cpu"], laws=LAWS)
    stream = changed_halfway(200)
    one = make()
    for x, y in stream[:120]:
        one.learn(x[None], torch.tensor([y]))
    two = make()
    two.load_state_dict(one.state_dict())
    for x, y in stream[120:]:
        for learner in (one, two):
            learner.learn(x[None], torch.tensor([y]))
    assert torch.equal(one.predict(torch.eye(2)), two.predict(torch.eye(2))) and one.alarms == two.alarms


def test_more_is_replayed_for_a_while_after_an_alarm():
    model, more = models.mlp(2, 2, hidden=(8,)), ReplayMore(updates=5, samples=50)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    learner = GradientLearner(model, sgd, replay=ReservoirReplay(50), replay_ratio=more)
    more(learner)
    assert [more.ratio(position, model) for position in (0, 49, 50)] == [5, 5, 1]
    watched = DriftResponse(learner, drift.ADWIN(), more)
    for x, y in changed_halfway():
        watched.learn(x[None], torch.tensor([y]))
    assert watched.alarms >= 1


def test_another_adapter_takes_over_at_an_alarm():
    torch.manual_seed(0)
    models_ = [models.mlp(4, 3, hidden=(8,), normalization="batch") for _ in range(2)]
    adapter = SwitchingAdapter(Source(models_[0]), Tent(models_[1]), drift.ADWIN())
    for step in range(60):
        adapter.adapt(torch.randn(10, 4, generator=torch.Generator().manual_seed(step)) * (1 if step < 30 else 30))
    assert adapter.alarms >= 1 and isinstance(adapter.adapters[1], Tent)
    adapter.reset()
    assert adapter.alarms == 0


def test_a_switching_adapter_keeps_laws():
    def make(model):
        return SwitchingAdapter(Source(copy.deepcopy(model)), Tent(model), drift.PageHinkley())

    def make_model():
        return models.mlp(4, 3, hidden=(8,), normalization="batch")

    check_adapter(make, make_model, steps=100, devices=["cpu"], laws=["predict changes nothing"])
