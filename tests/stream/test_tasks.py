"""How a learner is told about tasks, and judged on them."""

from __future__ import annotations

import pytest
import torch

import driftline
from driftline import models
from driftline.errors import ConfigError
from driftline.learners import GradientLearner, TaskCrossEntropy
from driftline.learners.optimizers import TAG, WeightClipping
from driftline.learners.penalties import OnlineEWC
from driftline.metrics import HeldOut
from driftline.scenarios import class_incremental
from driftline.stream import Stream
from driftline.stream.play import play
from tests.stream.players import Recorder


class Told(Recorder):
    """Notes at which sample it was told which task."""

    task_aware = True

    def __init__(self, classes=10):
        super().__init__(classes)
        self.told = []

    def begin_task(self, task, classes=None):
        self.told.append((len(self.calls), task, classes.nonzero().flatten().tolist()))


def digits(**given):
    return class_incremental(driftline.load("digits"), **{"tasks": 5, "order": "sorted", **given})


def there_and_back():
    first, second = digits(tasks=2).segments
    return Stream([first, second, first.take(40)], name="there and back")


def network(seed=0):
    return models.mlp((1, 8, 8), 10, (16,), seed=seed)


def tag_learner(seed=0, lr=0.003, **given):
    model = network(seed)
    return GradientLearner(model, TAG(model.parameters(), lr=lr), TaskCrossEntropy(), **given)


def drain(playback):
    for _ in playback:
        pass


def test_a_task_aware_learner_is_told_before_the_first_batch_of_each_segment():
    learner, stream = Told(), there_and_back()
    drain(play(stream, learner, batch_size=100))
    assert [(task, classes) for _, task, classes in learner.told] == [
        (0, [0, 1, 2, 3, 4]),
        (1, [5, 6, 7, 8, 9]),
        (0, learner.told[2][2]),
    ]
    batches = [-(-len(segment) // 100) for segment in stream.segments]
    calls = [told for told, _, _ in learner.told]
    per_batch = len(learner.calls) // sum(batches)
    assert calls == [0, batches[0] * per_batch, (batches[0] + batches[1]) * per_batch]


def test_a_learner_that_is_not_is_not_told():
    class Plain(Told):
        task_aware = False

    learner = Plain()
    drain(play(digits()[:50], learner, batch_size=10))
    assert learner.told == []


def test_every_part_that_wants_to_know_is_told_also_in_a_wrapper():
    model = network()
    tag, loss, ewc = TAG(model.parameters()), TaskCrossEntropy(), OnlineEWC(model, 1.0, form="boundary")
    learner = GradientLearner(model, WeightClipping(tag, 5.0), loss, penalties=[ewc])
    assert learner.task_aware
    assert not GradientLearner(network(), lambda p: torch.optim.SGD(p, lr=0.1)).task_aware
    drain(play(digits(tasks=2), learner, batch_size=50))
    assert tag.task == 1 and loss.competing.sum() == 50
    assert ewc.importance("head.weight").any()  # of the first task, consolidated when the second began


@pytest.mark.parametrize("stop", [200, 361, 720])
def test_a_stopped_run_goes_on_in_its_task(stop):
    stream, whole, first, second = there_and_back(), tag_learner(), tag_learner(), tag_learner()
    drain(play(stream, whole, batch_size=20))
    playback = play(stream, first, batch_size=20)
    for step in playback:
        if step.position >= stop:
            break
    resumed = play(stream, second, batch_size=20)
    resumed.load_state_dict(playback.state_dict())
    drain(resumed)
    for p, q in zip(whole.model.parameters(), second.model.parameters()):
        assert torch.equal(p, q)


def test_learners_in_lockstep_are_told_classes_of_their_own_streams():
    alone = [tag_learner(seed) for seed in range(2)]
    report = driftline.run(
        lambda seed: digits(order="random", seed=seed)[:300], tag_learner, seeds=range(2), batch_size=10
    )
    for seed, learner in enumerate(alone):
        single = driftline.run(digits(order="random", seed=seed)[:300], learner, batch_size=10)
        value = report.record["replicas"]["results"]["online_accuracy"][seed]
        assert value == pytest.approx(single.results["online_accuracy"], abs=0.02)


def test_replicas_whose_tasks_come_in_other_orders_are_refused():
    first, second = (s.take(50) for s in digits(tasks=2).segments)
    streams = [Stream([first, second, first]), Stream([first, second, second])]
    with pytest.raises(ConfigError, match="same tasks at the same time"):
        driftline.run(streams, tag_learner, seeds=range(2), batch_size=10)


# --- task-incremental evaluation


def test_only_the_classes_of_a_samples_task_compete_in_task_incremental_evaluation():
    class Biased(Recorder):
        """Scores class 0 highest, then the true class, so that it is right where class 0 does not compete."""

        def predict(self, x):
            scores = torch.zeros(len(x), 10)
            truth = nearest.predict(x).argmax(1)
            scores[torch.arange(len(x)), truth] = 1.0
            scores[:, 0] = 2.0
            return scores

    stream = digits()
    nearest = driftline.learners.NearestClassMean(classes=10)
    data = driftline.load("digits")
    nearest.learn(data.x, data.y)
    values = {}
    for compete in ("all", "task"):
        metric = HeldOut(every=None, compete=compete)
        drain(play(stream, Biased(10), batch_size=100, metrics=[metric]))
        values[compete] = metric.matrix[-1]
    assert values["all"][1:].max() == 0
    assert values["task"][1:].min() > 0.8 and values["task"][0] < 0.7


def test_the_learner_is_asked_for_the_samples_tasks():
    class Asked(Recorder):
        def predict_task(self, x, task):
            asked.append((task, len(x)))
            return self.predict(x)

    asked = []
    stream = digits()
    drain(play(stream, Asked(10), batch_size=200, metrics=[HeldOut(every=None, compete="task", batch_size=64)]))
    assert {task for task, _ in asked} == set(range(5))
    held = sum(len(s) for s in stream.held_out())
    assert sum(count for _, count in asked[-held:]) >= held


def test_learning_heads_per_task_forgets_less_than_one_head():
    stream = digits()
    results = {}
    for loss in (torch.nn.functional.cross_entropy, TaskCrossEntropy()):
        model = network()
        learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.05), loss)
        metric = HeldOut(every=None, compete="task")
        drain(play(stream, learner, batch_size=10, metrics=[metric]))
        results[type(loss).__name__] = metric.value()["average_accuracy"]
    assert results["TaskCrossEntropy"] > results["function"] + 0.05


def test_live_streams_have_no_tasks_to_evaluate():
    with pytest.raises(ConfigError, match="tasks"):
        live = driftline.from_iterable([], classes=["a", "b"], name="live")
        play(live, Recorder(2), metrics=[HeldOut(every=10, compete="task")])
