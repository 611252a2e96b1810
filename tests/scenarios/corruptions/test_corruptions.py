import pickle

import pytest
import torch

from driftline.errors import ConfigError
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
def test_every_corruption_keeps_shape_and_range_and_grows_with_severity(name):
    x = torch.rand(8, 3, 32, 32, generator=rng(1)) * 0.5 + 0.25
    changes = []
    for severity in (1, 2.5, 5):
        out = corruptions.get(name, severity)(x, rng())
        assert out.shape == x.shape
        assert out.dtype == x.dtype
        assert 0 <= float(out.min()) <= float(out.max()) <= 1
        changes.append(float((out - x).abs().mean()))
    assert changes == sorted(changes)
    assert changes[0] > 0


@pytest.mark.parametrize("name", corruptions.names())
def test_every_corruption_draws_from_its_generator_and_spares_its_input(name):
    x = torch.rand(4, 3, 32, 32, generator=rng(1))
    before = x.clone()
    corrupted = corruptions.get(name, 4)
    assert torch.equal(corrupted(x, rng(7)), corrupted(x, rng(7)))
    assert torch.equal(x, before)
