from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline.errors import ConfigError
from driftline.learners.renewers import ContinualBackpropLayer
from driftline.learners.renewers.initialization import bound
from tests.golden import golden, golden_names
from tests.learners.renewers.recorded import RecordedDraws, close, convolutional, initialised, mlp


def with_layers(model, config):
    """The model with a renewing layer behind each hidden layer's activation and pooling; and these."""
    given = config["hyperparameters"]
    named = dict(model.named_children())
    if "conv" in config["method"]:
        places = {"conv2": ("conv1", "conv2", "bn"), "flatten": ("conv2", "fc3", ""), "fc4": ("fc3", "fc4", "")}
    else:
        places = {"fc2": ("fc1", "fc2", "n1"), "fc3": ("fc2", "fc3", "n2")}
    modules, renewing = [], []
    for name, module in named.items():
        if name in places:
            before, after, norm = places[name]
            renewing.append(
                ContinualBackpropLayer(
                    named[before],
                    named[after],
                    [named[norm]] if norm in named else [],
                    given["replacement_rate"],
                    given["maturity_threshold"],
                    given["init"],
                    config["activation"],
                    given["decay_rate"],
                )
            )
            modules.append(renewing[-1])
        modules.append(module)
    return nn.Sequential(*modules), renewing


@pytest.mark.parametrize("name", golden_names("learners", "cbp_layer_*"))
def test_it_follows_the_recorded_case(name):
    arrays, config = golden("learners", name)
    given = config["hyperparameters"]
    dtype = getattr(torch, config["dtype"])
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    if "conv" in config["method"]:
        named = convolutional(config["activation"], config["norm"])
    else:
        sizes = [arrays[f"init/fc{i}.weight"].shape for i in (1, 2, 3)]
        named = mlp([sizes[0][1], *(s[0] for s in sizes)], config["activation"], config["norm"])
    initialised(named, arrays, dtype)
    model, renewing = with_layers(named, config)
    for i, layer in enumerate(renewing):
        assert bound(layer.group, given["init"], released=True) == pytest.approx(config["bounds"][i], rel=1e-15)
        layer.draws = RecordedDraws(arrays, config["bounds"], layer=i)
    if config["optimizer"] == "SGD":
        optimizer = torch.optim.SGD(named.parameters(), given["lr"], given["momentum"])
    else:
        optimizer = torch.optim.Adam(named.parameters(), given["lr"])
    x, y = torch.from_numpy(arrays["x"]).to(dtype), torch.from_numpy(arrays["y"])
    events, selected = np.unique(arrays["replace/step"]).tolist(), arrays["gradsel_step"].tolist()
    for t in range(len(x)):
        logits = model(x[t])
        assert close(logits, arrays["logits"][t], tolerance), t
        optimizer.zero_grad()
        F.cross_entropy(logits, y[t]).backward()
        for key, parameter in named.named_parameters():
            if t in selected:
                assert close(parameter.grad, arrays[f"gradsel/{key}"][selected.index(t)], tolerance), (t, key)
            if t in events:
                recorded = arrays[f"param_after_backward/{key}"][events.index(t)]
                assert close(parameter, recorded, tolerance), (t, key)
        optimizer.step()
        for key, parameter in named.named_parameters():
            assert close(parameter, arrays[f"param/{key}"][t + 1], tolerance), (t, key)
        for key, buffer in named.named_buffers():
            if f"buffer/{key}" in arrays:
                assert close(buffer, arrays[f"buffer/{key}"][t + 1], tolerance), (t, key)
        for i, layer in enumerate(renewing):
            assert np.array_equal((layer.step - layer.birth).numpy(), arrays[f"cbp/ages/layer{i}"][t])
            assert np.array_equal((layer.birth == t + 1).numpy(), arrays[f"cbp/replaced/layer{i}"][t])
            assert close(layer.utility, arrays[f"cbp/util/layer{i}"][t], tolerance)
            assert layer.counter.carry == pytest.approx(arrays[f"cbp/accumulator/layer{i}"][t].item(), abs=1e-6)


def network(**given):
    torch.manual_seed(0)
    first, last = nn.Linear(4, 8), nn.Linear(8, 3)
    given = {"replacement_rate": 0.1, "maturity": 3, **given}
    return nn.Sequential(first, nn.ReLU(), ContinualBackpropLayer(first, last, **given), last)


def learn(model, steps, seed=0, momentum=0.0):
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum)
    for x, y in zip(torch.rand(steps, 2, 4, generator=generator), torch.randint(0, 3, (steps, 2), generator=generator)):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    tensors = [name for name, value in mine.items() if isinstance(value, torch.Tensor)]
    return all(torch.equal(mine[name], theirs[name]) for name in tensors)


def test_a_rate_of_zero_is_no_layer_bit_for_bit():
    model = network(replacement_rate=0.0)
    plain = copy.deepcopy(nn.Sequential(model[0], model[1], model[3]))
    learn(model, 20)
    learn(plain, 20)
    assert torch.equal(plain[0].weight, model[0].weight) and torch.equal(plain[2].weight, model[3].weight)


def test_only_training_with_gradients_counts():
    model = network()
    with torch.no_grad():
        model(torch.rand(2, 4))
    model.eval()
    model(torch.rand(2, 4)).sum().backward()
    assert model[2].step == 0
    model.train()
    model(torch.rand(2, 4)).sum().backward()
    assert model[2].step == 1


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_its_state_is_the_models(decay):
    model, other = network(decay=decay), network(decay=decay)
    learn(model, 15)
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    saved.seek(0)
    other.load_state_dict(torch.load(saved, weights_only=True))
    for one in (model, other):
        learn(one, 15, seed=1)
    assert model[2].birth.max() > 15 and same(model, other)


def test_a_copied_model_renews_its_own_units():
    model = network()
    learn(model, 10)
    copied = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    learn(copied, 10, seed=1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if isinstance(v, torch.Tensor))
    assert copied[2].birth.max() > 10
    learn(model, 10, seed=1)
    assert same(model, copied)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"replacement_rate": 2.0}, "replacement_rate=2.0"),
        ({"maturity": -1}, "maturity=-1"),
        ({"decay": 1.0}, "decay=1.0"),
        ({"initialization": "he"}, "unknown initialization 'he'"),
        ({"activation": "rely"}, "unknown activation 'rely'; did you mean 'relu'"),
    ],
)
def test_bad_settings_are_refused(given, reason):
    with pytest.raises(ConfigError, match=reason):
        network(**given)


@pytest.mark.parametrize(
    ("first", "last", "reason"),
    [
        (nn.Linear(4, 8), nn.ReLU(), "out_layer=ReLU: give linear layers or convolutions"),
        (nn.Linear(4, 8), nn.Linear(7, 2), "do not correspond to its 8 units"),
        (nn.Conv2d(1, 8, 3), nn.Linear(7, 2), "do not correspond to its 8 units"),
        (nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 2), "is frozen"),
    ],
)
def test_layers_must_follow_one_another(first, last, reason):
    with pytest.raises(ConfigError, match=reason):
        ContinualBackpropLayer(first, last)
