"""What holds for each of the optimizers."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline import models
from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.learners import GradientLearner, in_lockstep
from driftline.learners.optimizers import (
    TAG,
    UPGD,
    Adam,
    HesScale,
    ObGD,
    Perturbed,
    PerturbedSGD,
    ShrinkAndPerturb,
    WeightClipping,
)
from driftline.learners.renewers.unit_groups import find_unit_groups
from driftline.stream.parts import settings_of

MAKERS = {
    "PerturbedSGD": lambda params, **given: PerturbedSGD(params, lr=0.1, sigma=0.1, decay=0.01, **given),
    "ShrinkAndPerturb": lambda params, **given: ShrinkAndPerturb(params, sigma=0.01, form="fresh", **given),
    "UPGD": lambda params, **given: UPGD(params, lr=0.1, sigma=0.1, weight_decay=0.01, **given),
    "UPGD pool": lambda params, **given: UPGD(params, lr=0.1, sigma=0.1, noise="pool", **given),
    "UPGD local": lambda params, **given: UPGD(params, lr=0.1, sigma=0.1, scaling="local", moments=True, **given),
    "UPGD fused": lambda params, **given: UPGD(params, lr=0.1, sigma=0.1, fused=True, **given),
    "ObGD": lambda params, seed=None, **given: ObGD(params, lamda=0.5, **given),
    "ObGD adaptive": lambda params, seed=None, **given: ObGD(params, lamda=0.5, beta2=0.9, **given),
    "Adam": lambda params, seed=None, **given: Adam(params, weight_decay=0.1, decoupled=True, **given),
    "Adam released": lambda params, seed=None, **given: Adam(params, variant="released", **given),
    "TAG": lambda params, seed=None, **given: TAG(params, lr=0.01, **given),
    "TAG-Adam": lambda params, seed=None, **given: TAG(params, lr=0.01, base="adam", **given),
    "Perturbed": lambda params, replicas=None, **given: Perturbed(
        Adam(params, replicas=replicas), sigma=0.1, decay=0.01, replicas=replicas, **given
    ),
    "WeightClipping": lambda params, seed=None, **given: WeightClipping(PerturbedSGD(params, lr=1.0, sigma=0.0)),
    "both wrappers": lambda params, **given: WeightClipping(Perturbed(UPGD(params, **given), 0.1, **given)),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def network():
    return models.mlp(6, 4, hidden=(5,), seed=0)


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        draw = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 6, generator=draw), torch.randint(4, (8,), generator=draw)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def same(model, other):
    return all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters()))


@every
def test_is_an_optimizer_that_trains(make):
    model, before = network(), network()
    optimizer = make(model.parameters())
    assert isinstance(optimizer, torch.optim.Optimizer)
    train(model, optimizer, 3)
    assert not same(model, before)
    assert all(p.isfinite().all() for p in model.parameters())


@every
def test_a_saved_state_continues_bit_identically(make):
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, 5)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    other = copy.deepcopy(model)
    resumed = make(other.parameters(), seed=99)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    train(model, optimizer, 5, start=5)
    train(other, resumed, 5, start=5)
    assert same(model, other)


@every
def test_a_loaded_state_is_a_copy(make):
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, 2)
    state = optimizer.state_dict()
    before = copy.deepcopy(state)
    other = copy.deepcopy(model)
    resumed = make(other.parameters())
    resumed.load_state_dict(state)
    train(other, resumed, 2)
    for own, old in zip(state["state"].values(), before["state"].values()):
        for name, value in old.items():
            assert torch.equal(own[name], value) if isinstance(value, torch.Tensor) else own[name] == value


@every
@pytest.mark.parametrize("through", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_and_pickles_continue_bit_identically(make, through):
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    other, resumed = through((model, optimizer))
    train(model, optimizer, 3, start=3)
    train(other, resumed, 3, start=3)
    assert same(model, other)


@every
def test_another_optimizers_state_is_refused_and_nothing_changes(make):
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, 1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(CheckpointError):
        optimizer.load_state_dict(torch.optim.Adagrad(model.parameters()).state_dict())
    fewer = make(list(model.parameters())[:2])
    with pytest.raises(CheckpointError):
        optimizer.load_state_dict(fewer.state_dict())
    wider = models.mlp(6, 4, hidden=(7,))
    theirs = make(wider.parameters())
    train(wider, theirs, 1)
    if any(theirs.state.values()):  # what remembers nothing of single weights fits any
        with pytest.raises(CheckpointError, match="another model"):
            optimizer.load_state_dict(theirs.state_dict())
    assert str(optimizer.state_dict()) == str(before)


@every
def test_parameters_without_a_gradient_are_passed_over(make):
    model = network()
    model.body[1].weight.requires_grad_(False)
    optimizer = make(model.parameters())
    before = model.body[1].weight.clone()
    train(model, optimizer, 2)
    assert torch.equal(model.body[1].weight, before)
    assert not any(optimizer.state[model.body[1].weight].values())


@every
def test_empty_parameters_do_no_harm(make):
    model, empty = network(), nn.Parameter(torch.zeros(0, 3))
    optimizer = make([*model.parameters(), empty])
    empty.grad = torch.zeros_like(empty)
    draw = torch.randn(3, 6)
    F.cross_entropy(model(draw), torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


@every
def test_no_gradient_at_all_is_no_step(make):
    model, before = network(), network()
    make(model.parameters()).step()
    assert same(model, before)


@every
def test_sparse_gradients_are_refused_before_anything_changes(make):
    table, dense = nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2)
    optimizer = make([*table.parameters(), *dense.parameters()])
    dense(table(torch.tensor([1, 2]))).sum().backward()
    before = [p.detach().clone() for p in (*table.parameters(), *dense.parameters())]
    with pytest.raises(InputError, match="sparse"):
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip((*table.parameters(), *dense.parameters()), before))


@every
def test_a_parameter_listed_twice_is_refused(make):
    p = nn.Parameter(torch.ones(3, 2))
    with pytest.warns(UserWarning, match="duplicate"), pytest.raises(ConfigError, match="listed twice"):
        make([p, p])


@every
def test_tied_weights_take_one_step(make):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    model = Tied()
    optimizer = make(model.parameters())
    assert len(optimizer.param_groups[0]["params"]) == 3
    train(model, optimizer, 2)
    assert model.first.weight is model.second.weight
    assert model.first.weight.isfinite().all()


@every
def test_torchs_global_generator_is_left_alone(make):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    p = nn.Parameter(torch.ones(4, 3))
    optimizer = make([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), before)


@every
def test_a_closure_is_evaluated_first_and_its_loss_returned(make):
    model, twin = network(), network()
    x, y = torch.randn(8, 6), torch.randint(4, (8,))

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer, plain = make(model.parameters()), make(twin.parameters())
    loss = optimizer.step(closure)
    expected = F.cross_entropy(twin(x), y)
    expected.backward()
    plain.step()
    assert torch.equal(loss, expected)
    assert same(model, twin)


@every
def test_a_scheduler_changes_the_step(make):
    model, other = network(), network()
    optimizer, plain = make(model.parameters()), make(other.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.0)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, 1)
    schedule.step()
    assert all(group["lr"] == 0 for group in optimizer.param_groups)
    middle = copy.deepcopy(model)
    train(model, optimizer, 1, start=1)
    train(other, plain, 2)
    assert not same(model, other)
    assert not all(torch.equal(p, old) for p, old in zip(model.parameters(), before))
    if make is not MAKERS["ShrinkAndPerturb"]:  # whose noise, in this form, does not depend on the learning rate
        assert same(model, middle)


@every
def test_groups_have_their_own_settings(make):
    model, other = network(), network()
    optimizer = make([{"params": model.body.parameters()}, {"params": model.head.parameters()}])
    whole = make(other.parameters())
    train(model, optimizer, 2)
    train(other, whole, 2)
    for p, q in zip(model.parameters(), other.parameters()):
        assert torch.allclose(p, q, atol=1e-6)


@every
def test_named_parameters_are_taken(make):
    model, other = network(), network()
    train(model, make(model.named_parameters()), 2)
    train(other, make(other.parameters()), 2)
    assert same(model, other)


@every
def test_a_learner_with_it_resumes_bit_identically(make):
    def learner():
        model = network()
        return GradientLearner(model, make(model.parameters()))

    whole, first, second = learner(), learner(), learner()
    x, y = torch.randn(12, 6), torch.randint(4, (12,))
    for one in (whole, first):
        for i in range(6):
            one.learn(x[i : i + 2], y[i : i + 2])
    second.load_state_dict(first.state_dict())
    for one in (whole, second):
        for i in range(6, 10):
            one.learn(x[i : i + 2], y[i : i + 2])
    assert same(whole.model, second.model)


@every
def test_every_argument_can_be_read_back(make):
    optimizer = make(network().parameters())
    wanted = set(inspect.signature(type(optimizer)).parameters) - {"params"}
    assert set(settings_of(optimizer)) == wanted


@pytest.mark.parametrize("kind", [PerturbedSGD, ShrinkAndPerturb, UPGD, ObGD, Adam, TAG])
def test_settings_of_the_wrong_length_or_range_are_refused(kind):
    p = nn.Parameter(torch.ones(3, 4, 2))
    seeds = {"seed": [1, 2, 3]} if kind in (PerturbedSGD, ShrinkAndPerturb, UPGD) else {}
    with pytest.raises(ConfigError, match="lr has 2 values, but there are 3 replicas"):
        kind([p], lr=[0.1, 0.2], replicas=3, **seeds)
    with pytest.raises(ConfigError, match="lr has 3 values, but there are no replicas"):
        kind([p], lr=[0.1, 0.2, 0.3])
    with pytest.raises(ConfigError, match="lr=-1"):
        kind([p], lr=-1.0)
    with pytest.raises(ConfigError, match="one slice for each replica in front"):
        kind([p], replicas=2, **({"seed": [1, 2]} if seeds else {}))
    if seeds:
        with pytest.raises(ConfigError, match="give one for each"):
            kind([p], replicas=3, seed=1)


def test_a_refused_group_is_not_kept():
    model = network()
    optimizer = Adam(model.body.parameters())
    with pytest.raises(ConfigError, match="lr=-1"):
        optimizer.add_param_group({"params": list(model.head.parameters()), "lr": -1.0})
    assert len(optimizer.param_groups) == 1


@pytest.mark.cuda
@every
def test_steps_on_a_device_are_those_of_the_cpu(make):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model, other = network(), network().cuda()
    optimizer, on_device = make(model.parameters()), make(other.parameters())
    for step in range(5):
        draw = torch.Generator().manual_seed(step)
        for p, q in zip(model.parameters(), other.parameters()):
            p.grad = torch.randn(p.shape, generator=draw)
            q.grad = p.grad.cuda()
        optimizer.step()
        on_device.step()
    for p, q in zip(model.parameters(), other.parameters()):
        assert torch.allclose(p, q.cpu(), rtol=1e-4, atol=1e-5)


PER_SEED = {
    "PerturbedSGD": lambda m, s: PerturbedSGD(m.parameters(), lr=0.1 * (s + 1), sigma=0.1, seed=s),
    "UPGD": lambda m, s: UPGD(m.parameters(), lr=0.1 * (s + 1), sigma=0.1, seed=s),
    "UPGD of features": lambda m, s: UPGD(
        m.parameters(), sigma=0.1 * s, seed=s, scope="feature", features=find_unit_groups(m)
    ),
    "UPGD of second order": lambda m, s: UPGD(m.parameters(), 0.1, seed=s, order=2, curvature=HesScale(m)),
    "ObGD": lambda m, s: ObGD(m.parameters(), kappa=2.0 + s),
    "Adam": lambda m, s: Adam(m.parameters(), lr=0.01 * (s + 1), beta1=0.9 - 0.1 * s),
    "TAG": lambda m, s: TAG(m.parameters(), lr=0.01 * (s + 1), b=1.0 + s),
    "both wrappers": lambda m, s: WeightClipping(Perturbed(Adam(m.parameters()), sigma=0.1 * s, seed=s), kappa=1.0 + s),
    "Perturbed around torch's": lambda m, s: Perturbed(
        torch.optim.SGD(m.parameters(), lr=0.1 * (s + 1)), sigma=0.1, seed=s
    ),
}


@pytest.mark.parametrize("make", PER_SEED.values(), ids=PER_SEED)
def test_learners_in_lockstep_do_what_each_does_alone(make):
    def learner(seed):
        model = models.mlp(6, 4, hidden=(5,), seed=seed)
        return GradientLearner(model, make(model, seed))

    together, alone = in_lockstep([learner(seed) for seed in range(3)]), [learner(seed) for seed in range(3)]
    draw = torch.Generator().manual_seed(0)
    for _ in range(10):
        x, y = torch.randn(3, 2, 6, generator=draw), torch.randint(4, (3, 2), generator=draw)
        together.learn(x, y)
        for i in range(3):
            alone[i].learn(x[i], y[i])
    for i, one in enumerate(alone):
        for p, q in zip(one.model.parameters(), together.model.parameters()):
            assert torch.allclose(p, q[i], atol=1e-5)  # ten steps of batched products in another order
