"""Activations: their formulas, gradients, and what they keep of an example's units."""

import pytest
import torch
from torch import nn

from driftline.activations import ACTIVATIONS, ASH, CReLU, Fourier, HardASH, activation_by
from driftline.errors import ConfigError
from driftline.learners.renewers import find_unit_groups
from driftline.plasticity.watch import hidden_layers


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_ash_is_its_formula():
    x = normal(3, 7)
    mean, std = x.mean(1, keepdim=True), x.std(1, correction=0, keepdim=True)
    expected = x / (1 + torch.exp(-2.0 * (x - mean - 0.5 * std)))
    torch.testing.assert_close(ASH(slope=2.0, z=0.5)(x), expected, rtol=1e-12, atol=1e-12)


def test_hard_ash_is_its_formula():
    x = normal(3, 7) * 3
    mean, std = x.mean(1, keepdim=True), x.std(1, correction=0, keepdim=True)
    gate = ((x - mean - 0.5 * std) * 2.0 / 6 + 0.5).clamp(0, 1)
    torch.testing.assert_close(HardASH(slope=2.0, z=0.5, limit=1.5)(x), x.clamp(0, 1.5) * gate, rtol=1e-12, atol=1e-12)


def test_the_usual_threshold_keeps_about_a_hundredth_of_normal_units():
    active = (HardASH(slope=1e6)(normal(20, 5000)) > 0).double().mean()
    assert 0.009 < active < 0.0125  # 1.07 % of a normal distribution lie above 2.3; 100 000 draws


def test_an_examples_units_do_not_depend_on_other_examples():
    x = normal(4, 6)
    torch.testing.assert_close(HardASH()(x)[1:2], HardASH()(x[1:2]), rtol=0, atol=0)


def test_an_image_has_one_threshold_for_all_channels_and_pixels():
    x = normal(2, 3, 4, 5)
    torch.testing.assert_close(ASH(z=0.5)(x), ASH(z=0.5)(x.flatten(1)).view(x.shape), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [ASH, HardASH, CReLU, Fourier])
def test_gradients_are_those_of_finite_differences(kind):
    assert torch.autograd.gradcheck(kind(), normal(2, 6).requires_grad_())


@pytest.mark.parametrize("kind", [ASH, HardASH])
def test_units_that_are_all_alike_have_finite_gradients(kind):
    x = torch.zeros(2, 5, requires_grad=True)
    kind()(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_crelu_keeps_both_signs_and_fourier_both_waves():
    x = normal(2, 3, 4, 4)
    assert torch.equal(CReLU()(x), torch.cat((x.relu(), (-x).relu()), 1))
    assert torch.equal(Fourier()(x), torch.cat((x.sin(), x.cos()), 1))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_name_makes_a_module_of_the_stated_width(name):
    module = activation_by(name)()
    assert module(torch.zeros(1, 4)).shape == (1, 4 * getattr(module, "expansion", 1))
    assert hidden_layers(nn.Sequential(nn.Linear(2, 4), module)) == [module]


def test_continual_backprop_names_what_makes_two_of_each_unit():
    with pytest.raises(ConfigError, match="its units go through '1', a CReLU"):
        find_unit_groups(nn.Sequential(nn.Linear(2, 4), CReLU(), nn.Linear(8, 2)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ASH(slope=0.0),
        lambda: ASH(z=float("nan")),
        lambda: HardASH(limit=-1.0),
        lambda: HardASH(slope=float("nan")),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ConfigError, match="must be above 0"):
        make()
