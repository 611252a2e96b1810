import pickle

import pytest
import torch

from driftline.errors import ConfigError, InputError
from driftline.scenarios import corruptions
from driftline.stream import Segment, Stream
from tests.scenarios.toy import toy


def darken(x, severity, generator):
    return x * (1 - severity / 10)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_users_function_gets_severity_and_generator():
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(corruptions.get(darken, 5)(x, rng()), x * 0.5)


def test_severity_zero_leaves_images_as_they_are():
    x = torch.rand(2, 1, 4, 4)
    assert corruptions.get("gaussian_noise", 0)(x, rng()) is x


def test_equal_corruptions_are_equal_and_pickle():
    noise = corruptions.get("gaussian_noise", 3)
    assert noise == corruptions.get("gaussian_noise", 3.0) != corruptions.get("gaussian_noise", 4)
    assert pickle.loads(pickle.dumps(noise)) == noise
    assert pickle.loads(pickle.dumps(corruptions.get(darken, 2))) == corruptions.get(darken, 2)


@pytest.mark.parametrize("severity", [-1, 0.5, 5.5, float("nan"), "3", True])
def test_severities_out_of_range_are_refused(severity):
    with pytest.raises(ConfigError, match=r"severity=.*must be a number from 1 \(weak\) to 5 \(strong\)"):
        corruptions.get("gaussian_noise", severity)


def test_unknown_names_get_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'gaussian_noise'"):
        corruptions.get("gauss_noise")
    with pytest.raises(ConfigError, match=r"must be a name or function\(x, severity, generator\)"):
        corruptions.get(3)


def test_segments_are_corrupted_by_name():
    data = Segment.of(toy())
    x = Stream([data.corrupt("gaussian_noise", 5)]).read(0, 60)[0]
    assert not torch.equal(x, data.dataset.x)
    assert (float(x.min()), float(x.max())) >= (0.0, 0.9)


@pytest.mark.parametrize("name", corruptions.names())
@pytest.mark.parametrize("size", [(32, 32), (17, 23), (70, 66)])
def test_every_corruption_keeps_shape_and_range_and_changes_images(name, size):
    x = torch.rand(3, 3, *size, generator=rng(1)) * 0.5 + 0.25
    for severity in (1, 2.5, 5):
        out = corruptions.get(name, severity)(x, rng())
        assert out.shape == x.shape
        assert out.dtype == x.dtype
        assert 0 <= float(out.min()) <= float(out.max()) <= 1
        assert not torch.equal(out, x)


@pytest.mark.parametrize("name", ["gaussian_noise", "gaussian_blur", "brightness", "contrast", "zoom_blur", "pixelate"])
def test_a_fractional_severity_changes_images_by_an_amount_between_its_neighbours(name):
    x = torch.rand(8, 3, 32, 32, generator=rng(1)) * 0.5 + 0.25
    changes = [float((corruptions.get(name, s)(x, rng()) - x).abs().mean()) for s in (2, 2.5, 3)]
    assert changes == sorted(set(changes))


@pytest.mark.parametrize("name", [n for n in corruptions.names() if n != "saturate"])
def test_grey_images_can_be_corrupted(name):
    assert corruptions.get(name, 3)(torch.rand(2, 1, 32, 32, generator=rng(1)), rng()).shape == (2, 1, 32, 32)


@pytest.mark.parametrize(("name", "channels"), [("fog", 4), ("saturate", 1)])
def test_unexpected_channel_counts_are_refused(name, channels):
    with pytest.raises(InputError, match=f"{name}: needs images of .* channels, got {channels}"):
        corruptions.get(name, 3)(torch.rand(2, channels, 32, 32), rng())


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_values_outside_the_unit_range_are_refused(value):
    x = torch.full((1, 3, 32, 32), 0.5)
    x[0, 0, 0, 0] = value
    with pytest.raises(InputError, match=r"needs values in \[0, 1\]"):
        corruptions.get("fog", 3)(x, rng())


def test_names_stand_in_the_published_order():
    assert tuple(corruptions.CORRUPTIONS) == corruptions.STANDARD + corruptions.EXTRA


@pytest.mark.parametrize("name", corruptions.names())
def test_every_corruption_draws_from_its_generator_and_spares_its_input(name):
    x = torch.rand(4, 3, 32, 32, generator=rng(1))
    before = x.clone()
    corrupted = corruptions.get(name, 4)
    assert torch.equal(corrupted(x, rng(7)), corrupted(x, rng(7)))
    assert torch.equal(x, before)
