from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline import models
from driftline.errors import ConfigError
from driftline.learners.lockstep.modules import stack_models
from driftline.learners.renewers import UnitGroup, find_unit_groups
from driftline.learners.renewers.unit_groups import check_groups


def described(groups):
    return [(g.name, g.units, g.out_repeat, g.activation, len(g.norms)) for g in groups]


class Functional(nn.Module):
    """Everything between the layers as functions and methods."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.first, self.last = nn.Linear(3 * 9, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = F.max_pool2d(F.leaky_relu(self.norm(self.conv(x)), 0.1), 2)
        x = torch.tanh(self.first(x.view(x.size(0), -1)))
        return self.last(F.dropout(x * 0.5, training=self.training))


class Heads(nn.Module):
    def __init__(self, inputs=6):
        super().__init__()
        self.body, self.act = nn.Linear(4, 6), nn.ReLU()
        self.policy, self.value = nn.Linear(6, 3), nn.Linear(inputs, 1)

    def forward(self, x):
        x = self.act(self.body(x))
        return self.policy(x), self.value(x)


class Made(nn.Module):
    """Two layers and whatever a test does between them."""

    def __init__(self, between, inputs=6):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(inputs, 2)
        self.between = between

    def forward(self, x):
        return self.third(self.between(self, x))


def test_hidden_layers_of_an_mlp_are_groups_and_the_output_layer_is_none():
    network = models.mlp(8, classes=3, hidden=(6, 5), activation=nn.Tanh)
    groups = find_unit_groups(network)
    assert described(groups) == [("body.1", 6, 1, "tanh", 0), ("body.3", 5, 1, "tanh", 0)]
    assert groups[1].in_module is network.body[3] and groups[1].out_modules == (network.head,)


def test_a_channel_owns_all_its_pixels_columns_behind_a_flattening():
    network = models.convnet((1, 12, 12), classes=3, width=4)
    assert described(find_unit_groups(network)) == [
        ("body.0", 4, 1, "relu", 0),
        ("body.3", 8, 9, "relu", 0),
        ("body.7", 16, 1, "relu", 0),
    ]


def test_functions_and_methods_between_layers_are_followed():
    assert described(find_unit_groups(Functional())) == [("conv", 3, 9, "leaky_relu", 1), ("first", 5, 1, "tanh", 0)]


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_normalisations_belong_to_the_units_in_front_of_them(norm):
    model = nn.Sequential(nn.Linear(4, 6), norm(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 2))
    (group,) = find_unit_groups(model)
    assert group.norms == (model[1],)


def test_a_channel_mean_over_pixels_gives_one_column_for_each_unit():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.GroupNorm(3, 3), nn.SELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )
    assert described(find_unit_groups(model)) == [("0", 3, 1, "selu", 1)]


def test_replicas_have_the_groups_of_the_single_model():
    make = [models.convnet((1, 8, 8), classes=3, width=4, seed=seed) for seed in range(3)]
    single, stacked = find_unit_groups(make[0]), find_unit_groups(stack_models(make))
    assert described(stacked) == described(single)
    assert [(g.lead, s.lead, g.out_weights == s.out_weights) for g, s in zip(single, stacked)] == [(0, 1, True)] * 3


def test_several_layers_may_hear_the_same_units():
    model = Heads()
    (group,) = find_unit_groups(model)
    assert group.out_modules == (model.policy, model.value)
    assert group.out_weights == 4


def test_an_activation_module_may_be_used_again():
    model = Made(lambda self, x: self.act(self.second(self.act(self.first(x)))))
    model.act = nn.ReLU()
    assert [g.name for g in find_unit_groups(model)] == ["first", "second"]


def test_residual_units_are_named_and_can_be_left_out():
    network = models.resnet20()
    with pytest.raises(ConfigError, match=r"'body.conv1', 'body.layer1.0.conv2', .*: its units go through an addition"):
        find_unit_groups(network)
    groups = find_unit_groups(network, skip=["body.conv1", "*.conv2"])
    assert [g.name for g in groups] == [f"body.layer{s}.{b}.conv1" for s in (1, 2, 3) for b in (0, 1, 2)]
    assert all(len(g.norms) == 1 and g.activation == "relu" for g in groups)


@pytest.mark.parametrize(
    ("between", "inputs", "reason"),
    [
        (lambda self, x: self.second(self.first(x)) + self.first(x), 6, "'first' is used 2 times"),
        (lambda self, x: torch.cat((self.first(x), self.second(self.first(x))), 1), 12, "'first' is used 2 times"),
        (lambda self, x: self.second(torch.relu(self.first(x))) * x.sum(), 6, "operation of two tensors"),
        (lambda self, x: torch.softmax(self.second(self.first(x)), -1), 6, "go through softmax"),
        (lambda self, x: torch.cat((z := self.second(self.first(x)), -z), 1), 12, "go through a concatenation"),
        (lambda self, x: self.first(x), 6, "'second': it is not called"),
        (lambda self, x: self.second(self.first(x)) if x.sum() > 0 else x, 6, "cannot be traced"),
    ],
    ids=["used twice", "concatenated", "product", "softmax", "both signs", "unused", "branching"],
)
def test_what_cannot_be_resolved_is_named(between, inputs, reason):
    with pytest.raises(ConfigError, match=reason):
        find_unit_groups(Made(between, inputs))


def test_a_concatenation_of_two_layers_is_named():
    def between(self, x):
        hidden = torch.relu(self.first(x))
        return torch.cat((hidden, self.second(hidden)), 1)

    with pytest.raises(ConfigError, match="'first', 'second': its units go through a concatenation"):
        find_unit_groups(Made(between, 12))


def test_layers_of_unknown_kind_are_named():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(ConfigError, match="'0': it is a Embedding, whose units are not known"):
        find_unit_groups(model)
    assert [g.name for g in find_unit_groups(model, skip=["0"])] == ["1"]


def test_tied_weights_are_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    with pytest.raises(ConfigError, match=r"0.weight is also a parameter of '2' \(tied weights\)"):
        find_unit_groups(model)


def test_a_module_with_two_names_is_not_tied():
    model = Made(lambda self, x: self.second(torch.relu(self.first(x))))
    model.layers = nn.ModuleList([model.first, model.second, model.third])
    assert [g.name for g in find_unit_groups(model)] == ["first", "second"]


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "1.weight", "3.weight"])
def test_frozen_parameters_are_named(frozen):
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 2))
    model.get_parameter(frozen).requires_grad_(False)
    with pytest.raises(ConfigError, match=rf"{frozen} is frozen \(requires_grad=False\)"):
        find_unit_groups(model)


def test_computed_weights_are_named():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ConfigError, match="the weight of '0' is computed from other parameters"):
        find_unit_groups(model)


def test_a_grouped_convolution_does_not_hear_all_channels():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4))
    with pytest.raises(ConfigError, match="the columns of '2' do not correspond to its 4 units"):
        find_unit_groups(model)


@pytest.mark.parametrize(
    "model",
    [nn.Linear(4, 2), nn.Sequential(nn.ReLU()), models.mlp(4, classes=2, hidden=())],
    ids=["a layer", "no layer", "linear classifier"],
)
def test_a_model_without_hidden_layer_is_refused(model):
    with pytest.raises(ConfigError, match="no hidden layer whose units could be renewed"):
        find_unit_groups(model)


def test_skipping_everything_is_refused():
    with pytest.raises(ConfigError, match=r"no hidden layer .* \(left out: body.\*\)"):
        find_unit_groups(models.mlp(4, classes=2), skip=["body.*"])


def test_a_layer_to_skip_must_exist():
    with pytest.raises(ConfigError, match=r"unknown layer in skip 'body.7'; did you mean 'body.\d'"):
        find_unit_groups(models.mlp(4, classes=2), skip=["body.7"])


def test_layers_can_be_named_instead_of_traced():
    traced = find_unit_groups(Functional())
    (conv, first) = find_unit_groups(Functional(), layers=["conv", "norm", "first", "last"])
    assert (conv.name, conv.out_repeat, len(conv.norms)) == ("conv", 9, 1)
    assert (first.name, first.out_repeat) == ("first", 1)
    assert [g.name for g in traced] == ["conv", "first"]


def test_several_chains_and_several_hearers_can_be_named():
    model = nn.ModuleDict({"a": Heads(), "b": models.mlp(4, classes=2, hidden=(3,))})
    groups = find_unit_groups(
        model, layers=[["a.body", "a.act", ("a.policy", "a.value")], ["b.body.1", "b.body.2", "b.head"]]
    )
    assert [(g.name, len(g.out_modules), g.activation) for g in groups] == [
        ("a.body", 2, "relu"),
        ("b.body.1", 1, "relu"),
    ]


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([], "layers is empty"),
        (["body.1", "heat"], "unknown layer in layers 'heat'; did you mean 'head'"),
        (["body.3", "body.1"], "the columns of 'body.1' do not correspond to its 5 units"),
        (["body.1"], "no hidden layer"),
    ],
)
def test_named_layers_are_checked(layers, reason):
    with pytest.raises(ConfigError, match=reason):
        find_unit_groups(models.mlp(8, classes=3, hidden=(6, 5)), layers=layers)


def test_layers_and_skip_exclude_each_other():
    with pytest.raises(ConfigError, match="but not both"):
        find_unit_groups(models.mlp(8, classes=3), layers=["body.1", "head"], skip=["head"])


def test_given_groups_must_be_the_models():
    one, other = models.mlp(4, classes=2), models.mlp(4, classes=2)
    with pytest.raises(ConfigError, match="has a Linear that is not the model's"):
        check_groups(other, find_unit_groups(one))
    with pytest.raises(ConfigError, match="groups is empty"):
        check_groups(one, [])
    wrong = UnitGroup(one.body[1], (one.head,), out_repeat=2)
    with pytest.raises(ConfigError, match="out_repeat=2, but there are 1 columns for each unit"):
        check_groups(one, [wrong])


def test_a_copy_of_model_and_groups_belongs_together():
    model = models.mlp(4, classes=2)
    copied, groups = copy.deepcopy((model, find_unit_groups(model)))
    assert check_groups(copied, groups) == tuple(groups)


def test_a_frozen_layer_that_is_not_called_has_no_units_to_find():
    class WithSpare(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.spare = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(5, 2)

        def forward(self, x):
            return self.last(torch.relu(self.first(x)))

    model = WithSpare()
    with pytest.raises(ConfigError, match="'spare': it is not called"):
        find_unit_groups(model)
    model.spare.requires_grad_(False)
    assert [group.name for group in find_unit_groups(model)] == ["first"]
