import pytest
import torch

from driftline.adapters.augmentation import Augmentation, Views, augment, blur
from driftline.errors import ConfigError, InputError
from driftline.stream.seeds import generator

functional = pytest.importorskip("torchvision.transforms.v2.functional")


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
def test_views_are_those_of_torchvisions_operations_one_by_one(shape, per_sample):
    # Values beyond [0, 1], pixels without colour and of pure colour are among them.
    x = (1.4 * torch.rand(shape, generator=generator(0), dtype=torch.float64) - 0.2).double()
    x[:, :, 3:8, 3:8] = 0.5
    x[:, 0, 10:12] = 1.0
    augmentation = Augmentation(per_sample=per_sample)
    views = augmentation.draw(x, generator(1))
    found = augmentation.apply(x, views)
    wanted = torch.stack([one_by_one(x, views, row) for row in range(len(x))])
    # torchvision computes angles, kernels and gray values in float32.
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4)


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
