import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline.adapters import LOW_RANK, BatchNormAdapter, Tent, low_rank
from driftline.errors import ConfigError
from driftline.models import resnet20
from driftline.stream.seeds import generator
from tests.adapters.trained import error, source_model


def filled(layer):
    """Return a layer whose added part is not zero."""
    layer.up.data.normal_(generator=generator(1))
    return layer


def test_at_first_it_predicts_exactly_what_the_model_does_and_leaves_the_model_alone():
    model, x = resnet20(seed=0).eval(), torch.rand(3, 3, 32, 32, generator=generator(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(low_rank(model)(x), model(x))
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_linear_layer_adds_the_product_to_its_weight():
    layer = nn.Linear(12, 9)
    twin = filled(low_rank(layer, rank=3))
    x = torch.randn(2, 5, 12, generator=generator(0))
    assert torch.allclose(twin(x), F.linear(x, layer.weight + twin.up @ twin.down, layer.bias), atol=1e-5)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_adds_the_product_to_its_kernel(mode, bias):
    layer = nn.Conv2d(6, 10, (3, 5), stride=2, padding=(2, 4), dilation=2, bias=bias, padding_mode=mode)
    twin = filled(low_rank(layer, rank=2))
    x = torch.randn(2, 6, 15, 15, generator=generator(0))
    merged = nn.Conv2d(6, 10, (3, 5), stride=2, padding=(2, 4), dilation=2, bias=bias, padding_mode=mode)
    merged.load_state_dict(layer.state_dict())
    merged.weight.data += torch.einsum("or,rikl->oikl", twin.up.data[:, :, 0, 0], twin.down.data)
    assert torch.allclose(twin(x), merged(x), atol=1e-4)


def test_weights_load_under_their_own_names_and_seeds_decide_the_draws():
    model = resnet20(seed=0)
    first, again, other = low_rank(model), low_rank(model), low_rank(model, seed=1)
    missing, unexpected = first.load_state_dict(resnet20(seed=1).state_dict(), strict=False)
    assert not unexpected
    assert {name.rpartition(".")[2] for name in missing} == {"down", "up"}
    draws = [next(p for name, p in m.named_parameters() if name.endswith("down")) for m in (first, again, other)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_few_parameters_are_trained():
    adapter = Tent(low_rank(resnet20(seed=0), rank=2), parameters=LOW_RANK)
    trained = sum(p.numel() for p in adapter.model.parameters() if p.requires_grad)
    assert 0 < trained < 0.1 * sum(p.numel() for p in adapter.model.parameters())


def test_layers_by_pattern_others_stay_as_they_are():
    model = low_rank(source_model(), rank=1, layers="3")
    assert type(model[0]) is nn.Conv2d
    assert type(model[8]) is nn.Linear
    assert model[3].down.shape == (1, 16, 3, 3)
    model = low_rank(source_model(), rank=2, layers=["0", "8"])
    assert [hasattr(model[i], "down") for i in (0, 3, 8)] == [True, False, True]


def test_entropy_goes_down_a_low_rank_way_and_with_it_the_error():
    adapted = error(Tent(low_rank(source_model(), rank=2), parameters=LOW_RANK, lr=1e-3))
    assert adapted < error(BatchNormAdapter(source_model()))


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (nn.Linear(8, 8), {"rank": 0}, "rank=0"),
        (nn.Sequential(nn.ReLU()), {}, "none at all"),
        (nn.Linear(8, 3), {"rank": 4}, "no such linear layer"),
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)), {}, "without groups"),
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)), {"layers": "0"}, "names '0', a Conv2d"),
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU()), {"layers": "1"}, "names '1', a ReLU"),
    ],
)
def test_what_cannot_be_done_is_named(model, settings, message):
    with pytest.raises(ConfigError, match=message):
        low_rank(model, **settings)
