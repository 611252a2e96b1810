from __future__ import annotations

import pytest
import torch
from torch import nn

from driftline.errors import ConfigError
from driftline.models import convnet, mlp, resnet20
from driftline.plasticity.watch import hidden_layers, watching


def sizes(network, x, layers=None):
    """What is seen of a forward pass: units of each hidden layer, its kind, and the shape of the features."""
    seen = []

    def note(h, kind):
        seen.append((h.shape[1], kind))

    with watching(network, note, layers) as glance:
        network(x)
    return seen, None if glance.features is None else tuple(glance.features.shape)


def test_activation_modules_are_the_hidden_layers_and_the_head_sees_the_features():
    network = mlp(6, 3, (5, 4))
    assert sizes(network, torch.zeros(2, 6)) == ([(5, "relu"), (4, "relu")], (2, 4))


def test_convolutions_have_channels_and_the_features_are_flat():
    seen, features = sizes(convnet((1, 8, 8), 10, width=3), torch.zeros(2, 1, 8, 8))
    assert seen == [(3, "relu"), (6, "relu"), (12, "relu")]
    assert features == (2, 12)


def test_the_features_of_a_residual_network_are_pooled_ones():
    seen, features = sizes(resnet20(input_shape=(3, 8, 8)).eval(), torch.zeros(2, 3, 8, 8))
    assert len(seen) == 19
    assert features == (2, 64)


def test_without_a_last_linear_layer_the_last_activation_is_the_features():
    extractor = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh())
    assert sizes(extractor, torch.zeros(2, 6)) == ([(5, "tanh")], (2, 5))


def test_a_module_used_twice_is_two_layers():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)
            self.activation = nn.Sigmoid()

        def forward(self, x):
            return self.head(self.activation(self.second(self.activation(self.first(x)))))

    assert sizes(Shared(), torch.zeros(2, 6)) == ([(5, "sigmoid"), (4, "sigmoid")], (2, 4))


def test_layers_are_measured_before_what_follows_writes_over_them():
    network = nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(), nn.ReLU(inplace=True), nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight.copy_(-torch.eye(2))
        network[0].bias.zero_()
    signs = []
    with watching(network, lambda h, kind: signs.append(h.sign().tolist())):
        network(torch.ones(1, 2))
    assert signs == [[[-1.0, -1.0]], [[0.0, 0.0]]]


def test_named_layers_take_the_place_of_activation_modules():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(torch.relu(self.first(x)))

    network = Functional()
    with pytest.raises(ConfigError, match=r"Functional has no activation modules.*layers=\[...\] of first, head"):
        hidden_layers(network)
    with pytest.raises(ConfigError, match="unknown layer 'frist'; did you mean 'first'"):
        hidden_layers(network, ["frist"])
    assert sizes(network, torch.zeros(2, 6), ["first"]) == ([(5, "relu")], (2, 5))


def test_a_named_layer_may_give_a_tuple():
    network = nn.Sequential(nn.Unflatten(1, (3, 2)), nn.GRU(2, 4, batch_first=True))
    assert sizes(network, torch.zeros(5, 6), ["1"])[0] == [(3, "relu")]


def test_hooks_are_gone_afterwards_even_after_an_error():
    network = mlp(6, 3, (5, 4))
    with pytest.raises(ZeroDivisionError), watching(network, print):
        raise ZeroDivisionError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
