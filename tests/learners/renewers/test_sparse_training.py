"""Dynamic sparse training: masks, schedules, growth and tasks."""

import pytest
import torch
from torch.nn import functional as F

import driftline
from driftline import models
from driftline.errors import CheckpointError, ConfigError
from driftline.learners import GradientLearner, TaskCrossEntropy
from driftline.learners.optimizers import TAG, Adam, ObGD
from driftline.learners.renewers import ContinualBackprop, SparseTraining
from driftline.metrics import HeldOut
from driftline.scenarios import class_incremental


def network(seed=0):
    return models.mlp(6, 4, (12, 8), seed=seed)


def batch(number, size=8):
    draw = torch.Generator().manual_seed(number)
    return torch.randn(size, 6, generator=draw), torch.randint(4, (size,), generator=draw)


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: Adam(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
    "TAG": lambda p: TAG(p, lr=0.01),
    "ObGD": lambda p: ObGD(p),
}


def made(optimizer="momentum", before=(), **options):
    model = network()
    sparse = SparseTraining(model, **{"density": 0.4, "every": 3, **options})
    others = [make(model) for make in before]
    return GradientLearner(model, OPTIMIZERS[optimizer], renewers=[*others, sparse]), sparse


def weights(sparse):
    return {name: sparse.model.get_parameter(name).detach() for name in sparse.names}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("growth", ["random", "unfired", "gradient", "momentum"])
def test_masked_weights_are_exactly_zero_after_every_step_and_counts_stay(optimizer, growth):
    learner, sparse = made(optimizer, growth=growth)
    first = {name: mask.clone() for name, mask in sparse.masks.items()}
    for number in range(12):
        learner.learn(*batch(number))
        for name, weight in weights(sparse).items():
            assert not weight[~sparse.masks[name]].any()
            assert int(sparse.masks[name].sum()) == sparse.counts[name]
    assert any(not torch.equal(first[name], mask) for name, mask in sparse.masks.items())


def test_what_other_renewers_write_is_masked_too():
    learner, sparse = made(before=[lambda m: ContinualBackprop(m, replacement_rate=0.5, maturity=2)])
    for number in range(8):
        learner.learn(*batch(number))
        assert not any(weight[~sparse.masks[name]].any() for name, weight in weights(sparse).items())


def test_gradients_of_masked_weights_do_not_reach_the_optimizer():
    learner, sparse = made(growth="gradient")
    learner.learn(*batch(0))
    for name in sparse.names:
        assert not sparse.model.get_parameter(name).grad[~sparse.masks[name]].any()


def test_grown_weights_begin_at_zero_with_a_fresh_optimizer():
    learner, sparse = made(growth="random", every=4)
    for number in range(3):
        learner.learn(*batch(number))
    before = {name: mask.clone() for name, mask in sparse.masks.items()}
    learner.learn(*batch(3))
    for name, weight in weights(sparse).items():
        grown = sparse.masks[name] & ~before[name]
        buffer = learner.optimizer.state[sparse.model.get_parameter(name)]["momentum_buffer"]
        assert not weight[grown].any() and not buffer[grown].any()
    assert any((sparse.masks[name] & ~before[name]).any() for name in before)


def test_the_weights_with_the_largest_gradients_are_grown():
    model = network()
    sparse = SparseTraining(model, density=0.4, growth="gradient", every=1, fraction=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = {name: mask.clone() for name, mask in sparse.masks.items()}
    F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    dense = {name: model.get_parameter(name).grad.abs().clone() for name in sparse.names}
    sparse.before_step(model)
    optimizer.step()
    sparse.renew(model, optimizer)
    for name, grad in dense.items():
        grown, left = sparse.masks[name] & ~before[name], ~sparse.masks[name] & ~before[name]
        if grown.any() and left.any():
            assert grad[grown].min() >= grad[left].max()


def test_unfired_growth_tries_new_weights_first():
    reached = {}
    for growth in ("random", "unfired"):
        learner, sparse = made(growth=growth, every=1, fraction=0.3, density=0.2)
        ever = {name: mask.clone() for name, mask in sparse.masks.items()}
        for number in range(6):
            learner.learn(*batch(number))
            for name, mask in sparse.masks.items():
                ever[name] |= mask
        reached[growth] = sum(int(mask.sum()) for mask in ever.values())
    assert reached["unfired"] > reached["random"]


def test_a_fraction_of_zero_is_static():
    learner, sparse = made(fraction=0.0, every=1)
    before = {name: mask.clone() for name, mask in sparse.masks.items()}
    for number in range(5):
        learner.learn(*batch(number))
    assert all(torch.equal(before[name], mask) for name, mask in sparse.masks.items())


def test_after_the_decay_masks_stay_until_a_task_begins():
    learner, sparse = made(every=2, decay=4)
    for number in range(4):
        learner.learn(*batch(number))
    settled = {name: mask.clone() for name, mask in sparse.masks.items()}
    for number in range(6):
        learner.learn(*batch(number))
    assert all(torch.equal(settled[name], mask) for name, mask in sparse.masks.items())
    learner.begin_task(1)
    for number in range(4):
        learner.learn(*batch(number))
    assert any(not torch.equal(settled[name], mask) for name, mask in sparse.masks.items())


# --- tasks with masks of their own


@pytest.mark.parametrize("growth", ["random", "gradient"])
@pytest.mark.parametrize("optimizer", ["momentum", "Adam"])
def test_what_an_isolated_task_learned_stays_to_the_bit(growth, optimizer):
    learner, _ = made(optimizer, tasks="isolated", density=0.3, growth=growth)
    x = batch(99)[0]
    answers = {}
    for task in range(3):
        learner.begin_task(task)
        for number in range(10):
            learner.learn(*batch(20 * task + number))
        answers[task] = learner.predict(x)
    assert not torch.equal(answers[0], answers[1])
    now = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    for task, answer in answers.items():
        assert torch.equal(learner.predict_task(x, task), answer)
    assert all(torch.equal(now[name], tensor) for name, tensor in learner.model.state_dict().items())


def test_an_isolated_task_that_comes_back_finds_its_mask_and_goes_on():
    learner, sparse = made(tasks="isolated", density=0.3)
    learner.begin_task(0)
    for number in range(4):
        learner.learn(*batch(number))
    answer, masks = learner.predict(batch(99)[0]), {name: mask.clone() for name, mask in sparse.masks.items()}
    learner.begin_task(1)
    learner.learn(*batch(5))
    learner.begin_task(0)
    assert torch.equal(learner.predict(batch(99)[0]), answer)
    assert all(torch.equal(masks[name], mask) for name, mask in sparse.masks.items())
    learner.learn(*batch(6))
    assert not torch.equal(learner.predict(batch(99)[0]), answer)


def test_isolated_tasks_travel_with_the_state():
    (one, _), (other, _) = made(tasks="isolated"), made(tasks="isolated", seed=7)
    for task in range(2):
        one.begin_task(task)
        for number in range(4):
            one.learn(*batch(number))
    other.load_state_dict(one.state_dict())
    x = batch(99)[0]
    for learner in (one, other):
        learner.learn(*batch(5))
        learner.begin_task(2)
        learner.learn(*batch(6))
    for task in range(3):
        assert torch.equal(one.predict_task(x, task), other.predict_task(x, task))


def test_isolated_tasks_do_not_forget_what_a_shared_network_does():
    stream = class_incremental(driftline.load("digits"), tasks=5, order="sorted")

    def forgetting(tasks):
        model = models.mlp((1, 8, 8), 10, (64,), seed=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sparse = SparseTraining(model, 0.3, every=10, tasks=tasks)
        learner = GradientLearner(model, optimizer, TaskCrossEntropy(), renewers=[sparse])
        metric = HeldOut(every=None, compete="task")
        driftline.run(stream, learner, batch_size=10, metrics=[metric])
        return metric.value()

    isolated, shared = forgetting("isolated"), forgetting("shared")
    assert isolated["forgetting"] == 0.0
    assert isolated["average_accuracy"] > 0.9
    assert shared["forgetting"] > 0.0


def test_seeds_in_lockstep_draw_what_each_draws_alone():
    def make(seed):
        model = models.mlp((1, 8, 8), 10, (16,), seed=seed)
        sparse = SparseTraining(model, 0.4, every=5, growth="unfired", tasks="isolated", seed=seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return GradientLearner(model, optimizer, TaskCrossEntropy(), renewers=[sparse])

    stream = class_incremental(driftline.load("digits"), tasks=2, order="sorted")
    metrics = [HeldOut(every=None, compete="task")]
    together = driftline.run(stream, make, seeds=[0, 1], batch_size=20, metrics=metrics)
    for seed in range(2):
        alone = driftline.run(stream, make(seed), batch_size=20, metrics=[HeldOut(every=None, compete="task")])
        found = together.record["replicas"]["results"]["average_accuracy"][seed]
        assert found == pytest.approx(alone.results["average_accuracy"], abs=0.01)


# --- what is refused


@pytest.mark.parametrize(
    "given, message",
    [
        ({"density": 0.0}, "density=0"),
        ({"density": 1.5}, "density=1.5"),
        ({"density": 0.001, "allocation": "uniform"}, "leaves none of the 72 weights of 'body.1.weight'"),
        ({"allocation": "er"}, "unknown allocation 'er'"),
        ({"growth": "fired"}, "did you mean 'unfired'"),
        ({"tasks": "own"}, "unknown tasks"),
        ({"every": 0}, "every=0"),
        ({"fraction": 1.0}, "fraction=1"),
        ({"every": 100, "decay": 50}, "decay=50 is over before the first exchange"),
        ({"layers": ["body.9"]}, "unknown layer"),
    ],
)
def test_bad_settings_are_refused_before_the_model_changes(given, message):
    model = network()
    with pytest.raises(ConfigError, match=message):
        SparseTraining(model, **given)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), network().parameters()))


def test_a_model_without_weights_to_mask_is_refused():
    with pytest.raises(ConfigError, match="no linear or convolutional layer"):
        SparseTraining(torch.nn.LayerNorm(3))


def test_other_states_are_refused_and_nothing_changes():
    _, sparse = made(growth="unfired")
    before = sparse.state_dict()
    wider = models.mlp(6, 4, (13, 8))
    for state in ({}, made()[1].state_dict(), SparseTraining(wider, growth="unfired").state_dict()):
        with pytest.raises(CheckpointError):
            sparse.load_state_dict(state)
    with pytest.raises(CheckpointError, match="isolated"):
        sparse.load_state_dict({**before, "tasks": made(tasks="isolated")[1].state_dict()["tasks"]})
    assert all(torch.equal(before["masks"][name], mask) for name, mask in sparse.masks.items())


def test_chosen_layers_only_are_sparse():
    model = network()
    sparse = SparseTraining(model, 0.1, layers=["body.1"])
    assert list(sparse.masks) == ["body.1.weight"] and bool((model.head.weight != 0).all())
