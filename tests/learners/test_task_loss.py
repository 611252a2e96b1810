"""Cross-entropy within tasks."""

import copy

import pytest
import torch
from torch.nn import functional as F

from driftline import models
from driftline.errors import CheckpointError, ConfigError
from driftline.learners import GradientLearner, ReservoirReplay, TaskCrossEntropy, in_lockstep
from driftline.testing import check_learner


def classes(*numbers, of=5):
    return torch.isin(torch.arange(of), torch.tensor(numbers))


def test_without_tasks_it_is_cross_entropy():
    scores, y = torch.randn(6, 5), torch.arange(6) % 5
    assert torch.equal(TaskCrossEntropy()(scores, y), F.cross_entropy(scores, y))


def test_only_the_tasks_own_classes_get_gradients():
    loss = TaskCrossEntropy()
    loss.begin_task(0, classes(1, 3))
    scores = torch.randn(4, 5, requires_grad=True)
    y = torch.tensor([1, 3, 3, 1])
    value = loss(scores, y)
    value.backward()
    assert torch.allclose(value, F.cross_entropy(scores[:, [1, 3]], torch.tensor([0, 1, 1, 0])))
    assert not scores.grad[:, [0, 2, 4]].any() and scores.grad[:, [1, 3]].all()


def test_samples_of_earlier_tasks_compete_with_the_classes_of_theirs():
    loss = TaskCrossEntropy()
    loss.begin_task(0, classes(0, 1))
    loss.begin_task(1, classes(2, 3))
    scores = torch.randn(2, 5)
    expected = F.cross_entropy(scores[:1, :2], torch.tensor([1])) + F.cross_entropy(scores[1:, 2:4], torch.tensor([0]))
    assert torch.allclose(loss(scores, torch.tensor([1, 2])), expected / 2)


def test_a_label_of_no_known_task_competes_with_all():
    loss = TaskCrossEntropy()
    loss.begin_task(0, classes(0, 1))
    scores = torch.randn(1, 5)
    assert torch.allclose(loss(scores, torch.tensor([4])), F.cross_entropy(scores, torch.tensor([4])))


def test_outputs_beyond_the_streams_classes_do_not_compete():
    loss = TaskCrossEntropy()
    loss.begin_task(0, classes(0, 1))
    scores = torch.randn(1, 9)
    assert torch.allclose(loss(scores, torch.tensor([0])), F.cross_entropy(scores[:, :2], torch.tensor([0])))


def test_replicas_have_classes_of_their_own():
    together, alone = TaskCrossEntropy(replicas=2), [TaskCrossEntropy(), TaskCrossEntropy()]
    told = torch.stack((classes(0, 1), classes(2, 4)))
    together.begin_task(0, told)
    scores, y = torch.randn(2, 3, 5), torch.tensor([[0, 1, 0], [4, 4, 2]])
    for i, loss in enumerate(alone):
        loss.begin_task(0, told[i])
    assert torch.allclose(together(scores, y), sum(loss(scores[i], y[i]) for i, loss in enumerate(alone)))


def test_unknown_classes_and_other_numbers_are_refused():
    loss = TaskCrossEntropy()
    with pytest.raises(ConfigError, match="unknown"):
        loss.begin_task(0, None)
    loss.begin_task(0, classes(0))
    with pytest.raises(ConfigError, match="before there were"):
        loss.begin_task(1, classes(0, of=4))
    with pytest.raises(CheckpointError):
        loss.load_state_dict({"other": 1})
    assert loss.competing.sum() == 1


def learner(seed=0):
    model = models.mlp(4, 3, (8,), seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return GradientLearner(model, optimizer, TaskCrossEntropy(), replay=ReservoirReplay(50, seed=seed))


def test_learners_with_it_keep_the_laws():
    check_learner(learner, steps=200)


def test_a_state_brings_the_tasks_along():
    one, other = learner(), learner()
    one.begin_task(0, classes(0, 2, of=3))
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.loss.competing, one.loss.competing)


def test_learners_with_it_are_stepped_in_lockstep():
    assert isinstance(in_lockstep([learner(0), learner(1)]), GradientLearner)


def test_in_lockstep_they_keep_what_they_were_told_before():
    alone = [learner(seed) for seed in range(2)]
    for i, one in enumerate(alone):
        one.begin_task(0, classes(i, 2, of=3))
    whole = in_lockstep([copy.deepcopy(one) for one in alone])
    assert isinstance(whole, GradientLearner)
    x, y = torch.randn(2, 6, 4), torch.tensor([[0, 2] * 3, [1, 2] * 3])
    whole.learn(x, y)
    fresh = in_lockstep([learner(0), learner(1)])
    fresh.learn(x, y)
    for i, one in enumerate(alone):
        one.learn(x[i], y[i])
        assert torch.allclose(whole.predict(x)[i], one.predict(x[i]), atol=1e-6)
        assert not torch.allclose(fresh.predict(x)[i], one.predict(x[i]), atol=1e-3)
    # The copy is its own: what the learners are told afterwards does not reach it.
    before = whole.loss.competing.clone()
    alone[0].begin_task(1, classes(1, 2, of=3))
    assert torch.equal(whole.loss.competing, before)


def test_learners_of_which_only_some_were_told_a_task_are_stepped_one_by_one():
    told, other = learner(0), learner(1)
    told.begin_task(0, classes(0, 2, of=3))
    with pytest.warns(RuntimeWarning, match="one by one: the loss TaskCrossEntropy's competing of some differs"):
        whole = in_lockstep([told, other])
    assert whole.learners[0].loss.competing is not None and whole.learners[1].loss.competing is None
