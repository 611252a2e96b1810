"""Data whose parts differ as data in the world do: by who wrote it, by who collected it, by how it was stored."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from driftline.data import images
from driftline.data.arrays import build, parse_idx
from driftline.data.cifar import CLASSES
from driftline.data.files import check_content, find, read_content
from driftline.errors import ConfigError
from driftline.stream.dataset import Dataset

SERIES = (0, 4)
"""Series of NIST's forms that MNIST's images come from: census staff, and pupils."""


def qmnist(root: Path, writers: Sequence[int] | int | None = None) -> Dataset:
    """MNIST with the series its writers belong to, 60 000 + 10 000; files in MNIST/raw and qmnist.

    x is (N, 1, 28, 28) uint8, MNIST's images in MNIST's order. Further splits have the images of one series: "hsf_0"
    (census staff) and "hsf_4" (pupils) those of the train part, "test_hsf_0" and "test_hsf_4" those of the test part.
    ``writers=0``, or a list of series, keeps only these series, in every part. Yadav and Bottou 2019.
    """
    kept = _series(writers)
    folder, files = "qmnist", ("qmnist-train-labels-idx2-int", "qmnist-test-labels-idx2-int")
    extended = []
    for file, path in zip(files, find(root, folder, files, "qmnist")):
        content = read_content(path)
        extended.append(parse_idx(content, path))
        check_content(content, f"{folder}/{file}", path)
    data = images.mnist(root)
    assert data.test is not None
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    by_series: dict[str, tuple[Tensor, Tensor]] = {}
    for name, part, labels in (("train", data, extended[0]), ("test", data.test, extended[1])):
        # QMNIST's test labels go on after the images that MNIST has.
        digit, series = labels[: len(part), 0].long(), labels[: len(part), 1]
        mine = torch.isin(series, torch.tensor(kept))
        parts[name] = (part.x[mine], digit[mine])
        for one in kept:
            by_series[f"{'' if name == 'train' else 'test_'}hsf_{one}"] = (part.x[series == one], digit[series == one])
    return build("qmnist", parts | by_series, images.DIGITS)


def _series(writers: Sequence[int] | int | None) -> list[int]:
    asked = SERIES if writers is None else (writers,) if isinstance(writers, int) else tuple(writers)
    if not asked or any(isinstance(one, bool) or one not in SERIES for one in asked):
        raise ConfigError(f"qmnist: writers={writers!r}: MNIST's images are of series {SERIES[0]} and {SERIES[1]}")
    return sorted(set(asked))


def mnist_usps(root: Path, size: int = 28) -> Dataset:
    """MNIST, and USPS brought to its form, as further splits: digits of two collections; files in MNIST/raw and usps.

    x is (N, 1, size, size) uint8. The splits are "test" (MNIST's), "usps_test" and "usps" (USPS's train part). With
    ``size=28`` USPS's 16x16 images are enlarged, with ``size=16`` MNIST's are reduced (bilinear, antialiased when
    reduced), and rounded to bytes. MNIST's digits keep their margin, which USPS's do not have.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigError(f"mnist-usps: size={size!r}: must be a whole number of pixels, at least 1")
    ours, theirs = images.mnist(root), images.usps(root)
    assert ours.test is not None and theirs.test is not None
    parts = {"train": ours, "test": ours.test, "usps_test": theirs.test, "usps": theirs}
    return build("mnist-usps", {name: (_resized(d.x, size), d.y) for name, d in parts.items()}, images.DIGITS)


def _resized(x: Tensor, size: int) -> Tensor:
    """Square images as bytes of another size."""
    if x.dtype == torch.uint8 and x.shape[-1] == size:
        return x
    parts = []
    for part in torch.split(x, 5000):
        values = part.float() if x.dtype == torch.uint8 else 255 * part
        shape = (size, size)
        moved = torch.nn.functional.interpolate(values, shape, mode="bilinear", align_corners=False, antialias=True)
        parts.append(moved.round().clamp(0, 255).byte())
    return torch.cat(parts)


def cifar_10_jpeg(root: Path) -> Dataset:
    """CIFAR-10's 10 000 test images after JPEG of quality 75, not CIFAR-10 test; cifar-10-test-jpeg. Needs Pillow.

    x is (10000, 3, 32, 32) uint8, class by class, in the order of the archive's names. Compression is a shift of its
    own: networks lose ten points of accuracy on it. Read from the tar test_jpg.tar, which is not unpacked.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError('cifar-10-jpeg needs Pillow; pip install "driftline[vision]"') from error
    folder, file = "cifar-10-test-jpeg", "test_jpg.tar"
    (path,) = find(root, folder, [file], "cifar-10-jpeg")
    content = read_content(path)
    check_content(content, f"{folder}/{file}", path)
    pixels, labels = [], []
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [member for member in archive if member.name.endswith(".jpg")]
        for member in sorted(members, key=lambda member: member.name):
            stored = archive.extractfile(member)
            assert stored is not None
            with Image.open(stored) as image:
                pixels.append(np.array(image.convert("RGB")))
            labels.append(CLASSES.index(member.name.split("/")[-2]))
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return build("cifar-10-jpeg", {"train": (x, torch.tensor(labels))}, CLASSES)
