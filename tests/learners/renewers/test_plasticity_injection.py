from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline import models
from driftline.errors import CheckpointError, ConfigError
from driftline.learners import GradientLearner, in_lockstep
from driftline.learners.optimizers import UPGD, Adam
from driftline.learners.penalties import L2Init
from driftline.learners.renewers import ContinualBackprop, LayerReset, PlasticityInjection
from driftline.learners.renewers.injected import Injected
from tests.learners.states import kept, same

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adam": lambda params: Adam(params, lr=0.01),
    "upgd": lambda params: UPGD(params, lr=0.01, sigma=0.01, seed=0),
}


def mlp(seed=0):
    return models.mlp(4, classes=3, hidden=(8, 6), seed=seed)


def data(steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(steps, 5, 4, generator=generator)


def learn(model, optimizer, renewer, batches):
    for x in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(5) % 3).backward()
        optimizer.step()
        if renewer is not None:
            renewer.renew(model, optimizer)


@pytest.mark.parametrize("head", [None, "head", "body", "body.3"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_injection_leaves_the_output_as_it_was_bit_for_bit(optimizer, head):
    model, plain = mlp(), mlp()
    injection = PlasticityInjection(model, at=6, head=head)
    learn(model, OPTIMIZERS[optimizer](model.parameters()), injection, data(6))
    learn(plain, OPTIMIZERS[optimizer](plain.parameters()), None, data(6))
    assert injection.module.injected
    x = data(1, seed=3)[0]
    assert torch.equal(model(x), plain(x))


def test_until_then_it_is_not_having_it_bit_for_bit():
    model, plain = mlp(), mlp()
    learn(model, OPTIMIZERS["adam"](model.parameters()), PlasticityInjection(model, at=100), data(20))
    learn(plain, OPTIMIZERS["adam"](plain.parameters()), None, data(20))
    own = {name.replace("trained.", ""): t for name, t in model.state_dict().items()}
    assert all(torch.equal(own[name], t) for name, t in plain.state_dict().items())


@pytest.mark.parametrize("made", ["before", "after"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_only_the_new_head_learns_whenever_the_optimizer_was_made(optimizer, made):
    model = mlp()
    step = OPTIMIZERS[optimizer](model.parameters()) if made == "before" else None
    injection = PlasticityInjection(model, at=4, seed=1)
    step = step or OPTIMIZERS[optimizer](model.parameters())
    old = model.head.trained.weight
    learn(model, step, injection, data(3))
    learn(model, step, injection, data(1, seed=1))
    head = model.head
    assert head.trained.weight is old and torch.equal(head.trained.weight, head.fresh.weight)
    assert head.trained.weight not in step.state
    frozen, fresh = kept(head.frozen), kept(head.fresh)
    learn(model, step, injection, data(5, seed=2))
    assert same(kept(head.frozen), frozen) and same(kept(head.fresh), fresh)
    assert (head.trained.weight != head.fresh.weight).any(1).all()


def test_the_frozen_head_is_the_one_of_the_step_before():
    model = mlp()
    injection, step = PlasticityInjection(model, at=3), OPTIMIZERS["sgd"](model.parameters())
    plain = mlp()
    learn(model, step, injection, data(3))
    learn(plain, OPTIMIZERS["sgd"](plain.parameters()), None, data(3))
    assert torch.equal(model.head.frozen.weight, plain.head.weight)
    assert (model.head.fresh.weight.abs() <= math.sqrt(1 / 6)).all()


def test_gradients_reach_the_layers_before_through_all_parts():
    model = mlp()
    learn(model, OPTIMIZERS["sgd"](model.parameters()), PlasticityInjection(model, at=1), data(1))
    plain = mlp()
    learn(plain, OPTIMIZERS["sgd"](plain.parameters()), None, data(1))
    x = data(1, seed=5)[0]
    for m in (model, plain):
        m.zero_grad()
        m(x).square().sum().backward()
    # The same function, computed as a sum of three.
    torch.testing.assert_close(model.body[3].weight.grad, plain.body[3].weight.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("until", [4, 12], ids=["before", "after"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_learner_resumes_bit_for_bit_before_and_after(until, optimizer):
    def build(seed):
        model = mlp(seed)
        injection = PlasticityInjection(model, at=8, seed=seed)
        return GradientLearner(model, OPTIMIZERS[optimizer](model.parameters()), renewers=[injection])

    whole, resumed = build(1), build(2)
    batches = data(24)
    y = torch.arange(5) % 3
    for x in batches[:until]:
        whole.learn(x, y)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for x in batches[until:]:
        assert torch.equal(whole.observe(x, y), resumed.observe(x, y))
    assert same(kept(whole), kept(resumed)) and resumed.renewers[0].module.injected


def test_a_models_state_alone_says_whether_there_was_an_injection():
    model = mlp()
    injection = PlasticityInjection(model, at=2)
    early = kept(model)
    learn(model, OPTIMIZERS["sgd"](model.parameters()), injection, data(5))
    other = mlp(seed=3)
    PlasticityInjection(other, at=2)
    other.load_state_dict(model.state_dict())
    x = data(1, seed=3)[0]
    assert torch.equal(other(x), model(x))
    other.load_state_dict(early)
    assert not other.head.injected


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_a_copy_is_injected_for_itself(copied):
    model = mlp()
    parts = model, OPTIMIZERS["sgd"](model.parameters()), PlasticityInjection(model, at=5)
    learn(*parts, data(3))
    other = copied(parts)
    learn(*other, data(4, seed=1))
    assert other[0].head.injected and not model.head.injected
    learn(*parts, data(4, seed=1))
    assert same(kept(model), kept(other[0]))


def test_replicas_and_the_views_of_them_do_what_each_does_alone():
    def make(seed):
        model = mlp(seed)
        injection = PlasticityInjection(model, at=4, seed=seed)
        return GradientLearner(model, OPTIMIZERS["sgd"](model.parameters()), renewers=[injection])

    alone, whole = [make(seed) for seed in range(3)], in_lockstep([make(seed) for seed in range(3)])
    assert isinstance(whole, GradientLearner)
    views = [whole.replica(r) for r in range(3)]
    y = torch.arange(5) % 3
    for x in data(12):
        whole.learn(x.expand(3, 5, 4), y.expand(3, 5))
        for one in alone:
            one.learn(x, y)
    x = data(1, seed=3)[0]
    for r, one in enumerate(alone):
        # Batched products sum in another order; 12 steps let that grow.
        torch.testing.assert_close(whole.predict(x.expand(3, 5, 4))[r], one.predict(x), rtol=0, atol=1e-5)
        torch.testing.assert_close(views[r].predict(x), one.predict(x), rtol=0, atol=1e-5)


def test_a_signal_is_asked_at_times_and_its_first_yes_counts():
    model, asked = mlp(), []

    def signal(network):
        assert network is model
        asked.append(injection.step + 1)
        return torch.tensor(len(asked) >= 2)

    injection = PlasticityInjection(model, signal=signal, every=3)
    step = OPTIMIZERS["sgd"](model.parameters())
    learn(model, step, injection, data(5))
    assert not injection.module.injected
    learn(model, step, injection, data(1))
    assert injection.module.injected
    learn(model, step, injection, data(9))
    assert asked == [3, 6]


@pytest.mark.parametrize("nan", [math.nan, torch.tensor(math.nan)])
def test_a_signal_that_is_nan_is_refused_before_any_change(nan):
    model = mlp()
    injection = PlasticityInjection(model, signal=lambda network: nan, every=2)
    step = OPTIMIZERS["sgd"](model.parameters())
    learn(model, step, injection, data(1))
    before = kept(model), kept(injection)
    with pytest.raises(ConfigError, match="the signal is NaN at step 2"):
        injection.renew(model, step)
    assert same(before, (kept(model), kept(injection))) and not injection.module.injected


def test_other_parts_keep_off_the_frozen_heads():
    model = mlp()
    injection = PlasticityInjection(model, at=3)
    parts = [ContinualBackprop(model, 0.1, maturity=2), injection, LayerReset(model, layers=1, every=7)]
    assert parts[2].names == ("head.trained",)
    learner = GradientLearner(
        model, Adam(model.parameters(), lr=0.01, weight_decay=0.1), penalties=[L2Init(model, 0.1)], renewers=parts
    )
    y = torch.arange(5) % 3
    for x in data(3):
        learner.learn(x, y)
    frozen, fresh = kept(model.head.frozen), kept(model.head.fresh)
    for x in data(20):
        learner.learn(x, y)
    assert same(kept(model.head.frozen), frozen) and same(kept(model.head.fresh), fresh)


def test_a_head_that_is_ready_is_taken_as_it_is():
    model = mlp()
    first = PlasticityInjection(model, at=1)
    second = PlasticityInjection(model, at=2)
    assert second.module is first.module and isinstance(model.head.trained, nn.Linear)


@pytest.mark.parametrize(
    ("make", "given", "reason"),
    [
        (mlp, {}, "give either at=, the step of the injection, or signal="),
        (mlp, {"at": 3, "signal": bool}, "give either at="),
        (mlp, {"at": 0}, "at=0: must be a whole number of at least 1"),
        (mlp, {"at": math.nan}, "at=nan: must be a whole number"),
        (mlp, {"signal": bool, "every": 0}, "every=0"),
        (mlp, {"at": 1, "head": "haed"}, "unknown head 'haed'; did you mean 'head'"),
        (mlp, {"at": 1, "replicas": 2}, "replicas=2, but the model has none"),
        (mlp, {"at": 1, "head": "body.2"}, "no trainable parameters"),
        (lambda: nn.Linear(2, 2), {"at": 1}, "the head has to be a part of the model"),
        (lambda: nn.Sequential(nn.ReLU()), {"at": 1}, "the head has to be a part of the model"),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))),
            {"at": 1, "head": "1"},
            "head '1' has dropout or batch normalisation",
        ),
    ],
)
def test_what_cannot_be_injected_is_refused_and_the_model_stays(make, given, reason):
    model = make()
    with pytest.raises(ConfigError, match=reason):
        PlasticityInjection(model, **given)
    assert not any(isinstance(module, Injected) for module in model.modules())


def test_replicas_with_a_signal_are_refused():
    def make(seed):
        model = mlp(seed)
        injection = PlasticityInjection(model, signal=bool)
        return GradientLearner(model, OPTIMIZERS["sgd"](model.parameters()), renewers=[injection])

    with pytest.warns(RuntimeWarning, match="signal= would make replicas inject at different steps"):
        in_lockstep([make(seed) for seed in range(2)])


def test_a_state_of_another_renewer_is_refused_before_any_change():
    injection = PlasticityInjection(mlp(), at=3)
    with pytest.raises(CheckpointError, match="plasticity injection has"):
        injection.load_state_dict({"step": 1, "seed": 0, "layers": []})
    assert injection.step == 0
