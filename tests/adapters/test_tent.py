import pytest
import torch
from torch import nn

from driftline.adapters import Tent
from driftline.adapters.losses import entropy
from driftline.errors import ConfigError, InputError
from tests.adapters.recorded import Case, Recorded
from tests.golden import golden_names


@pytest.mark.parametrize("name", golden_names("adapters", "tent_*"))
def test_recorded(name):
    case = Case(name)
    adapter = Tent(case.model(), optimizer=case.step(), **case.hparams)
    case.play(adapter)
    case.compare(adapter.model)


def test_a_frozen_model_in_training_mode_is_adapted():
    model = Recorded().train().requires_grad_(False)
    adapter = Tent(model, lr=0.01)
    x = torch.rand(20, 3, 8, 8)
    before = entropy(adapter.predict(x)).mean()
    for _ in range(5):
        adapter.adapt(x)
    assert entropy(adapter.predict(x)).mean() < before
    assert not any(p.requires_grad for p in model.parameters()) and model.training


def test_dropout_is_off():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    x = torch.randn(10, 4)
    assert torch.equal(Tent(model).adapt(x), Tent(model).adapt(x))


def test_inplace_adapts_the_model_itself():
    model = Recorded()
    adapter = Tent(model, inplace=True, lr=0.1)
    before = model.bn1.weight.detach().clone()
    adapter.adapt(torch.rand(4, 3, 8, 8))
    assert adapter.network() is model and not torch.equal(before, model.bn1.weight)
    adapter.reset()
    assert torch.equal(before, model.bn1.weight)


def test_layer_normalisation_is_enough():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    adapter = Tent(model, lr=0.01)
    adapter.adapt(torch.randn(5, 4))
    assert not torch.equal(adapter.model[1].weight, model[1].weight)


def test_parameters_by_name_by_pattern_and_by_function():
    for parameters in (["fc.*"], "fc.*", lambda name: name.startswith("fc")):
        model = Recorded()
        adapter = Tent(model, parameters=parameters, lr=0.01)
        adapter.adapt(torch.rand(4, 3, 8, 8))
        assert not torch.equal(adapter.model.fc.weight, model.fc.weight)
        assert torch.equal(adapter.model.bn1.weight, model.bn1.weight)


def test_a_model_without_normalisation_layers_is_refused():
    with pytest.raises(ConfigError, match="no normalisation layer"):
        Tent(nn.Linear(4, 3))
    with pytest.raises(ConfigError, match="chooses none"):
        Tent(Recorded(), parameters=["layer9.*"])


@pytest.mark.parametrize("settings", [{"steps": 0}, {"lr": 0.0}, {"optimizer": "adan"}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Tent(Recorded(), **settings)


def test_nan_activations_change_nothing():
    model = Recorded()
    with torch.no_grad():
        model.fc.bias[0] = float("nan")
    adapter = Tent(model)
    before = {k: v.clone() for k, v in adapter.model.state_dict().items()}
    with pytest.raises(InputError, match="NaN"):
        adapter.adapt(torch.rand(4, 3, 8, 8))
    assert all(torch.equal(v.nan_to_num(), before[k].nan_to_num()) for k, v in adapter.model.state_dict().items())
