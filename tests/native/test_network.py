from __future__ import annotations

import pytest
import torch
from torch import nn

from driftline import models
from driftline.learners.lockstep.modules import stack_models
from driftline.native.network import UnsupportedError, dense_layers


def described(model):
    layers, flattens = dense_layers(model)
    return [(layer.name, layer.activation) for layer in layers], flattens


def test_layers_are_found_in_the_order_of_the_forward_pass():
    model = models.mlp((2, 3), classes=4, hidden=(8, 5), activation=nn.Tanh)
    assert described(model) == ([("body.1", "tanh"), ("body.3", "tanh"), ("head", "identity")], True)


def test_replicas_have_the_layers_of_their_models():
    one = [models.mlp(6, classes=4, hidden=(8,), seed=s) for s in range(2)]
    assert described(stack_models(one)) == described(one[0])


def test_a_single_layer_is_a_model():
    assert described(nn.Linear(3, 2)) == ([("", "identity")], False)


def test_nesting_and_identities_do_not_matter():
    model = nn.Sequential(nn.Sequential(nn.Identity(), nn.Linear(3, 4)), nn.Sequential(nn.Sigmoid()), nn.Identity())
    assert described(model) == ([("0.1", "sigmoid")], False)


def test_flattening_between_layers_does_not_flatten_the_input():
    assert described(nn.Sequential(nn.Linear(3, 4), nn.Flatten(), nn.Linear(4, 2)))[1] is False


class Own(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.GELU()), "1 is a GELU"),
        (nn.Sequential(nn.Linear(3, 4), nn.Dropout()), "1 is a Dropout"),
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), "1 is a LayerNorm"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), "0 is a Conv2d"),
        (Own(nn.Linear(3, 4)), "the model is a Own"),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Tanh()), "2 is an activation that follows no linear layer"),
        (nn.Sequential(nn.ReLU(), nn.Linear(3, 4)), "0 is an activation that follows no linear layer"),
        (nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(-0.1)), "1 has a negative slope"),
        (nn.Sequential(nn.Flatten(2), nn.Linear(3, 4)), "0 flattens some dimensions only"),
        (nn.Sequential(nn.Flatten()), "the model has no linear layer"),
        (nn.Sequential(nn.Linear(3, 4)).double(), "0 is in torch.float64 on cpu"),
        (nn.Sequential(nn.Linear(3, 4)).to("meta"), "0 is in torch.float32 on meta"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))), "0 is more than a linear layer"),
        (nn.Sequential(nn.Linear(3, 4).requires_grad_(False)), "a parameter of 0 is frozen"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_plain_perceptron_is_named(model, reason):
    with pytest.raises(UnsupportedError, match=reason):
        dense_layers(model)


def test_hooks_are_named():
    model = nn.Sequential(nn.Linear(3, 4))
    handle = model.register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedError, match="a hook on the model"):
        dense_layers(model)
    handle.remove()
    handle = model[0].register_full_backward_hook(lambda *_: None)
    with pytest.raises(UnsupportedError, match="a hook on 0"):
        dense_layers(model)
    handle.remove()
    handle = model[0].weight.register_hook(lambda gradient: gradient)
    with pytest.raises(UnsupportedError, match="a hook on a parameter of 0"):
        dense_layers(model)
    handle.remove()
    dense_layers(model)


def test_weights_that_are_shared_are_named():
    layer = nn.Linear(3, 3)
    with pytest.raises(UnsupportedError, match="share weights"):
        dense_layers(nn.Sequential(layer, nn.ReLU(), nn.Sequential(layer)))
    other = nn.Linear(3, 3)
    other.weight = layer.weight
    with pytest.raises(UnsupportedError, match="share weights"):
        dense_layers(nn.Sequential(layer, other))


def test_a_weight_that_is_not_contiguous_is_named():
    layer = nn.Linear(3, 4)
    layer.weight = nn.Parameter(torch.zeros(3, 4).T)
    with pytest.raises(UnsupportedError, match="not contiguous"):
        dense_layers(nn.Sequential(layer))
