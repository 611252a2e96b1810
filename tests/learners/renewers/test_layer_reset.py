from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline import models
from driftline.errors import CheckpointError, ConfigError
from driftline.learners.lockstep.modules import stack_models
from driftline.learners.optimizers import Adam
from driftline.learners.renewers import LayerReset
from tests.learners.states import kept, same


def mlp(seed=0):
    return models.mlp(4, classes=3, hidden=(8, 6), seed=seed)


def normalised():
    layers = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 3)]
    return nn.Sequential(*layers)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def learn(model, optimizer, renewer, steps=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for x in torch.rand(steps, 5, 4, generator=generator):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(5) % 3).backward()
        optimizer.step()
        if renewer is not None:
            renewer.renew(model, optimizer)


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (1, ["5"]),
        (2, ["3", "4", "5"]),
        (3, ["0", "1", "3", "4", "5"]),
        ("all", ["0", "1", "3", "4", "5"]),
        (["1", "3"], ["1", "3"]),
    ],
    ids=str,
)
def test_the_chosen_layers_start_again_every_so_many_steps_and_the_others_go_on(layers, names):
    model = normalised()
    renewer, optimizer = LayerReset(model, layers=layers, every=3), sgd(model)
    assert list(renewer.names) == names
    other = copy.deepcopy(model)
    learn(model, optimizer, renewer, steps=2)
    learn(other, (plain := sgd(other)), None, steps=2)
    assert same(kept(model), kept(other))
    learn(model, optimizer, renewer, seed=1)
    learn(other, plain, None, seed=1)
    state = other.state_dict()
    for key, tensor in model.state_dict().items():
        name, _, what = key.partition(".")
        if name not in names:
            assert torch.equal(tensor, state[key]), key
        elif what.startswith("running") or what == "num_batches_tracked" or name in "14":
            fresh = {"weight": 1, "running_var": 1}.get(what, 0)
            assert (tensor == fresh).all(), key
        else:
            largest = math.sqrt(1 / model[int(name)].in_features)
            assert (tensor != state[key]).all() and (tensor.abs() <= largest).all(), key
            assert tensor.abs().max() > 0.5 * largest, key
    for name, p in model.named_parameters():
        assert (p in optimizer.state) == (name.partition(".")[0] not in names)


def test_each_reset_and_each_seed_draws_other_weights():
    drawn = []
    for seed in (0, 0, 1):
        model = mlp()
        renewer, optimizer = LayerReset(model, every=2, seed=seed), sgd(model)
        learn(model, optimizer, renewer, 2)
        drawn.append(model.head.weight.clone())
        learn(model, optimizer, renewer, 2)
        assert not torch.equal(drawn[-1], model.head.weight)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_convolutions_are_drawn_for_their_fan_in():
    model = models.convnet((1, 8, 8), classes=3, width=4)
    renewer = LayerReset(model, layers="all", every=1)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(9.0)
    renewer.renew(model, sgd(model))
    for module in renewer.modules:
        largest = math.sqrt(1 / module.weight[0].numel())
        assert 0.7 * largest < module.weight.abs().max() <= largest and module.bias.abs().max() <= largest


@pytest.mark.parametrize("make", [sgd, lambda m: Adam(m.parameters(), lr=0.01)], ids=["sgd", "adam"])
@pytest.mark.parametrize("until", [4, 6], ids=["between resets", "right after one"])
def test_a_state_round_trip_continues_bit_for_bit(make, until):
    whole, resumed = mlp(), mlp(seed=5)
    parts = whole, make(whole), LayerReset(whole, layers=2, every=3, seed=1)
    learn(*parts, steps=until)
    state = copy.deepcopy([part.state_dict() for part in parts])
    learn(*parts, steps=8, seed=1)
    others = resumed, make(resumed), LayerReset(resumed, layers=2, every=3, seed=2)
    for part, own in zip(others, state):
        part.load_state_dict(own)
    learn(*others, steps=8, seed=1)
    assert same([kept(part) for part in parts], [kept(part) for part in others])


def test_replicas_draw_what_each_would_draw_alone():
    alone = [mlp(seed) for seed in range(3)]
    together = stack_models(copy.deepcopy(alone))
    LayerReset(together, layers=2, every=1, seed=[5, 6, 7]).renew(together, sgd(together))
    for seed, one in zip((5, 6, 7), alone):
        LayerReset(one, layers=2, every=1, seed=seed).renew(one, sgd(one))
    for name, tensor in together.state_dict().items():
        assert torch.equal(tensor, torch.stack([one.state_dict()[name] for one in alone])), name


def test_frozen_layers_are_passed_over():
    model = mlp()
    model.head.requires_grad_(False)
    assert LayerReset(model, layers=1).names == ("body.3",)
    assert LayerReset(model, layers="all").names == ("body.1", "body.3")


def test_a_name_means_everything_inside():
    assert LayerReset(mlp(), layers=["body"]).names == ("body.1", "body.3")


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def computed():
    return nn.Sequential(nn.Linear(4, 4), torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))


@pytest.mark.parametrize(
    ("make", "given", "reason"),
    [
        (mlp, {"layers": 0}, "layers=0, but the model has 3 trainable layers"),
        (mlp, {"layers": 4}, "layers=4, but the model has 3 trainable layers"),
        (mlp, {"layers": True}, "layers=True: give a number of last layers, names of layers, or 'all'"),
        (mlp, {"layers": "al"}, "layers='al': give a number"),
        (mlp, {"layers": []}, r"layers=\[\]: give a number"),
        (mlp, {"layers": ["haed"]}, "unknown layer in layers 'haed'; did you mean 'head'"),
        (mlp, {"layers": ["body.2"]}, "there are no trainable parameters in it"),
        (mlp, {"every": 0}, "every=0: must be a whole number of at least 1"),
        (mlp, {"every": math.nan}, "every=nan: must be a whole number"),
        (mlp, {"replicas": 2}, "replicas=2, but the model has none"),
        (nn.ReLU, {}, "layers=1, but the model has 0 trainable layers"),
        (nn.ReLU, {"layers": "all"}, "no trainable parameters"),
        (tied, {}, r"layer '2' cannot start again: 2.weight is also a parameter of '0' \(tied weights\)"),
        (computed, {"layers": 2}, "parametrization|whose first weights are not known"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.PReLU()), {}, "'1' is a PReLU, whose first weights are not known"),
    ],
)
def test_what_cannot_be_reset_is_refused(make, given, reason):
    with pytest.raises(ConfigError, match=reason):
        LayerReset(make(), **given)


def test_a_state_of_other_layers_is_refused_before_any_change():
    renewer = LayerReset(mlp(), layers=1)
    before = kept(renewer)
    with pytest.raises(CheckpointError, match=r"resets layers \['body.3', 'head'\], this renewer \['head'\]"):
        renewer.load_state_dict(LayerReset(mlp(), layers=2).state_dict())
    with pytest.raises(CheckpointError, match="layer reset has"):
        renewer.load_state_dict({"step": 3})
    assert same(kept(renewer), before)
