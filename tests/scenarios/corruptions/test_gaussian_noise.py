import numpy as np
import pytest
import torch

from driftline.errors import InputError
from driftline.scenarios.corruptions.gaussian_noise import gaussian_noise, with_noise
from tests.golden import golden


def as_images(array):
    return torch.as_tensor(array).float().movedim(-1, -3)


def test_recorded_draws_give_the_recorded_images():
    arrays, _ = golden("corruptions", "cifar_driven_gaussian_noise")
    clean = as_images(arrays["clean"]) / 255
    for s in range(5):
        normal = as_images(arrays["normal_z"][:, s].reshape(-1, 32, 32, 3))
        expected = as_images(arrays["out_float"][:, s]) / 255
        # 1e-6: float32 against the recorded float64 arithmetic.
        torch.testing.assert_close(with_noise(clean, s + 1, normal), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("severity", [1, 5])
def test_statistics_of_stored_images_are_those_recorded(severity):
    arrays, config = golden("corruptions", "cifar_stats_gaussian_noise")
    clean = as_images(arrays["clean"]) / 255
    rng = torch.Generator().manual_seed(0)
    stored = torch.stack([(gaussian_noise(clean, severity, rng) * 255).floor() for _ in range(100)])
    change = (stored - clean * 255).abs().mean((0, 2, 3, 4)).numpy()
    number = config["statistics"].index("mean_abs_diff_to_clean")
    mean, error = arrays["stat_mean"][:, severity - 1, number], arrays["stat_se"][:, severity - 1, number]
    # Mean of 200 recorded draws against 100 of ours: six deviations of the difference, over 12 images.
    assert np.all(np.abs(change - mean) < 6 * np.sqrt(3) * error)


@pytest.mark.parametrize(
    ("size", "severity", "sigma"), [(32, 2.5, 0.07), (64, 5, 0.10), (65, 1, 0.08), (224, 1.5, 0.10)]
)
def test_deviation_follows_image_size_and_interpolated_severity(size, severity, sigma):
    grey = torch.full((8, 3, size, size), 0.5)
    noise = gaussian_noise(grey, severity, torch.Generator().manual_seed(0)) - 0.5
    # Five deviations of a sample standard deviation.
    assert abs(float(noise.std()) - sigma) < 5 * sigma / (2 * noise.numel()) ** 0.5


def test_anything_but_images_is_refused():
    with pytest.raises(InputError, match=r"needs images \(B, C, H, W\).*got \(4, 7\)"):
        gaussian_noise(torch.rand(4, 7), 3, torch.Generator())
