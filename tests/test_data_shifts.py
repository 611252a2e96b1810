"""Data whose parts differ by who wrote it, who collected it, and how it was stored."""

import shutil
import sys

import pytest
import torch

from driftline.data import load, read_idx
from driftline.errors import ChecksumError, ConfigError, MissingDataError
from tests.test_data import copy_of, root_with


@pytest.fixture(scope="module")
def qmnist():
    root_with("qmnist")
    return load("qmnist", root_with("MNIST"))


def test_qmnist_is_mnist_with_its_series_as_splits(qmnist):
    mnist = load("mnist", root_with("MNIST"))
    assert torch.equal(qmnist.x, mnist.x) and torch.equal(qmnist.y, mnist.y)
    assert torch.equal(qmnist.test.x, mnist.test.x) and torch.equal(qmnist.test.y, mnist.test.y)
    sizes = {name: len(split) for name, split in qmnist.splits.items()}
    assert sizes == {"test": 10000, "hsf_0": 30950, "hsf_4": 29050, "test_hsf_0": 4999, "test_hsf_4": 5001}


def test_a_series_holds_the_images_whose_label_says_so(qmnist):
    labels = read_idx(root_with("qmnist") / "qmnist" / "qmnist-test-labels-idx2-int.gz")[:10000]
    pupils = (labels[:, 1] == 4).nonzero().flatten()
    assert torch.equal(qmnist.splits["test_hsf_4"].x, qmnist.test.x[pupils])
    assert torch.equal(qmnist.splits["test_hsf_4"].y, labels[pupils, 0].long())


def test_writers_keeps_only_their_series_and_the_source_says_so(qmnist):
    pupils = load("qmnist", root_with("qmnist"), writers=4)
    assert torch.equal(pupils.x, qmnist.splits["hsf_4"].x) and torch.equal(pupils.test.y, qmnist.splits["test_hsf_4"].y)
    assert pupils.source == {"name": "qmnist", "writers": 4} and "hsf_0" not in pupils.splits
    again = load(**pupils.splits["test_hsf_4"].source, root=root_with("qmnist"))
    assert torch.equal(again.x, pupils.test.x)


@pytest.mark.parametrize("writers", [1, (0, 1), (), True, "hsf_0"])
def test_series_that_mnist_does_not_have_are_refused(writers, tmp_path):
    with pytest.raises(ConfigError, match=r"qmnist: writers=.*: MNIST's images are of series 0 and 4"):
        load("qmnist", tmp_path, writers=writers)


def test_missing_and_foreign_labels_of_qmnist_are_refused(tmp_path):
    with pytest.raises(MissingDataError, match=r"qmnist: qmnist-train-labels-idx2-int, .*set DRIFTLINE_DATA"):
        load("qmnist", tmp_path)
    folder = copy_of("qmnist", tmp_path)
    shutil.copyfile(folder / "qmnist-test-labels-idx2-int.gz", folder / "qmnist-train-labels-idx2-int.gz")
    with pytest.raises(ChecksumError, match="not the published content of qmnist/qmnist-train"):
        load("qmnist", tmp_path)


@pytest.mark.parametrize("size", [28, 16])
def test_mnist_and_usps_come_in_one_form(size):
    root_with("MNIST")
    data = load("mnist-usps", root_with("usps"), size=size)
    assert {name: len(split) for name, split in data.splits.items()} == {"test": 10000, "usps_test": 2007, "usps": 7291}
    for part in (data, *data.splits.values()):
        assert part.x.shape[1:] == (1, size, size) and part.x.dtype == torch.uint8
    usps, mnist = load("usps", root_with("usps")), load("mnist", root_with("MNIST"))
    assert torch.equal(data.splits["usps"].y, usps.y) and torch.equal(data.test.y, mnist.test.y)
    if size == 28:
        assert torch.equal(data.x, mnist.x)
    else:
        # Bytes are whole numbers, USPS's values are not.
        assert float((data.splits["usps"].x / 255 - usps.x).abs().max()) <= 0.5 / 255 + 1e-6
    # Resizing keeps the mean, but for what lies at the border.
    assert abs(float(data.splits["usps"].x.float().mean()) / 255 - float(usps.x.mean())) < 0.01


@pytest.mark.parametrize("size", [0, 2.5, True])
def test_sizes_out_of_range_are_refused(size, tmp_path):
    with pytest.raises(ConfigError, match="mnist-usps: size="):
        load("mnist-usps", tmp_path, size=size)


def test_jpeg_images_are_read_from_the_archive():
    pytest.importorskip("PIL")
    data = load("cifar-10-jpeg", root_with("cifar-10-test-jpeg"))
    assert data.x.shape == (10000, 3, 32, 32) and data.x.dtype == torch.uint8 and data.splits == {}
    assert torch.bincount(data.y).tolist() == [1000] * 10 and data.name == "cifar-10-jpeg"
    # Of every class's images the lossless test set has some, which compression has changed a little.
    lossless = load(
        "cifar-10", root_with("cifar-10-batches-bin"), partial={"data_batch_1": 10, "test_batch": 1000}
    ).test
    for label in range(10):
        image = lossless.x[lossless.y == label][0].float()
        apart = (data.x[data.y == label].float() - image).abs().mean((1, 2, 3))
        assert 0 < float(apart.min()) < 12 < float(apart.sort().values[1])


def test_a_missing_or_damaged_archive_is_refused(tmp_path):
    pytest.importorskip("PIL")
    with pytest.raises(MissingDataError, match=r"cifar-10-jpeg: test_jpg.tar .*set DRIFTLINE_DATA"):
        load("cifar-10-jpeg", tmp_path)
    path = copy_of("cifar-10-test-jpeg", tmp_path) / "test_jpg.tar"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ChecksumError, match="not the published content of cifar-10-test-jpeg"):
        load("cifar-10-jpeg", tmp_path)


def test_without_pillow_the_way_to_get_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r"cifar-10-jpeg needs Pillow; pip install"):
        load("cifar-10-jpeg", tmp_path)
