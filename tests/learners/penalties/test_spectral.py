import pytest
import torch
from torch import nn

from driftline.errors import ConfigError
from driftline.learners.lockstep.modules import stack_models
from driftline.learners.penalties import SpectralRegularization
from tests.golden import golden
from tests.learners.penalties.networks import assert_as_recorded, convnet, filled, from_golden, mlp


@pytest.mark.parametrize("name", ["reg_spectral_k1", "reg_spectral_k2"])
@pytest.mark.parametrize("by_hand", [False, True], ids=["autograd", "added"])
def test_value_and_gradient_are_the_recorded_ones(name, by_hand):
    arrays, config = golden("learners", name)
    model = from_golden(arrays, config)
    # From whatever it remembers, power iteration gains digits at each turn: enough turns for all of them.
    penalty = SpectralRegularization(model, 1.0, exponent=config["hyperparameters"]["k"], iterations=1000)
    assert_as_recorded(model, penalty, arrays, by_hand, share_of_largest=True)


def largest(weight):
    return torch.linalg.matrix_norm(weight.detach().flatten(1), ord=2).item()


def weights_only(*sizes, seed=0):
    layers = [nn.Linear(a, b, bias=False) for a, b in zip(sizes, sizes[1:])]
    return filled(nn.Sequential(*layers), seed)


def test_one_iteration_a_step_follows_weights_that_move():
    model = weights_only(30, 20)
    penalty = SpectralRegularization(model, 1.0, exponent=1.0)
    rng = torch.Generator().manual_seed(1)
    for step in range(300):
        model[0].weight.data += 0.002 * torch.randn(20, 30, generator=rng, dtype=torch.float64)
        value = penalty(model).item()
        if step > 50:
            assert 1 + value**0.5 == pytest.approx(largest(model[0].weight), rel=0.02)


def test_training_on_the_penalty_brings_every_matrix_to_one_and_vectors_to_their_place():
    model = convnet()
    penalty = SpectralRegularization(model, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(3000):
        optimizer.zero_grad()
        penalty.add_gradients(model)
        optimizer.step()
    assert largest(model[0].weight) == pytest.approx(1, abs=1e-3)
    assert largest(model[5].weight) == pytest.approx(1, abs=1e-3)
    # (‖b‖²)² is flat near its minimum, so it is approached slowly
    for norm in (model[1], model[4]):
        assert (norm.weight - 1).norm() < 0.15
        assert norm.bias.norm() < 0.15
    assert model[0].bias.norm() < 0.15


def test_kernels_count_as_matrices_of_one_row_for_each_output():
    model = nn.Sequential(filled(nn.Conv2d(2, 3, 2, bias=False), 0)).double()
    penalty = SpectralRegularization(model, 1.0, exponent=1.0, iterations=500)
    assert penalty(model).item() == pytest.approx((largest(model[0].weight) - 1) ** 2, rel=1e-9)


def test_a_gradient_in_another_memory_format_gets_the_same():
    plain, channels_last = (filled(nn.Sequential(nn.Conv2d(2, 3, 2)), 0) for _ in range(2))
    channels_last.to(memory_format=torch.channels_last)
    for model in (plain, channels_last):
        SpectralRegularization(model, 1.0).add_gradients(model)
    assert not channels_last[0].weight.grad.is_contiguous()
    torch.testing.assert_close(channels_last[0].weight.grad, plain[0].weight.grad)


def test_anchored_at_the_start_it_is_zero_there():
    model = weights_only(6, 5, 4)
    penalty = SpectralRegularization(model, 1.0, anchor="initial", first_iterations=500)
    assert penalty(model).item() == pytest.approx(0, abs=1e-12)
    model[0].weight.data *= 2
    sigma = largest(model[0].weight)
    assert penalty(model).item() == pytest.approx((sigma**2 - (sigma / 2) ** 2) ** 2, rel=1e-9)


@pytest.mark.parametrize(("bias", "value"), [("squared", 5.0**6), ("norm", 5.0**3)])
def test_forms_of_the_biases_term(bias, value):
    model = nn.Linear(2, 2).double()
    model.weight.requires_grad_(False)
    model.bias.data = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert SpectralRegularization(model, 1.0, exponent=3.0, bias=bias)(model).item() == pytest.approx(value)


@pytest.mark.parametrize("bias", ["squared", "norm"])
@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_a_bias_of_zero_has_no_gradient(bias, exponent):
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.bias)
    penalty = SpectralRegularization(model, 1.0, exponent=exponent, bias=bias)
    penalty.add_gradients(model)
    penalty(model).backward()
    assert torch.equal(model.bias.grad, torch.zeros(2))
    assert torch.isfinite(model.weight.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_that_are_all_zero_are_no_trap(dtype):
    model = nn.Linear(6, 4, bias=False, dtype=dtype)
    nn.init.zeros_(model.weight)
    penalty = SpectralRegularization(model, 1.0)
    for _ in range(3):
        penalty.add_gradients(model)
        penalty(model).backward()
        assert torch.equal(model.weight.grad, torch.zeros_like(model.weight))
    model.weight.data = 3 * torch.eye(4, 6, dtype=dtype)
    model.weight.grad = None
    penalty.add_gradients(model)
    assert model.weight.grad.abs().max() > 1


def test_exponents_may_differ_between_replicas():
    models = [mlp(0), mlp(1)]
    together = stack_models(models)
    penalty = SpectralRegularization(together, 0.1, exponent=[1.0, 3.0], seed=[4, 5], replicas=2)
    penalty.add_gradients(together)
    for i, model in enumerate(models):
        SpectralRegularization(model, 0.1, exponent=[1.0, 3.0][i], seed=4 + i).add_gradients(model)
        for p, q in zip(together.parameters(), model.parameters()):
            torch.testing.assert_close(p.grad[i], q.grad, rtol=1e-9, atol=1e-11)


def test_enormous_weights_give_an_infinite_gradient_and_no_error():
    model = weights_only(4, 3)
    penalty = SpectralRegularization(model, 1.0, exponent=4.0)
    model[0].weight.data *= 1e200
    penalty.add_gradients(model)
    assert not torch.isfinite(model[0].weight.grad).all()


def test_the_seed_decides_where_iterations_begin():
    first, same, other = (SpectralRegularization(mlp(), seed=seed, first_iterations=1) for seed in (1, 1, 2))
    assert torch.equal(first.state_dict()["u"]["0.weight"], same.state_dict()["u"]["0.weight"])
    assert not torch.equal(first.state_dict()["u"]["0.weight"], other.state_dict()["u"]["0.weight"])


def test_slopes_of_activations_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.PReLU(2))
    SpectralRegularization(model, 1.0).add_gradients(model)
    assert model[1].weight.grad is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"exponent": 0.5}, "exponent=0.5: must be a number of at least 1"),
        ({"exponent": [1.0, 2.0]}, "exponent has 2 values, but there are no replicas"),
        ({"anchor": "zero"}, "unknown anchor 'zero'"),
        ({"bias": "cubed"}, "unknown bias 'cubed'"),
        ({"iterations": 0}, "iterations=0: must be one whole number, at least 1"),
        ({"first_iterations": 1.5}, "first_iterations=1.5: must be one whole number, at least 1"),
    ],
)
def test_a_bad_setting_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        SpectralRegularization(mlp(), 0.1, **given)


def test_a_model_of_nothing_but_slopes_is_refused():
    with pytest.raises(ConfigError, match="no trainable weight matrix or bias"):
        SpectralRegularization(nn.PReLU(3), 0.1)
