"""Every corruption but gaussian_noise against the recorded outputs of the published code."""

import importlib

import numpy as np
import pytest
import torch

from driftline.scenarios.corruptions.severity import to_levels
from tests.golden import golden

# Share of bytes that may differ by one level, where values lie within rounding of a whole number (glass: its inner
# truncation to bytes falls the other way there). jpeg: another arithmetic of the encoder's division.
DETERMINISTIC = {
    "brightness": 0.05,
    "contrast": 0,
    "defocus_blur": 0.08,
    "gaussian_blur": 0.002,
    "jpeg_compression": 0.001,
    "pixelate": 0,
    "saturate": 0.08,
    "zoom_blur": 0.001,
}
DRIVEN = ("shot_noise", "impulse_noise", "speckle_noise", "motion_blur", "fog", "snow", "spatter")


def images(array):
    return torch.as_tensor(array.astype(np.float32)).movedim(-1, -3)


def uniform(array):
    return torch.as_tensor((array.astype(np.float64) + 0.5) / 65536)


def module(name):
    return importlib.import_module(f"driftline.scenarios.corruptions.{name}")


def check_levels(out, expected, share):
    apart = (to_levels(out) - images(expected)).abs()
    assert float(apart.max()) <= 1
    assert float((apart > 0).float().mean()) <= share


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("level", range(5))
def test_deterministic_corruptions_give_the_recorded_images(name, level):
    arrays, _ = golden("corruptions", f"cifar_{name}")
    out = getattr(module(name), name)(images(arrays["clean"]) / 255, level + 1, torch.Generator())
    check_levels(out, arrays["out"][:, level], DETERMINISTIC[name])
    if "out_float" in arrays:
        expected = images(arrays["out_float"][:, level])
        # 1e-3 of a level: float32 against double precision.
        torch.testing.assert_close(out[arrays["out_float_images"]] * 255, expected, atol=1e-3, rtol=0)


def replay(name, x, level, arrays):
    corruption = module(name)
    if name == "shot_noise":
        return corruption.with_counts(x, level + 1, images(arrays["poisson_counts"][:, level].reshape(-1, 32, 32, 3)))
    if name == "speckle_noise":
        return corruption.with_noise(x, level + 1, images(arrays["normal_z"][:, level].reshape(-1, 32, 32, 3)))
    if name == "impulse_noise":
        hit, salt = uniform(arrays["uniform_k"][:, level]).view(-1, 2, 32, 32, 3).movedim(-1, 2).unbind(1)
        return corruption.with_impulses(x, level + 1, hit, salt)
    if name == "motion_blur":
        return corruption.with_angle(x, level + 1, 90 * uniform(arrays["uniform_k"][:, level, 0]) - 45)
    if name == "fog":
        return corruption.with_plasma(x, level + 1, uniform(arrays["uniform_k"][:, level]))
    normal = torch.as_tensor(arrays["normal_z"][:, level].astype(np.float32)).view(-1, 32, 32)
    if name == "spatter":
        return corruption.with_liquid(x, level + 1, normal)
    return corruption.with_flakes(x, level + 1, normal, 90 * uniform(arrays["uniform_k"][:, level, 0]) - 135)


@pytest.mark.parametrize("name", DRIVEN)
@pytest.mark.parametrize("level", range(5))
def test_recorded_draws_give_the_recorded_images(name, level):
    arrays, _ = golden("corruptions", f"cifar_driven_{name}")
    out = replay(name, images(arrays["clean"]) / 255, level, arrays)
    expected = images(arrays["out_float"][:, level])
    apart = (out * 255 - expected).abs() > 1e-3
    # spatter: where a quotient of bytes lies on a whole number, one pixel of ten thousand is lit otherwise.
    assert float(apart.float().mean()) <= (2e-4 if name == "spatter" else 0)
    check_levels(out, arrays["out"][:, level], 2e-3)


@pytest.mark.parametrize("level", range(5))
def test_recorded_displacements_give_the_recorded_elastic_images(level):
    arrays, _ = golden("corruptions", "cifar_driven_elastic_transform")
    draws = uniform(arrays["uniform_k"][:, level])
    x = images(arrays["clean"]) / 255
    points, fields = draws[:, :6].view(-1, 3, 2), draws[:, 6:].view(-1, 2, 32, 32)
    out = module("elastic_transform").with_fields(x, level + 1, points, fields)
    torch.testing.assert_close(out * 255, images(arrays["out_float"][:, level]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("level", range(5))
def test_recorded_places_give_the_recorded_glass(level):
    arrays, _ = golden("corruptions", "cifar_driven_glass_blur")
    lengths = arrays["integers_len"].ravel()
    ends = np.cumsum(lengths)
    draws = torch.zeros(3, 3, 2, 32, 32)
    for image in range(3):
        k = image * 5 + level
        # Pairs (right, down), from the last pixel to the first; -1 and 0 as the middles of halves of [0, 1).
        pairs = arrays["integers"][ends[k] - lengths[k] : ends[k]].reshape(-1, 30, 30, 2)[:, ::-1, ::-1, ::-1]
        draws[image, : len(pairs), :, 2:, 2:] = torch.as_tensor((pairs + 1.5) / 2).movedim(-1, 1)
    out = module("glass_blur").with_places(images(arrays["clean"]) / 255, level + 1, draws)
    check_levels(out, arrays["out"][:, level], 0.02)


@pytest.mark.parametrize("level", range(5))
def test_recorded_crops_give_the_recorded_frost(level):
    arrays, _ = golden("corruptions", "cifar_driven_frost")
    crop = images(arrays["frost_crop"][:, level]) / 255
    out = module("frost").with_crop(images(arrays["clean"]) / 255, level + 1, crop)
    torch.testing.assert_close(out * 255, images(arrays["out_float"][:, level]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("level", range(5))
def test_disks_are_those_recorded(level):
    arrays, _ = golden("corruptions", "cifar_defocus_kernels")
    defocus = module("defocus_blur")
    expected = torch.as_tensor(arrays[f"kernel_s{level + 1}"]).double()
    torch.testing.assert_close(defocus.disk(*defocus.CIFAR[level]), expected, atol=1e-6, rtol=0)
