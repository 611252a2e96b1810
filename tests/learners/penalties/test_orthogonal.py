import pytest
import torch
from torch import nn

from driftline.errors import ConfigError
from driftline.learners.lockstep.modules import stack_models
from driftline.learners.penalties import Orthogonal
from tests.learners.penalties.networks import convnet, filled, mlp


def linear(outputs, inputs, seed=0):
    return filled(nn.Linear(inputs, outputs, bias=False), seed)


@pytest.mark.parametrize(("side", "outputs", "inputs"), [("rows", 3, 5), ("columns", 3, 5), ("smaller", 3, 5)])
def test_the_term_is_the_distance_of_the_gram_matrix_from_the_scaled_identity(side, outputs, inputs):
    model = linear(outputs, inputs)
    w = model.weight.detach()
    gram = w.T @ w if side == "columns" else w @ w.T
    expected = 0.2 * (gram - 1.5 * torch.eye(len(gram), dtype=torch.float64)).square().sum()
    assert Orthogonal(model, 0.2, side=side, scale=1.5)(model).item() == pytest.approx(expected.item(), rel=1e-12)


def test_both_sides_are_the_sum_and_the_smaller_one_of_a_tall_weight_is_its_columns():
    model = linear(7, 3)
    value = {side: Orthogonal(model, 1.0, side=side)(model).item() for side in ("rows", "columns", "both", "smaller")}
    assert value["both"] == pytest.approx(value["rows"] + value["columns"], rel=1e-12)
    assert value["smaller"] == value["columns"]


@pytest.mark.parametrize("decoupled", [False, True])
def test_descending_on_it_makes_singular_values_one(decoupled):
    model = nn.Sequential(linear(6, 4, seed=1), linear(3, 6, seed=2))
    penalty = Orthogonal(model, 1.0, decoupled=decoupled)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(300):
        if decoupled:
            penalty.renew(model, optimizer)
        else:
            model.zero_grad()
            penalty.add_gradients(model)
            optimizer.step()
    for p in model.parameters():
        singular = torch.linalg.svdvals(p.detach())
        torch.testing.assert_close(singular, torch.ones_like(singular), rtol=0, atol=1e-6)


def test_kernels_of_convolutions_count_as_matrices():
    model = convnet()
    kernel = model[0].weight.detach().flatten(1)
    expected = (kernel @ kernel.T - torch.eye(3, dtype=torch.float64)).square().sum().item()
    head = model[5].weight.detach()
    expected += (head @ head.T - torch.eye(3, dtype=torch.float64)).square().sum().item()
    assert Orthogonal(model, 1.0)(model).item() == pytest.approx(expected, rel=1e-12)


def test_the_last_layer_can_be_left_out():
    model = mlp()
    penalty = Orthogonal(model, 1.0, last_layer=False)
    penalty.add_gradients(model)
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"0.weight", "2.weight"}


def test_a_scale_for_each_replica_is_each_replicas():
    models = [mlp(0), mlp(1)]
    together = stack_models(models)
    expected = sum(Orthogonal(m, 0.3, scale=s)(m).item() for m, s in zip(models, (0.5, 2.0)))
    found = Orthogonal(together, 0.3, scale=[0.5, 2.0], replicas=2)(together).item()
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Orthogonal(mlp(), side="row"), "unknown side 'row'; did you mean 'rows'"),
        (lambda: Orthogonal(mlp(), scale=0.0), "scale"),
        (lambda: Orthogonal(nn.LayerNorm(4)), "Orthogonal: the model has no trainable weight matrix$"),
        (lambda: Orthogonal(linear(3, 3), last_layer=False), "no trainable weight matrix but its last"),
        (lambda: Orthogonal(mlp().requires_grad_(False)), "the model has no trainable parameter"),
    ],
)
def test_bad_settings_and_models_without_weight_matrices_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
