import pytest
import torch
from torch import nn

from driftline.errors import ConfigError
from driftline.learners.penalties import WassersteinRegularization
from tests.golden import golden
from tests.learners.penalties.networks import assert_as_recorded, from_golden, mlp


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("by_hand", [False, True], ids=["autograd", "added"])
def test_value_and_gradient_are_the_recorded_ones(reduction, by_hand):
    arrays, config = golden("learners", "reg_wasserstein")
    model = from_golden(arrays, config)
    penalty = WassersteinRegularization(model, strength=1.0, refresh=1, reduction=reduction)
    assert_as_recorded(model, penalty, arrays, by_hand, f"_{reduction}")


def one_row(*values):
    layer = nn.Linear(len(values), 1, bias=False)
    layer.weight.data.copy_(torch.tensor([values]))
    return layer


def test_a_permutation_of_the_initial_entries_costs_nothing():
    model = mlp()
    penalty = WassersteinRegularization(model, strength=1.0)
    model[0].weight.data = model[0].weight.data.flip(0, 1)
    assert penalty(model) == 0
    model[0].weight.data += 1
    assert penalty(model) > 1


def test_targets_stay_until_they_are_due_again():
    model = one_row(1.0, 2.0)
    penalty = WassersteinRegularization(model, strength=1.0, refresh=3)
    values = []
    for _ in range(4):
        values.append(penalty(model).item())
        model.weight.data.copy_(torch.tensor([[2.0, 1.0]]))
    # swapped entries: (2 - 1)^2 + (1 - 2)^2 by the old ranks, nothing by the new ones
    assert values == [0.0, 2.0, 2.0, 0.0]


def test_old_ranks_give_an_upper_bound():
    exact, late = mlp(), mlp()
    penalties = WassersteinRegularization(exact, 1.0, refresh=1), WassersteinRegularization(late, 1.0, refresh=50)
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        with torch.no_grad():
            for p, q in zip(exact.parameters(), late.parameters()):
                p.add_(0.05 * torch.randn(p.shape, generator=rng, dtype=torch.float64))
                q.copy_(p)
        assert penalties[1](late) >= penalties[0](exact) * (1 - 1e-12)


def test_among_equal_entries_the_first_takes_the_smaller_target():
    model = one_row(3.0, 1.0, 2.0)
    penalty = WassersteinRegularization(model, strength=0.5)
    nn.init.zeros_(model.weight)
    penalty.add_gradients(model)
    assert model.weight.grad.tolist() == [[-1.0, -2.0, -3.0]]


def test_the_decoupled_form_moves_a_share_of_the_way_to_the_initial_value_of_the_same_rank():
    model = one_row(1.0, 2.0)
    penalty = WassersteinRegularization(model, strength=0.25, decoupled=True)
    model.weight.data.copy_(torch.tensor([[4.0, 3.0]]))
    penalty.renew(model, torch.optim.SGD(model.parameters(), lr=1.0))
    assert model.weight.tolist() == [[3.0, 2.0]]


def test_a_parameter_frozen_and_set_free_again_has_a_target():
    model = mlp()
    penalty = WassersteinRegularization(model, strength=1.0, refresh=10)
    model[0].weight.requires_grad_(False)
    penalty.add_gradients(model)
    model[0].weight.requires_grad_(True)
    model[0].weight.data += 1
    penalty.add_gradients(model)
    assert model[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("refresh", [0, -1, 2.0, [1, 2]])
def test_refresh_is_a_whole_number_of_steps(refresh):
    with pytest.raises(ConfigError, match="must be one whole number of steps, at least 1"):
        WassersteinRegularization(mlp(), 0.1, refresh=refresh)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ConfigError, match="unknown reduction 'none'"):
        WassersteinRegularization(mlp(), 0.1, reduction="none")
