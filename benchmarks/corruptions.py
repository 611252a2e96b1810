"""Speed of the corruptions, in a batch, beside one image at a time with numpy, scipy, OpenCV and Pillow.

    DRIFTLINE_DATA=... python benchmarks/corruptions.py --threads 2

Both sides make severity 5 of the same CIFAR-10 test images of 32x32. The second is written here from the description of
the published code, in its data types and with its libraries, and draws with numpy; it is there for its time alone.
Needs opencv-python-headless, scipy and Pillow.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import time

import numpy as np
import torch

from driftline.data.cifar import cifar_10
from driftline.data.files import data_root
from driftline.scenarios import corruptions

try:
    import cv2
    from PIL import Image
    from scipy import ndimage
except ImportError as missing:
    sys.exit(f"{missing}; pip install opencv-python-headless scipy pillow")


def gaussian_noise(x, rng):
    return np.clip(x / 255.0 + rng.normal(size=x.shape, scale=0.10), 0, 1) * 255


def shot_noise(x, rng):
    return np.clip(rng.poisson(x / 255.0 * 50) / 50, 0, 1) * 255


def impulse_noise(x, rng):
    x = x / 255.0
    hit = rng.random(x.shape) <= 0.07
    salt = rng.random(x.shape) <= 0.5
    x[hit & salt] = 1
    x[hit & ~salt] = 0
    return x * 255


def speckle_noise(x, rng):
    x = x / 255.0
    return np.clip(x + x * rng.normal(size=x.shape, scale=0.2), 0, 1) * 255


def gaussian_blur(x, rng):
    return np.clip(blurred(x / 255.0, 1), 0, 1) * 255


def blurred(x, sigma):
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=4)


def defocus_blur(x, rng):
    line = np.arange(-8, 9)
    kernel = np.array(line[:, None] ** 2 + line**2 <= 1.5**2, np.float32)
    kernel = cv2.GaussianBlur(kernel / kernel.sum(), (3, 3), 0.1)
    x = x / 255.0
    return np.clip(np.stack([cv2.filter2D(x[..., c], -1, kernel) for c in range(3)], -1), 0, 1) * 255


def glass_blur(x, rng):
    x = np.uint8(blurred(x / 255.0, 0.4) * 255)
    for _ in range(2):
        for row in range(31, 1, -1):
            for column in range(31, 1, -1):
                right, down = rng.integers(-1, 1, size=2)
                x[row, column] = x[row + down, column + right]
    return np.clip(blurred(x / 255.0, 0.4), 0, 1) * 255


def along_line(x, radius, sigma, degrees):
    """What ImageMagick does in C: one shifted copy for each weight."""
    distance = np.arange(2 * radius + 1)
    weights = np.exp(-(distance**2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = math.radians(degrees)
    height, width = x.shape[:2]
    out = np.zeros(x.shape)
    for i, weight in enumerate(weights):
        right, down = math.ceil(i * math.cos(angle) - 0.5), math.ceil(i * math.sin(angle) - 0.5)
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        out += weight * x[rows][:, columns]
    return np.floor(np.floor(out * 257 + 0.5) / 257)


def motion_blur(x, rng):
    return along_line(x, 9, 2.5, rng.uniform(-45, 45))


def zoomed(x, zoom):
    height = x.shape[0]
    cut = math.ceil(height / zoom)
    top = (height - cut) // 2
    grown = ndimage.zoom(x[top : top + cut, top : top + cut], (zoom, zoom, 1)[: x.ndim], order=1)
    trim = (grown.shape[0] - height) // 2
    return grown[trim : trim + height, trim : trim + height]


def zoom_blur(x, rng):
    x = (x / 255.0).astype(np.float32)
    zooms = np.arange(1, 1.26, 0.01)
    out = np.zeros_like(x)
    for zoom in zooms:
        out += zoomed(x, zoom)
    return np.clip((x + out) / (len(zooms) + 1), 0, 1) * 255


def snow(x, rng):
    x = x.astype(np.float32) / 255.0
    layer = zoomed(rng.normal(size=x.shape[:2], loc=0.3, scale=0.3), 1.25)
    layer[layer < 0.65] = 0
    layer = along_line(np.uint8(np.clip(layer, 0, 1) * 255), 14, 12, rng.uniform(-135, -45))[..., None] / 255.0
    light = np.maximum(x, cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None] * 1.5 + 0.5)
    return np.clip(0.8 * x + 0.2 * light + layer + np.rot90(layer, 2), 0, 1) * 255


def frost(x, rng):
    ice = PHOTOGRAPHS[rng.integers(5)]
    top, left = rng.integers(0, ice.shape[0] - 32), rng.integers(0, ice.shape[1] - 32)
    return np.clip(0.75 * x + 0.45 * ice[top : top + 32, left : left + 32], 0, 255)


PHOTOGRAPHS = [np.random.default_rng(i).integers(0, 256, (120, 180, 3), dtype=np.uint8) for i in range(5)]
"""For time it does not matter what is on them; read once, where the published code reads a file for each image."""


def plasma(rng, size=32, decay=1.75):
    field = np.empty((size, size))
    field[0, 0] = 0
    step, wibble = size, 100.0

    def wibbled(total):
        return total / 4 + wibble * rng.uniform(-wibble, wibble, total.shape)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        field[half::step, half::step] = wibbled(pairs + np.roll(pairs, -1, 1))
        centres = field[half::step, half::step]
        across = centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1)
        field[::step, half::step] = wibbled(across)
        field[half::step, ::step] = wibbled(centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0))
        step, wibble = half, wibble / decay
    field -= field.min()
    return field / field.max()


def fog(x, rng):
    x = x / 255.0
    brightest = x.max()
    return np.clip((x + 1.5 * plasma(rng)[..., None]) * brightest / (brightest + 1.5), 0, 1) * 255


def in_hsv(x, change):
    hsv = cv2.cvtColor((x / 255.0).astype(np.float32), cv2.COLOR_RGB2HSV)
    change(hsv)
    return np.clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), 0, 1) * 255


def brightness(x, rng):
    def change(hsv):
        hsv[..., 2] = np.clip(hsv[..., 2] + 0.3, 0, 1)

    return in_hsv(x, change)


def saturate(x, rng):
    def change(hsv):
        hsv[..., 1] = np.clip(hsv[..., 1] * 2.5 + 0.2, 0, 1)

    return in_hsv(x, change)


def contrast(x, rng):
    x = x / 255.0
    mean = x.mean((0, 1), keepdims=True)
    return np.clip((x - mean) * 0.15 + mean, 0, 1) * 255


def elastic_transform(x, rng):
    x = x.astype(np.float32) / 255.0
    shift = 32 * 0.03
    start = np.float32([[26, 26], [26, 6], [6, 6]])
    end = start + rng.uniform(-shift, shift, size=start.shape).astype(np.float32)
    moved = cv2.warpAffine(x, cv2.getAffineTransform(start, end), (32, 32), borderMode=cv2.BORDER_REFLECT_101)
    fields = [
        (ndimage.gaussian_filter(rng.uniform(-1, 1, size=(32, 32)), 0.96, mode="reflect", truncate=3) * 3.2)
        for _ in range(2)
    ]
    columns, rows, channels = np.meshgrid(np.arange(32), np.arange(32), np.arange(3))
    places = [rows + fields[1][..., None], columns + fields[0][..., None], channels]
    out = ndimage.map_coordinates(moved, [np.reshape(p, (-1, 1)) for p in places], order=1, mode="reflect")
    return np.clip(out.reshape(x.shape), 0, 1) * 255


def pixelate(x, rng):
    small = Image.fromarray(x).resize((20, 20), Image.Resampling.BOX)
    return np.asarray(small.resize((32, 32), Image.Resampling.BOX))


def jpeg_compression(x, rng):
    file = io.BytesIO()
    Image.fromarray(x).save(file, "JPEG", quality=40)
    return np.asarray(Image.open(file))


def spatter(x, rng):
    x = x.astype(np.float32) / 255.0
    liquid = ndimage.gaussian_filter(rng.normal(size=x.shape[:2], loc=0.65, scale=0.1), 0.5, mode="nearest")
    mud = ndimage.gaussian_filter((liquid > 0.68).astype(np.float32), 0.6, mode="nearest", truncate=4)
    mud[mud < 0.8] = 0
    mud = mud[..., None]
    colour = np.array([63, 42, 20], np.float32) / 255 * np.ones_like(x)
    return np.clip(x * (1 - mud) + colour * mud, 0, 1) * 255


def fastest(call, rounds):
    """Return the seconds of the fastest of some calls, after one that is not counted."""
    call()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of both sides")
    parser.add_argument("--images", type=int, default=500, help="in our batch")
    parser.add_argument("--one-by-one", type=int, default=50, help="images that the other side is timed on")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--severity", type=int, default=5, help="ours alone when it is not 5")
    parser.add_argument("--only", default="", help="names, with commas")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    data = cifar_10(data_root(None), partial={"data_batch_1": 1, "test_batch": options.images}).splits["test"]
    pictures = data.x.movedim(1, -1).contiguous().numpy()[: options.one_by_one]
    rng = np.random.default_rng(0)
    names = [name for name in options.only.split(",") if name] or list(corruptions.CORRUPTIONS)
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    seconds: dict[str, list[float]] = {}
    print(f"| corruption | one by one | {' | '.join(f'{d} | ratio' for d in devices)} |")
    print("|---|" + "---|" * (1 + 2 * len(devices)))
    for name in names:
        one = globals()[name]
        row = [fastest(lambda: [np.uint8(one(x, rng)) for x in pictures], options.rounds) / len(pictures)]  # noqa: B023
        for device in devices:
            x = (data.x / 255).to(device)
            ours, draws = corruptions.get(name, options.severity), torch.Generator(device=device).manual_seed(0)

            def call(ours=ours, x=x, draws=draws, device=device):
                ours(x, draws)
                if device == "cuda":
                    torch.cuda.synchronize()

            row.append(fastest(call, options.rounds) / len(x))
        seconds[name] = row
        cells = [f"{1 / row[0]:,.0f}"] + [f"{1 / s:,.0f} | {row[0] / s:.1f}" for s in row[1:]]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    totals = np.sum(list(seconds.values()), 0)
    print(f"\nimages a second; severity 5, {options.threads} threads, {len(names)} corruptions")
    for i, device in enumerate(devices, 1):
        ratios = np.array([row[0] / row[i] for row in seconds.values()])
        print(
            f"{device}: ratio of the total time {totals[0] / totals[i]:.1f}, geometric mean of the ratios "
            f"{np.exp(np.log(ratios).mean()):.1f}, arithmetic mean {ratios.mean():.1f}"
        )


if __name__ == "__main__":
    main()
