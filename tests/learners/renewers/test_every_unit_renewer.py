"""What ReDo, ReGraMa and self-normalized resets have in common."""

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
from driftline.learners import GradientLearner
from driftline.learners.lockstep.modules import stack_models
from driftline.learners.lockstep.stack import in_lockstep
from driftline.learners.optimizers import Adam
from driftline.learners.renewers import (
    ContinualBackprop,
    LayerReset,
    PlasticityInjection,
    ReDo,
    ReGraMa,
    SelfNormalizedReset,
    find_unit_groups,
)
from tests.learners.states import kept, same

# Settings with which all of them renew some units every few steps.
MAKERS = {
    "ReDo": lambda model, **given: ReDo(model, **{"tau": 0.4, "every": 5, "samples": 6, **given}),
    "ReGraMa": lambda model, **given: ReGraMa(model, **{"tau": 0.4, "every": 5, "steps": 3, **given}),
    "SNR": lambda model, **given: SelfNormalizedReset(
        model, **{"eta": 0.3, "every": 20, "threshold": 12, "lowest": 6, "highest": 200, **given}
    ),
}
OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
}
each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def mlp(seed=0):
    return models.mlp(4, classes=3, hidden=(12, 8), seed=seed).double()


def convnet(seed=0):
    return models.convnet((1, 4, 4), classes=3, width=3, seed=seed).double()


def stream(steps, shape=(4,), size=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, size, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (steps, size), generator=generator)


def recording(renewer):
    """Return a list to which the renewer adds group and units of each renewal from now on."""
    renewed, start_again = [], renewer.start_again

    def noted(number, chosen, optimizer):
        renewed.append((number, chosen.units.tolist()))
        start_again(number, chosen, optimizer)

    renewer.start_again = noted
    return renewed


def learn(model, optimizer, renewer, data):
    for x, y in zip(*data):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        renewer.renew(model, optimizer)


@each
@pytest.mark.parametrize("network", [mlp, convnet])
def test_renewed_units_start_again_and_the_others_stay(make, network):
    model = network()
    renewer, optimizer = make(model), OPTIMIZERS["sgd"](model.parameters())
    x, y = stream(60, (4,) if network is mlp else (1, 4, 4))
    renewed = recording(renewer)
    for one, label in zip(x, y):
        optimizer.zero_grad()
        F.cross_entropy(model(one), label).backward()
        optimizer.step()
        before, done = copy.deepcopy(model), len(renewed)
        renewer.renew(model, optimizer)
        units = dict(renewed[done:])
        silent = torch.zeros(x.shape[2], dtype=torch.bool)
        for i, (group, then) in enumerate(zip(renewer.groups, find_unit_groups(before))):
            new = torch.zeros(group.units, dtype=torch.bool)
            new[units.get(i, [])] = True
            weight, old = group.in_module.weight, then.in_module.weight
            # New units may hear new ones of the layer before, for nobody hears these yet.
            assert not weight[~new][:, silent].any()
            assert torch.equal(weight[~new][:, ~silent], old[~new][:, ~silent]) and (weight[new] != old[new]).all()
            assert not group.in_module.bias[new].any()
            assert not optimizer.state[group.in_module.weight]["momentum_buffer"][new].any()
            silent = new.repeat_interleave(group.out_repeat)
        assert not renewer.groups[-1].out_module.weight[:, silent].any()
    assert len(renewed) > 5


@each
@pytest.mark.parametrize("optimizer_of", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_state_round_trip_continues_bit_for_bit(make, optimizer_of):
    data = stream(60)
    whole = mlp()
    optimizer, renewer = optimizer_of(whole.parameters()), make(whole, seed=3)
    learn(whole, optimizer, renewer, [part[:33] for part in data])
    renewed = recording(renewer)
    state = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), renewer.state_dict()))
    learn(whole, optimizer, renewer, [part[33:] for part in data])
    assert renewed
    resumed = mlp(seed=9)
    parts = resumed, optimizer_of(resumed.parameters()), make(resumed, seed=4)
    for part, own in zip(parts, state):
        part.load_state_dict(own)
    learn(*parts, [part[33:] for part in data])
    assert same(kept(whole), kept(resumed)) and same(kept(renewer), kept(parts[2]))


@each
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_a_copy_of_model_optimizer_and_renewer_continues_alike(make, copied):
    data = stream(40)
    model = mlp()
    optimizer, renewer = OPTIMIZERS["sgd"](model.parameters()), make(model)
    learn(model, optimizer, renewer, [part[:20] for part in data])
    other, other_optimizer, other_renewer = copied((model, optimizer, renewer))
    learn(other, other_optimizer, other_renewer, [part[20:] for part in data])
    learn(model, optimizer, renewer, [part[20:] for part in data])
    assert same(kept(model), kept(other))


@each
def test_a_state_of_another_renewer_is_refused_before_any_change(make):
    model = mlp()
    renewer, optimizer = make(model), OPTIMIZERS["sgd"](model.parameters())
    learn(model, optimizer, renewer, stream(7))
    before = kept(renewer)
    wider = models.mlp(4, classes=3, hidden=(12, 9)).double()
    other = make(wider)
    learn(wider, OPTIMIZERS["sgd"](wider.parameters()), other, stream(7))
    deeper = make(models.mlp(4, classes=3, hidden=(12, 8, 8)))
    for state, reason in [
        (ContinualBackprop(mlp()).state_dict(), "the state has"),
        (deeper.state_dict(), r"is that of layers \['body.1', 'body.3', 'body.5'\]"),
        (other.state_dict(), "the state's"),
    ]:
        with pytest.raises(CheckpointError, match=reason):
            renewer.load_state_dict(state)
        assert same(kept(renewer), before)


OWN = {"ReDo": ("tau", [0.2, 0.4, 0.6]), "ReGraMa": ("tau", [0.2, 0.4, 0.6]), "SNR": ("eta", [0.1, 0.3, 0.5])}


@pytest.mark.parametrize("network", [mlp, convnet])
@pytest.mark.parametrize("name", MAKERS)
def test_replicas_with_settings_of_their_own_do_what_each_does_alone(name, network):
    (setting, values), make = OWN[name], MAKERS[name]

    def learner(seed, value):
        model = network(seed)
        renewer = make(model, seed=seed, **{setting: value})
        return GradientLearner(model, OPTIMIZERS["sgd"](model.parameters()), renewers=[renewer])

    alone = [learner(seed, value) for seed, value in enumerate(values)]
    together = in_lockstep([learner(seed, value) for seed, value in enumerate(values)])
    assert isinstance(together, GradientLearner) and getattr(together.renewers[0], setting) == values
    x, y = stream(60, (4,) if network is mlp else (1, 4, 4), size=6)
    for now, labels in zip(x.unflatten(1, (3, 2)), y.unflatten(1, (3, 2))):
        together.learn(now, labels)
        for r, one in enumerate(alone):
            one.learn(now[r], labels[r])
    for key, tensor in together.model.state_dict().items():
        theirs = torch.stack([one.model.state_dict()[key] for one in alone])
        # Batched products sum in another order; 60 steps let that grow.
        torch.testing.assert_close(tensor, theirs, rtol=0, atol=1e-9)
    assert any((group.in_module.bias == 0).any() for group in together.renewers[0].groups)


def test_all_of_them_work_side_by_side_and_resume():
    def build():
        model = models.mlp(4, classes=3, hidden=(12, 8), seed=1)
        renewers = [make(model, seed=2) for make in MAKERS.values()]
        renewers += [ContinualBackprop(model, 0.02, maturity=5), LayerReset(model, every=17)]
        renewers += [PlasticityInjection(model, at=23)]
        return GradientLearner(model, Adam(model.parameters(), lr=0.01), renewers=renewers)

    x, y = stream(60)
    whole, resumed = build(), build()
    for one, label in zip(x[:30].float(), y):
        whole.learn(one, label)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for one, label in zip(x[30:].float(), y[30:]):
        whole.learn(one, label)
        resumed.learn(one, label)
    assert same(kept(whole), kept(resumed))
    assert all(p.isfinite().all() for p in whole.model.parameters())


@each
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_do_not_stop_it(make, value):
    model = mlp()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    renewer = make(model)
    with torch.no_grad():
        model.body[1].weight[0] = value
    x, y = stream(20)
    for one, label in zip(x, y):
        optimizer.zero_grad()
        F.cross_entropy(model(one), label).backward()
        renewer.renew(model, optimizer)
    assert renewer.step == 20


@each
def test_a_model_without_hidden_units_is_refused(make):
    with pytest.raises(ConfigError, match="no hidden layer whose units could be renewed"):
        make(nn.Linear(4, 3))


@each
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"initialization": "he"}, "unknown initialization 'he'"),
        ({"groups": []}, "groups is empty"),
        ({"replicas": 3}, "replicas=3, but the model has none"),
        ({"every": 0}, "every=0: must be a whole number of at least 1"),
        ({"every": 2.5}, "every=2.5: must be a whole number"),
        ({"every": [5, 6]}, r"every=\[5, 6\]: must be a whole number of at least 1, the same for all replicas"),
        ({"seed": 1.5}, "seed=1.5: must be a whole number"),
    ],
)
def test_bad_settings_are_refused_before_hooks_are_put_on(make, given, reason):
    model = mlp()
    with pytest.raises(ConfigError, match=reason):
        make(model, **given)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("ReDo", {"tau": -0.1}, "tau=-0.1: must be a number of at least 0 and at most 1"),
        ("ReDo", {"tau": 1.5}, "tau=1.5"),
        ("ReDo", {"tau": math.nan}, "tau=nan"),
        ("ReDo", {"tau": [0.1, 0.2]}, "tau has 2 values, but there are no replicas"),
        ("ReDo", {"samples": 0}, "samples=0"),
        ("ReDo", {"variant": "code"}, "unknown variant 'code'"),
        ("ReGraMa", {"tau": 2}, "tau=2"),
        ("ReGraMa", {"tau": math.nan}, "tau=nan"),
        ("ReGraMa", {"steps": 0}, "steps=0"),
        ("SNR", {"eta": 0.0}, "eta=0.0"),
        ("SNR", {"eta": 1.0}, "eta=1.0"),
        ("SNR", {"eta": math.nan}, "eta=nan"),
        ("SNR", {"threshold": 0}, "threshold=0"),
        ("SNR", {"lowest": 0}, "lowest=0"),
        ("SNR", {"lowest": 300}, "lowest=300 is above highest=200"),
    ],
)
def test_thresholds_out_of_range_are_refused(name, given, reason):
    with pytest.raises(ConfigError, match=reason):
        MAKERS[name](mlp(), **given)


@each
def test_replicas_need_a_seed_each(make):
    with pytest.raises(ConfigError, match="seed=0 for 3 replicas"):
        make(stack_models([mlp(seed) for seed in range(3)]), seed=0)


@pytest.mark.parametrize("make", [MAKERS["ReDo"], MAKERS["SNR"]])
def test_renewing_twice_after_one_step_is_refused_before_any_change(make):
    model = mlp()
    renewer, optimizer = make(model), OPTIMIZERS["sgd"](model.parameters())
    learn(model, optimizer, renewer, stream(3))
    before = kept(renewer)
    with pytest.raises(ConfigError, match="no forward pass with gradients has used the units of 'body.1'"):
        renewer.renew(model, optimizer)
    assert same(kept(renewer), before)
    renewer.close()
    assert not any(module._forward_pre_hooks for module in model.modules())
