from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from driftline import models
from driftline.learners.lockstep.modules import stack_models
from driftline.learners.optimizers import UPGD, Adam, WeightClipping
from driftline.learners.renewers import find_unit_groups
from driftline.learners.renewers.unit_state import Chosen, forget, forget_parameters

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.25),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01, t0=0),
    "UPGD": lambda p: UPGD(p, lr=0.01),
    "our Adam": lambda p: Adam(p, lr=0.01),
    "clipped Adam": lambda p: WeightClipping(Adam(p, lr=0.01)),
}
FRESH = {"sum": 0.25, "step_size": 0.01}
"""What state entries of a parameter are before its first step; otherwise 0."""


def trained(model, make, shape, steps=3):
    optimizer = make(model.parameters())
    for x in torch.rand(steps, *shape, generator=torch.Generator().manual_seed(0)):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return optimizer


def network(kind):
    torch.manual_seed(0)
    if kind == "mlp":
        model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))
        return model, (3, 4)
    convolutions = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 4, 3, bias=False), nn.Tanh()
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16, 2)), (3, 1, 6, 6)


def belonging(model, group, units):
    """For each of a group's parameters, which entries belong to units."""
    masks = {p: torch.zeros_like(p, dtype=torch.bool) for p in model.parameters()}
    for module in (group.in_module, *group.norms):
        for p in module.parameters():
            masks[p][units] = True
    repeat = group.out_repeat
    for unit in units:
        masks[group.out_module.weight][:, unit * repeat : (unit + 1) * repeat] = True
    return masks


@pytest.mark.parametrize("kind", ["mlp", "convolutional"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_exactly_the_units_entries_are_as_new(name, kind):
    model, shape = network(kind)
    optimizer = trained(model, OPTIMIZERS[name], shape)
    for group in find_unit_groups(model):
        units = [2, 0]
        before = copy.deepcopy(list(optimizer.state.values()))
        forget(optimizer, group, Chosen(torch.tensor(units)))
        masks = belonging(model, group, units)
        shaped = 0
        for (p, state), old in zip(optimizer.state.items(), before):
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == p.shape and "start" not in key:
                    shaped += 1
                    fresh = p.detach()[masks[p]] if key == "ax" else torch.tensor(FRESH.get(key, 0.0))
                    assert (value[masks[p]] == fresh).all(), key
                    assert torch.equal(value[~masks[p]], old[key][~masks[p]]), key
        assert shaped >= len(list(model.parameters()))


@pytest.mark.parametrize("name", ["our Adam", "clipped Adam"])
@pytest.mark.parametrize("kind", ["mlp", "convolutional"])
def test_clocks_of_rows_and_columns_start_anew(name, kind):
    model, shape = network(kind)
    optimizer = trained(model, OPTIMIZERS[name], shape, steps=7)
    group = find_unit_groups(model)[-1]
    forget(optimizer, group, Chosen(torch.tensor([1])))
    rows, columns = optimizer.state[group.in_module.weight], optimizer.state[group.out_module.weight]
    assert rows["row_start"].tolist() == [0, 7] + [0] * (group.units - 2) and not rows["column_start"].any()
    expected = torch.zeros(group.units, group.out_repeat)
    expected[1] = 7
    assert torch.equal(columns["column_start"], expected.flatten().long()) and not columns["row_start"].any()


def test_kept_state_stays():
    model, shape = network("mlp")
    optimizer = trained(model, OPTIMIZERS["Adam"], shape)
    group = find_unit_groups(model)[0]
    before = optimizer.state[group.in_module.weight]["exp_avg"].clone()
    forget(optimizer, group, Chosen(torch.tensor([0])), lambda n, p: n == "exp_avg" and p is group.in_module.weight)
    assert torch.equal(optimizer.state[group.in_module.weight]["exp_avg"], before)
    assert not optimizer.state[group.in_module.bias]["exp_avg"][0]


def test_an_optimizer_without_state_has_nothing_to_forget():
    model, shape = network("mlp")
    optimizer = trained(model, lambda p: torch.optim.SGD(p, lr=0.01), shape)
    forget(optimizer, find_unit_groups(model)[0], Chosen(torch.tensor([0])))
    assert not any(state for state in optimizer.state.values() if any(v is not None for v in state.values()))


@pytest.mark.parametrize("name", ["SGD", "our Adam"])
def test_each_replica_forgets_its_own_units(name):
    singles = [models.convnet((1, 4, 4), classes=2, width=3, seed=seed) for seed in range(3)]
    stacked = stack_models(copy.deepcopy(singles))
    together = {"SGD": OPTIMIZERS["SGD"], "our Adam": lambda p: Adam(p, lr=0.01, replicas=3)}[name]
    optimizer = trained(stacked, together, (3, 2, 1, 4, 4))
    before = copy.deepcopy(list(optimizer.state.values()))
    units, counts = torch.tensor([[1, 0], [2, 1], [0, 2]]), torch.tensor([[True, True], [True, False], [False, False]])
    for number, group in enumerate(find_unit_groups(stacked)):
        forget(optimizer, group, Chosen(units, counts))
        for r, single in enumerate(singles):
            masks = belonging(single, find_unit_groups(single)[number], units[r][counts[r]].tolist())
            for mask, (p, state), old in zip(masks.values(), optimizer.state.items(), before):
                for key, value in state.items():
                    if isinstance(value, torch.Tensor) and value.shape == p.shape and "start" not in key:
                        assert not value[r][mask].any()
                        assert torch.equal(value[r][~mask], old[key][r][~mask])
        before = copy.deepcopy(list(optimizer.state.values()))


@pytest.mark.parametrize("dim", [0, 1])
def test_rows_and_columns_are_read_and_written_in_place(dim):
    tensor = torch.arange(24.0).view(4, 3, 2)
    chosen = Chosen(torch.tensor([2, 0]))
    assert torch.equal(chosen.read(tensor, dim), tensor.transpose(0, dim)[[2, 0]])
    values = -torch.rand(2, *tensor.transpose(0, dim).shape[1:])
    expected = tensor.clone()
    expected.transpose(0, dim)[[2, 0]] = values
    chosen.write(tensor, values, dim)
    assert torch.equal(tensor, expected)


def test_repeated_units_are_their_consecutive_columns():
    chosen = Chosen(torch.tensor([[2, 0]]), torch.tensor([[True, False]])).repeated(3)
    assert chosen.units.tolist() == [[6, 7, 8, 0, 1, 2]]
    assert chosen.counts.tolist() == [[True] * 3 + [False] * 3]


@pytest.mark.parametrize(
    "name", sorted(set(OPTIMIZERS) - {"UPGD"})
)  # where one parameter's step depends on all utilities
def test_forgotten_parameters_are_new_to_the_optimizer(name):
    model, shape = network("mlp")
    optimizer = trained(model, OPTIMIZERS[name], shape)
    forget_parameters(optimizer, model[5].parameters())
    other, _ = network("mlp")
    other.load_state_dict(model.state_dict())
    for m, o in ((model, optimizer), (other, OPTIMIZERS[name](other.parameters()))):
        o.zero_grad()
        m(torch.ones(shape)).square().mean().backward()
        o.step()
    assert all(torch.equal(own, new) for own, new in zip(model[5].parameters(), other[5].parameters()))
    assert any(a.ne(b).any() for a, b in zip(model[0].parameters(), other[0].parameters()))


def test_forgotten_parameters_have_no_utility_any_more():
    model, shape = network("mlp")
    optimizer = trained(model, OPTIMIZERS["UPGD"], shape)
    forget_parameters(optimizer, [model[5].weight])
    assert model[5].weight not in optimizer.state and optimizer.state[model[5].bias]["utility"].any()


def test_units_where_a_mask_says():
    alone = Chosen.where(torch.tensor([True, False, True]))
    assert alone.units.tolist() == [0, 2] and alone.counts is None
    assert Chosen.where(torch.zeros(3, dtype=torch.bool)) is None
    assert Chosen.where(torch.zeros(2, 3, dtype=torch.bool)) is None
    both = Chosen.where(torch.tensor([[False, True, True], [False, False, False], [True, False, False]]))
    assert both.counts.tolist() == [[True, True], [False, False], [True, False]]
    assert both.units[0].tolist() == [1, 2] and both.units[2, 0] == 0
