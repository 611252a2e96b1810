"""Corruptions at 224 pixels, in distribution, and against other implementations of their parts."""

import io

import numpy as np
import pytest
import torch

from driftline.errors import InputError
from driftline.scenarios import corruptions
from driftline.scenarios.corruptions.frost import FILES, Frost
from driftline.scenarios.corruptions.glass_blur import sources
from driftline.scenarios.corruptions.jpeg import compress
from driftline.scenarios.corruptions.motion_blur import with_angle
from driftline.scenarios.corruptions.severity import to_levels
from driftline.stream import Dataset, Segment, Stream
from tests.golden import data_root, golden, golden_names

# Share of bytes that may differ by one level, where values lie within rounding of a whole number; crops with areas of
# one colour differ in whole areas (saturate: theirs goes through hue and back in float32).
LARGE = {
    "defocus_blur": 0.06,
    "contrast": 0.001,
    "brightness": 0.05,
    "saturate": 0.3,
    "pixelate": 0,
    "jpeg_compression": 0.001,
    "zoom_blur": 0.01,
    "gaussian_blur": 0.002,
    "motion_blur": 0.001,
}


def images(array):
    return torch.as_tensor(np.asarray(array).astype(np.float32)).movedim(-1, -3)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("level", [0, 2, 4])
def test_large_images_take_the_constants_of_imagenet_c(name, level):
    arrays, _ = golden("corruptions", "imagenet224_deterministic")
    x = images(arrays["clean"]) / 255
    if name == "motion_blur":
        out = with_angle(x, level + 1, torch.as_tensor(arrays["motion_blur_angle"][:, level]))
    else:
        out = corruptions.get(name, level + 1)(x, rng())
    levels = to_levels(out)
    for number, (row, column) in enumerate(arrays["crop_origin"].tolist()):
        apart = (levels[:, :, row : row + 64, column : column + 64] - images(arrays[name][:, level, number])).abs()
        assert float(apart.max()) <= 1
        assert float((apart > 0).float().mean()) <= LARGE[name]
    # The whole image: as many bytes may be off by one, all in one direction.
    mean = torch.as_tensor(arrays[f"{name}_mean"][:, level])
    torch.testing.assert_close(levels.double().mean((2, 3)), mean, atol=LARGE[name] + 1e-6, rtol=0)


def statistics(levels, clean):
    """Return the recorded statistics of bytes (draws, images, 3, H, W): (draws, images, 9)."""
    found = [levels.mean((2, 3, 4)), levels.flatten(2).std(2, correction=0), *levels.mean((3, 4)).unbind(2)]
    found.append((levels - clean).abs().mean((2, 3, 4)))
    size = levels.shape[-1]
    power = (torch.fft.fft2(levels / 255).abs() ** 2).mean(2) / size**4
    frequency = torch.fft.fftfreq(size)
    radius = (frequency[:, None] ** 2 + frequency**2).sqrt()
    for low, high in ((1e-9, 1 / 8), (1 / 8, 1 / 4), (1 / 4, 2)):
        found.append(power[..., (radius >= low) & (radius < high)].sum(-1))
    return torch.stack(found, -1)


@pytest.mark.parametrize("case", golden_names("corruptions", "cifar_stats_*"))
@pytest.mark.parametrize("severity", [2, 5])
def test_draws_have_the_recorded_statistics(case, severity):
    arrays, _ = golden("corruptions", case)
    name, draws = case.removeprefix("cifar_stats_"), 150
    function = name if name != "frost" else Frost(str(data_root() / "frost"))
    clean = images(arrays["clean"])
    x = (clean / 255).repeat(draws, 1, 1, 1)
    levels = to_levels(corruptions.get(function, severity)(x, rng())).view(draws, *clean.shape)
    found = statistics(levels.double(), clean)
    mean, error = (torch.as_tensor(arrays[f"stat_{part}"][:, severity - 1, :9]) for part in ("mean", "se"))
    spread = (error**2 + found.var(0) / draws).sqrt()
    # Six deviations of the difference: some 2000 numbers are compared. 1e-3: of statistics that hardly vary.
    bound = 6 * spread + 1e-3 * mean.abs()
    assert bool(((found.mean(0) - mean).abs() <= bound).all())


@pytest.mark.parametrize("size", [(8, 8), (15, 22), (33, 17), (50, 63), (1, 9)])
@pytest.mark.parametrize("quality", [7, 40, 80])
def test_jpeg_loses_what_pillow_loses(size, quality):
    image = pytest.importorskip("PIL.Image")
    smooth = torch.nn.functional.interpolate(torch.rand(3, 3, 5, 5, generator=rng(quality)), size, mode="bilinear")
    levels = ((smooth + 0.1 * torch.rand(smooth.shape, generator=rng(1))).clamp(0, 1) * 255).round()
    for one, ours in zip(levels, compress(levels, quality)):
        file = io.BytesIO()
        image.fromarray(one.byte().movedim(0, -1).numpy()).save(file, "JPEG", quality=quality)
        theirs = torch.as_tensor(np.array(image.open(file)).astype(np.float32)).movedim(-1, 0)
        # Encoders differ in how they divide; a step between two kept values moves a block by a few levels.
        assert float((ours - theirs).abs().mean()) < 0.05


@pytest.mark.parametrize(("delta", "passes"), [(1, 2), (2, 1), (3, 2), (4, 2)])
def test_glass_copies_as_a_loop_over_the_pixels_does(delta, passes):
    height, width = 19, 23
    steps = torch.randint(-delta, delta, (2, passes, 2, height, width), generator=rng(delta))
    for image, found in zip(steps, sources(steps, delta)):
        shown = torch.arange(height * width).view(height, width)
        for one in image:
            for row in range(height - delta, delta, -1):
                for column in range(width - delta, delta, -1):
                    down, right = one[:, row, column].tolist()
                    shown[row, column] = shown[row + down, column + right].clone()
        assert torch.equal(found.view(height, width), shown)


def test_photographs_of_frost_are_shown_in_crops_of_their_own_pixels():
    folder = data_root() / "frost"
    if not folder.is_dir():
        pytest.skip(f"no photographs in {folder}")
    ice = Frost(str(folder))
    out = ice(torch.zeros(40, 3, 100, 90), 1, rng()) / 0.4  # of ImageNet-C's severity 1, the share of the frost
    image = pytest.importorskip("PIL.Image")
    photographs = [np.array(image.open(folder / name).convert("RGB")) for name in FILES]
    for crop in out.mul(255).round().byte().movedim(1, -1).numpy():
        corner = crop[0, 0].astype(int), crop[-1, -1].astype(int)
        fits = False
        for photograph in photographs:
            top, end = photograph[:-99, :-89].astype(int), photograph[99:, 89:].astype(int)
            places = np.argwhere((top == corner[0]).all(-1) & (end == corner[1]).all(-1))
            fits |= any(np.array_equal(photograph[r : r + 100, c : c + 90], crop) for r, c in places)
        assert fits


def test_streams_say_whether_frost_is_photographs(tmp_path, monkeypatch):
    data = Segment.of(Dataset(torch.rand(4, 3, 8, 8, generator=rng()), torch.tensor([0, 1, 0, 1])))
    monkeypatch.setenv("DRIFTLINE_DATA", str(tmp_path))
    assert Stream([data.corrupt("frost")]).describe()["notes"] == ["frost: textures of our own"]
    assert "notes" not in Stream([data.corrupt("fog")]).describe()
    (tmp_path / "frost").mkdir()
    for name in FILES:
        (tmp_path / "frost" / name).touch()
    assert Stream([data.corrupt("frost")]).describe()["notes"] == ["frost: original photographs"]
    assert Stream([data.corrupt(Frost())]).describe()["notes"] == ["frost: textures of our own"]


@pytest.mark.parametrize("name", corruptions.names())
def test_a_corrupted_sample_depends_on_its_position_alone(name):
    x = torch.rand(150, 3, 12, 10, generator=rng())
    stream = Stream([Segment.of(Dataset(x, torch.arange(150) % 2)).corrupt(name, 4)], seed=5)
    whole = stream.read(0, 150)[0]
    for start, stop in ((0, 1), (63, 66), (70, 141), (149, 150)):
        assert torch.equal(stream.read(start, stop)[0], whole[start:stop])
        assert torch.equal(stream[start:stop].read(0, stop - start)[0], whole[start:stop])
    assert torch.equal(torch.cat([batch.x for batch in stream.batches(7)]), whole)


def test_images_out_of_range_are_named_when_a_stream_reads_them():
    data = Dataset(torch.full((4, 3, 8, 8), 1.5), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(InputError, match=r"fog: needs values in \[0, 1\], got 1.5 to 1.5"):
        Stream([Segment.of(data).corrupt("fog")]).read(0, 2)


def test_bytes_are_corrupted_as_the_fractions_that_they_stand_for():
    x = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8, generator=rng())
    y = torch.arange(8) % 2
    of_bytes, of_fractions = (
        Stream([Segment.of(Dataset(v, y)).corrupt("snow", 5)]).read(0, 8)[0] for v in (x, x / 255)
    )
    assert torch.equal(of_bytes, of_fractions)
