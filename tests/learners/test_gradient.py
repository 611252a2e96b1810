import json
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.learners import ClassBalancedReplay, GradientLearner, ReservoirReplay
from driftline.learners.penalties import L2
from driftline.stream import checkpoint
from tests.learners.states import kept, same

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def network(seed=0, *between):
    """A small network with the given modules in the middle; its weights depend on the seed only."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 16), *between, nn.ReLU(), nn.Linear(16, 4))
    rng = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.3, generator=rng)
        else:
            nn.init.zeros_(p)
    return model


def regular(seed=0):
    return network(seed, nn.BatchNorm1d(16), nn.Dropout(0.5))


def stream(steps=50, batch=6, seed=1):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, batch, 2, 4, generator=rng)
    return list(zip(x, torch.randint(4, (steps, batch), generator=rng)))


class Scale:
    """A penalty, a renewer and a ratio that note when they are used."""

    def __init__(self, log, name, strength=0.0, updates=1):
        self.log, self.name, self.strength, self.updates = log, name, strength, updates

    def __call__(self, model):
        self.log.append(self.name)
        return self.strength * sum(p.square().sum() for p in model.parameters())

    def renew(self, model, optimizer):
        self.log.append((self.name, model[1].weight.detach().clone()))

    def ratio(self, position, model):
        self.log.append(position)
        return self.updates


def test_a_step_is_the_one_a_plain_loop_makes_bit_for_bit():
    learner, model = GradientLearner(network(), SGD), network()
    optimizer = SGD(model.parameters())
    for x, y in stream():
        assert torch.equal(learner.predict(x), model(x))
        learner.learn(x, y)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert same(learner.model.state_dict(), model.state_dict())


@pytest.mark.parametrize("replay_batch", [None, 3])
@pytest.mark.parametrize("updates", [1, 2])
def test_replay_is_a_loop_over_both_batches_with_one_mean(replay_batch, updates):
    learner = GradientLearner(
        network(), SGD, replay=ReservoirReplay(20, seed=2), replay_ratio=updates, replay_batch=replay_batch
    )
    model, memory = network(), ReservoirReplay(20, seed=2)
    optimizer = SGD(model.parameters())
    for x, y in stream():
        learner.learn(x, y)
        for _ in range(updates):
            old = memory.sample(replay_batch or len(x))
            inputs, labels = (x, y) if old is None else (torch.cat((x, old[0])), torch.cat((y, old[1])))
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        memory.add(x, y)
        assert same(learner.model.state_dict(), model.state_dict())
    assert same(learner.replay.state_dict(), memory.state_dict())


@pytest.mark.parametrize("build", [network, regular])
def test_observe_is_predict_then_learn(build):
    shared, separate = GradientLearner(build(), SGD), GradientLearner(build(), SGD)
    for step, (x, y) in enumerate(stream()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step)
            scores = shared.observe(x, y)
            torch.manual_seed(step)
            assert torch.equal(scores, separate.predict(x))
            separate.learn(x, y)
        assert same(shared.state_dict(), separate.state_dict())


def test_observe_with_replay_is_predict_then_learn():
    shared, separate = (GradientLearner(network(), SGD, replay=ReservoirReplay(20), replay_ratio=2) for _ in range(2))
    for x, y in stream():
        # A matrix product over both batches may round differently from one over the new batch.
        torch.testing.assert_close(shared.observe(x, y), separate.predict(x), rtol=1e-5, atol=1e-5)
        separate.learn(x, y)
        assert same(shared.state_dict(), separate.state_dict())


def test_predict_changes_nothing_and_leaves_frozen_parts_frozen():
    learner = GradientLearner(regular().train(), SGD)
    batch_norm, dropout = learner.model[2].eval(), learner.model[3]
    before, rng = kept(learner), torch.get_rng_state()
    scores = learner.predict(stream()[0][0])
    assert not scores.requires_grad and not batch_norm.training and dropout.training and learner.model.training
    assert same(learner.state_dict(), before) and torch.equal(torch.get_rng_state(), rng)


def test_a_ratio_of_zero_only_remembers():
    learner = GradientLearner(network(), SGD, replay=ReservoirReplay(100), replay_ratio=0)
    for x, y in stream(5):
        assert torch.equal(learner.observe(x, y), network()(x))
    assert same(learner.model.state_dict(), network().state_dict())
    assert len(learner.replay) == learner.position == 30


def test_a_ratio_may_depend_on_the_position():
    log = []
    learner = GradientLearner(network(), SGD, replay_ratio=Scale(log, "ratio", updates=2))
    twice = GradientLearner(network(), SGD, replay_ratio=2)
    for x, y in stream(3):
        learner.learn(x, y)
        twice.learn(x, y)
    assert log == [0, 6, 12]
    assert same(learner.model.state_dict(), twice.model.state_dict())


def test_penalties_are_added_to_the_loss_in_order():
    log, model = [], network()
    learner = GradientLearner(network(), SGD, penalties=[Scale(log, "a", 0.01), Scale(log, "b", 0.1)])
    optimizer, penalties = SGD(model.parameters()), learner.penalties
    for x, y in stream(20):
        learner.learn(x, y)
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) + penalties[0](model) + penalties[1](model)).backward()
        optimizer.step()
        assert same(learner.model.state_dict(), model.state_dict())
    assert log == ["a", "b"] * 40


def test_renewers_are_called_in_order_after_each_optimizer_step():
    log = []
    renewers = [Scale(log, "a"), Scale(log, "b")]
    learner = GradientLearner(network(), SGD, renewers=renewers, replay_ratio=2)
    plain = GradientLearner(network(), SGD)
    x, y = stream()[0]
    learner.learn(x, y)
    assert [name for name, _ in log] == ["a", "b", "a", "b"]
    plain.learn(x, y)
    assert torch.equal(log[0][1], plain.model[1].weight) and torch.equal(log[1][1], plain.model[1].weight)
    plain.learn(x, y)
    assert torch.equal(log[3][1], plain.model[1].weight)


X, Y = stream()[0]
WRONG = {
    "NaN": (X.clone().fill_(torch.nan), Y),
    "Inf": (X.clone().index_fill_(0, torch.tensor([4]), torch.inf), Y),
    "wrong shape": (X[:, :, :3], Y),
    "no batch dimension": (X[0, 0, 0], Y),
    "wrong dtype": (X.double(), Y),
    "bytes": (X.byte(), Y),
    "not a tensor": (X.numpy(), Y),
    "empty": (X[:0], Y[:0]),
    "label too large": (X, Y.clone().fill_(4)),
    "negative label": (X, Y - Y.max() - 1),
    "float labels": (X, Y.float()),
    "one label too few": (X, Y[:-1]),
    "labels in a column": (X, Y.unsqueeze(1)),
}


@pytest.mark.parametrize("seen", [0, 4])
@pytest.mark.parametrize("case", WRONG)
def test_a_batch_that_cannot_be_used_is_refused_before_anything_changes(case, seen):
    learner = GradientLearner(network(), SGD, replay=ReservoirReplay(20))
    for x, y in stream(seen, seed=3):
        learner.learn(x, y)
    before = kept(learner)
    x, y = WRONG[case]
    for use in (learner.learn, learner.observe):
        with pytest.raises(InputError):
            use(x, y)
    if y is Y:
        with pytest.raises(InputError):
            learner.predict(x)
    assert same(learner.state_dict(), before)
    learner.learn(X, Y)


def test_labels_of_any_integer_type_are_taken():
    narrow, plain = (GradientLearner(network(), SGD, replay=ReservoirReplay(20)) for _ in range(2))
    for x, y in stream(5):
        assert torch.equal(narrow.observe(x, y.to(torch.int16)), plain.observe(x, y))
    assert same(narrow.state_dict(), plain.state_dict())


def test_a_batch_of_one_is_learned_from():
    one, many = GradientLearner(network(), SGD), GradientLearner(network(), SGD)
    one.learn(X[:1], Y[:1])
    many.learn(X[:1].repeat(4, 1, 1), Y[:1].repeat(4))
    for p, q in zip(one.model.parameters(), many.model.parameters()):
        torch.testing.assert_close(p, q)


def test_a_loss_for_regression_takes_float_targets():
    model = nn.Linear(4, 1)
    learner = GradientLearner(model, partial(torch.optim.SGD, lr=0.1), nn.MSELoss(), replay=ReservoirReplay(50))
    x = torch.randn(200, 4, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([[1.0], [-2.0], [0.5], [0.0]])
    for batch in x:
        learner.observe(batch, batch @ weight + 3)
    torch.testing.assert_close(learner.predict(x[0]), x[0] @ weight + 3, rtol=0, atol=1e-3)


@pytest.mark.parametrize("build", [network, regular])
@pytest.mark.parametrize("memory", [ReservoirReplay, ClassBalancedReplay])
def test_a_saved_learner_continues_bit_identically(build, memory, tmp_path):
    def learner(seed):
        return GradientLearner(build(seed), torch.optim.Adam, replay=memory(20, seed), replay_ratio=2)

    whole, resumed = learner(0), learner(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for x, y in stream(20):
            whole.learn(x, y)
        checkpoint.save(tmp_path / "state", whole.state_dict())
        resumed.load_state_dict(checkpoint.load(tmp_path / "state"))
        for step, (x, y) in enumerate(stream(20, seed=8)):
            torch.manual_seed(step)
            scores = whole.observe(x, y)
            torch.manual_seed(step)
            assert torch.equal(scores, resumed.observe(x, y))
    assert same(whole.state_dict(), resumed.state_dict())


OTHERS = {
    "layer missing": lambda: GradientLearner(nn.Linear(8, 4), SGD, replay=ReservoirReplay(20)),
    "layer more": lambda: GradientLearner(nn.Sequential(*network(), nn.Linear(4, 4)), SGD, replay=ReservoirReplay(20)),
    "batch normalisation": lambda: GradientLearner(regular(), SGD, replay=ReservoirReplay(20)),
    "more classes": lambda: GradientLearner(
        nn.Sequential(*list(network())[:-1], nn.Linear(16, 5)), SGD, replay=ReservoirReplay(20)
    ),
    "another optimizer": lambda: GradientLearner(network(), torch.optim.Adam, replay=ReservoirReplay(20)),
    "fewer parameters held": lambda: GradientLearner(
        model := network(), SGD(model[1].parameters()), replay=ReservoirReplay(20)
    ),
    "another capacity": lambda: GradientLearner(network(), SGD, replay=ReservoirReplay(21)),
    "another memory": lambda: GradientLearner(network(), SGD, replay=ClassBalancedReplay(20)),
    "no memory": lambda: GradientLearner(network(), SGD),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_state_of_another_learner_is_refused_and_nothing_changes(other):
    learner, saved = GradientLearner(network(3), SGD, replay=ReservoirReplay(20)), OTHERS[other]()
    for x, y in stream(5):
        learner.learn(x, y)
        if other != "layer missing":
            saved.learn(x, y)
    before, settings = kept(learner), learner.describe()
    with pytest.raises(CheckpointError):
        learner.load_state_dict(saved.state_dict())
    assert same(learner.state_dict(), before) and learner.describe() == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters())}, "none of the model's parameters"),
        ({"replay_ratio": -1}, "replay_ratio=-1"),
        ({"replay_batch": 0}, "replay_batch=0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        GradientLearner(**{"model": network(), "optimizer": SGD, **settings})


def test_the_description_names_every_part_and_is_json():
    learner = GradientLearner(
        network(), SGD, replay=ReservoirReplay(20), penalties=[Scale([], "a")], renewers=[Scale([], "b")]
    )
    parts = json.loads(json.dumps(learner.describe()))["parameters"]
    assert parts["optimizer"]["lr"] == 0.1 and parts["optimizer"]["momentum"] == 0.9
    assert parts["replay"] == {"name": "ReservoirReplay", "capacity": 20}
    assert [p["name"] for p in parts["penalties"] + parts["renewers"]] == ["Scale", "Scale"] and parts[
        "loss"
    ] == "cross_entropy"
    assert parts["parameters"] == 8 * 16 + 16 + 16 * 4 + 4


def test_a_single_sample_trains_a_batch_normalised_model_by_its_running_statistics():
    torch.default_generator.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))
    learner.learn(torch.randn(8, 4), torch.arange(8) % 3)
    mean, weight = model[1].running_mean.clone(), model[0].weight.clone()
    learner.learn(torch.randn(1, 4), torch.tensor([2]))
    assert torch.equal(model[1].running_mean, mean)
    assert not torch.equal(model[0].weight, weight)
    assert model[1].training


def test_a_pull_after_the_step_is_no_penalty_and_a_penalty_no_renewer():
    model = network()
    with pytest.raises(ConfigError, match="renewers="):
        GradientLearner(model, SGD, penalties=[L2(0.1, decoupled=True)])
    with pytest.raises(ConfigError, match="penalties="):
        GradientLearner(model, SGD, renewers=[L2(0.1)])
