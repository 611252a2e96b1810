import dataclasses

import pytest
import torch

from driftline import native
from driftline.adapters.augmentation import Augmentation, Views, augment
from driftline.adapters.image_operations import blur
from driftline.errors import ConfigError, InputError
from driftline.stream.seeds import generator

functional = pytest.importorskip("torchvision.transforms.v2.functional")


def images(shape, dtype=torch.float32):
    """Images with values beyond [0, 1], pixels without colour and of pure colour among them."""
    x = (1.4 * torch.rand(shape, generator=generator(0), dtype=torch.float64) - 0.2).to(dtype)
    x[:, :, 3:8, 3:8] = 0.5
    x[:, 0, 10:12] = 1.0
    return x


def plainly(monkeypatch, x, views):
    """The views by operations on tensors."""
    with monkeypatch.context() as switched:
        switched.setattr(native, "available", lambda: False)
        return augment.apply(x, views)


def one_by_one(x, views, row):
    """The view of one image by torchvision's operations."""
    height, width = x.shape[-2:]
    x = x[row].clamp(0, 1)
    factors = views.colour[row].tolist()
    for operation in views.order[row].tolist():
        factor = factors[operation]
        if operation == 0:
            x = functional.adjust_brightness(x, factor)
        elif operation == 1:
            x = functional.adjust_contrast(x, factor)
        elif operation == 2:
            x = functional.adjust_saturation(x, factor)
        elif operation == 3:
            x = functional.adjust_hue(x, factor)
        else:
            x = functional.adjust_gamma(x.clamp(1e-8, 1), factor)
    x = functional.pad(x, [width // 2, height // 2], padding_mode="edge")
    x = functional.affine(
        x,
        angle=float(views.angle[row]),
        translate=views.shift[row].tolist(),
        scale=float(views.scale[row]),
        shear=[0.0, 0.0],
        interpolation=functional.InterpolationMode.BILINEAR,
    )
    x = functional.gaussian_blur(x, [5, 5], [float(views.sigma[row])] * 2)
    x = functional.center_crop(x, [height, width])
    if views.flip[row]:
        x = functional.horizontal_flip(x)
    return (x + views.noise[row]).clamp(0, 1)


@pytest.mark.parametrize("shape", [(40, 3, 32, 32), (12, 1, 28, 28), (6, 3, 48, 64)])
@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_views_are_those_of_torchvisions_operations_one_by_one(shape, per_sample, dtype):
    x = images(shape, dtype)
    augmentation = Augmentation(per_sample=per_sample)
    views = augmentation.draw(x, generator(1))
    found = augmentation.apply(x, views)
    wanted = torch.stack([one_by_one(x, views, row) for row in range(len(x))])
    # torchvision computes angles, kernels and gray values in float32.
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4)


kernel = pytest.mark.skipif(not native.available(), reason="no C compiler here, or switched off")


@pytest.fixture
def calls(monkeypatch):
    """The batches that the kernel was given."""
    seen, run = [], native.image_views
    monkeypatch.setattr(native, "image_views", lambda x, *rest: seen.append(x) or run(x, *rest))
    return seen


@kernel
@pytest.mark.parametrize("shape", [(200, 3, 32, 32), (40, 1, 28, 28), (8, 3, 37, 51), (9, 3, 1, 7), (9, 1, 7, 1)])
@pytest.mark.parametrize("per_sample", [True, False])
def test_the_kernel_makes_the_views_of_the_plain_path(monkeypatch, calls, shape, per_sample):
    x = images(shape)
    for seed in range(5):
        views = Augmentation(per_sample=per_sample).draw(x, generator(seed))
        found = augment.apply(x, views)
        assert len(calls) == seed + 1
        # Positions in the image are rounded at 2^-19 of a pixel or so, and neighbours differ by up to 1.
        torch.testing.assert_close(found, plainly(monkeypatch, x, views), rtol=0, atol=3e-5)


@kernel
def test_the_kernel_turns_images_by_any_angle_and_shift(monkeypatch, calls):
    x = images((40, 3, 20, 16))
    wide = Augmentation(degrees=180, translate=1, scale=(0.3, 3.0), hue=(-0.5, 0.5), gamma=(0.1, 5.0), sigma=(0.1, 9))
    views = wide.draw(x, generator(0))
    torch.testing.assert_close(augment.apply(x, views), plainly(monkeypatch, x, views), rtol=0, atol=1e-4)
    assert len(calls) == 1


@kernel
def test_the_kernel_takes_images_that_do_not_lie_in_one_piece(calls):
    x = images((6, 3, 32, 32))
    views = augment.draw(x, generator(0))
    scattered = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(augment.apply(scattered, views), augment.apply(x, views), rtol=0, atol=0)
    assert len(calls) == 2


@kernel
@pytest.mark.parametrize("channel", [0, 1, 2])
def test_the_kernel_keeps_nan_in_its_image(calls, channel):
    x = images((120, 3, 16, 16))
    x[::2, channel, 8, 8] = float("nan")
    found = augment.apply(x, augment.draw(x, generator(0))).isnan().flatten(1).any(1)
    assert found[::2].all() and not found[1::2].any() and len(calls) == 1


@kernel
def test_the_kernel_stays_within_images_whatever_was_drawn(calls):
    x = images((4, 3, 12, 12))
    views = augment.draw(x, generator(0))
    for strange in (float("nan"), float("inf"), 1e30):
        filled = torch.full((4,), strange)
        moved = dataclasses.replace(views, angle=filled, shift=filled[:, None].expand(4, 2), scale=filled)
        assert augment.apply(x, moved).shape == x.shape
    assert len(calls) == 3


def test_other_numbers_than_float32_go_the_plain_path(calls):
    x = images((4, 3, 12, 12), torch.float64)
    assert augment(x, generator(0)).dtype == torch.float64
    assert not calls


def test_no_images_have_no_views():
    assert augment(torch.rand(0, 3, 8, 8), generator(0)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("order", torch.full((4, 5), 5)),
        ("order", torch.zeros(4, 4, dtype=torch.long)),
        ("order", torch.full((4, 5), -1)),
        ("colour", torch.ones(3, 5)),
        ("shift", torch.ones(4)),
        ("flip", torch.ones(4, 1, dtype=torch.bool)),
        ("noise", torch.zeros(4, 3, 8, 9)),
    ],
)
def test_views_of_other_images_are_refused(name, value):
    x = torch.rand(4, 3, 8, 8)
    views = dataclasses.replace(augment.draw(x, generator(0)), **{name: value})
    with pytest.raises(InputError, match=f"views.{name}"):
        augment.apply(x, views)


def test_draws_cover_their_ranges_evenly_and_each_image_has_its_own():
    views = augment.draw(torch.rand(4000, 3, 8, 8), generator(0))
    for values, (low, high) in [
        (views.colour[:, 0], augment.brightness),
        (views.colour[:, 3], augment.hue),
        (views.scale, augment.scale),
        (views.sigma, augment.sigma),
        (views.angle, (-15.0, 15.0)),
    ]:
        assert low <= values.min() and values.max() <= high and len(values.unique()) > 3000
        # Three standard errors of a uniform variable's mean.
        assert abs(float(values.mean()) - (low + high) / 2) < 3 * (high - low) / (12 * 4000) ** 0.5
    assert set(views.shift.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert abs(float(views.flip.float().mean()) - 0.5) < 3 * 0.5 / 4000**0.5
    assert len(views.order.unique(dim=0)) == 120
    assert abs(float(views.noise.std()) - 0.005) < 1e-4


def test_the_released_code_shares_one_draw_but_not_the_noise():
    views = Augmentation(per_sample=False).draw(torch.rand(5, 3, 8, 8), generator(0))
    for values in (views.order, views.colour, views.angle, views.shift, views.flip):
        assert torch.equal(values, values[:1].expand_as(values))
    assert not torch.equal(views.noise[0], views.noise[1])


def test_a_generator_in_the_same_state_gives_the_same_views_and_leaves_the_images():
    x = torch.rand(6, 3, 16, 16)
    before = x.clone()
    assert torch.equal(augment(x, generator(3)), augment(x, generator(3)))
    assert not torch.equal(augment(x, generator(3)), augment(x, generator(4)))
    assert torch.equal(x, before)


def test_the_smallest_blur_is_none():
    x = torch.rand(2, 3, 12, 12)
    torch.testing.assert_close(blur(x, torch.full((2,), 0.001)), x[..., 2:-2, 2:-2], rtol=0, atol=0)


def test_views_of_nothing_moved_are_the_image():
    x = torch.rand(2, 3, 12, 12)
    rows = torch.zeros(2)
    still = Views(
        order=torch.arange(5).expand(2, 5),
        colour=torch.tensor([1.0, 1, 1, 0, 1]).expand(2, 5),
        angle=rows,
        shift=torch.zeros(2, 2),
        scale=rows + 1,
        sigma=rows + 0.001,
        flip=rows.bool(),
        noise=torch.zeros_like(x),
    )
    torch.testing.assert_close(augment.apply(x, still), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("x", [torch.rand(4, 7), torch.rand(2, 4, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)])
def test_what_is_no_image_is_refused(x):
    with pytest.raises(InputError, match="images"):
        augment(x, generator(0))


@pytest.mark.parametrize(
    "settings",
    [{"brightness": (2.0, 1.0)}, {"hue": (-0.6, 0.0)}, {"sigma": (0.0, 1.0)}, {"flip": 1.5}, {"degrees": -1.0}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Augmentation(**settings)
