from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import pickle
import shutil
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from driftline.data import download, from_csv, from_folder, from_npz, load, names, read_idx, scale, tensors
from driftline.errors import ChecksumError, ConfigError, DataError, DriftlineError, MissingDataError
from driftline.stream import Dataset
from tests.golden import data_root


def root_with(folder: str) -> Path:
    """Root of the real data if it holds ``folder``, or skip."""
    root = data_root()
    if not (root / folder).is_dir():
        pytest.skip(f"real data {folder} not found in {root}")
    return root


def copy_of(folder: str, target: Path) -> Path:
    """Copy a folder of the real data into ``target``; return the copy."""
    source = root_with(folder) / folder
    copy = target / folder
    copy.mkdir(parents=True)
    for path in source.iterdir():
        shutil.copyfile(path, copy / path.name)
    return copy


def class_counts(y: torch.Tensor) -> list[int]:
    return torch.bincount(y).tolist()


# Sets that come with the dependencies


def test_digits_are_split_deterministically_with_every_fifth_sample_as_test():
    data = load("digits")
    assert data.x.shape == (1438, 1, 8, 8) and data.x.dtype == torch.float32
    assert data.test is not None and data.test.x.shape == (359, 1, 8, 8)
    assert (float(data.x.min()), float(data.x.max())) == (0.0, 1.0)
    assert len(data.classes) == 10 and data.test.classes == data.classes
    # The source begins 0, 1, ..., 9, 0, ...: its samples 4 and 9 went to test.
    assert data.y.tolist()[:8] == [0, 1, 2, 3, 5, 6, 7, 8] and data.test.y.tolist()[:2] == [4, 9]


@pytest.mark.parametrize(
    ("name", "shape", "classes", "counts"),
    [
        ("image-segments", (2310, 18), "brickface cement foliage grass path sky window", [330] * 7),
        ("phishing", (1250, 9), "False True", [702, 548]),
    ],
)
def test_river_sets_keep_their_classes_and_order(name, shape, classes, counts):
    data = load(name)
    assert data.x.shape == shape and data.x.dtype == torch.float32
    assert " ".join(data.classes) == classes
    assert class_counts(data.y) == counts
    assert data.splits == {}


def test_image_segments_come_in_the_order_of_the_stream():
    from river.datasets import ImageSegments

    data = load("image-segments")
    for i, (features, label) in enumerate(ImageSegments().take(50)):
        assert data.classes[data.y[i]] == label
        assert data.x[i].tolist() == pytest.approx(list(features.values()), rel=1e-6)  # float32


def test_trump_approval_has_a_number_to_predict_in_the_order_of_the_stream():
    from river.datasets import TrumpApproval

    data = load("trump-approval")
    assert data.x.shape == (1001, 6) and data.y.shape == (1001,) and data.classes == ()
    for i, (features, percent) in enumerate(TrumpApproval().take(50)):
        assert data.x[i].tolist() == pytest.approx(list(features.values()), rel=1e-6)  # float32
        assert float(data.y[i]) == pytest.approx(percent / 100, rel=1e-6)


# Real files


@pytest.mark.parametrize(
    ("name", "folder", "counts", "first_labels"),
    [
        ("mnist", "MNIST", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], [5, 0, 4, 1, 9]),
        ("fashion-mnist", "FashionMNIST", [6000] * 10, [9, 0, 0, 3, 0]),
    ],
)
def test_idx_sets_load_whole(name, folder, counts, first_labels):
    data = load(name, root_with(folder))
    assert data.x.shape == (60000, 1, 28, 28) and data.x.dtype == torch.uint8
    assert class_counts(data.y) == counts and data.y[:5].tolist() == first_labels
    assert data.test.x.shape == (10000, 1, 28, 28) and len(data.classes) == 10


def test_usps_loads_as_images_in_unit_range():
    data = load("usps", root_with("usps"))
    assert data.x.shape == (7291, 1, 16, 16) and data.test.x.shape == (2007, 1, 16, 16)
    assert data.x.dtype == torch.float32 and (float(data.x.min()), float(data.x.max())) == (0.0, 1.0)
    assert data.y[:5].tolist() == [6, 5, 4, 7, 3]


@pytest.mark.parametrize(
    ("name", "shape", "counts"),
    [
        ("elec2", (45312, 6), [19237, 26075]),
        ("weather", (18159, 8), [12461, 5698]),
        ("outdoor", (4000, 21), [100] * 40),
        ("keystroke", (1600, 10), [400] * 4),
    ],
)
def test_tabular_streams_load_whole(name, shape, counts):
    data = load(name, root_with("streams"))
    assert data.x.shape == shape and data.x.dtype == torch.float32
    assert class_counts(data.y) == counts and len(data.classes) == len(counts)


def test_elec2_leaves_out_date_and_the_price_that_defines_the_label():
    data = load("elec2", root_with("streams/elec2"))
    expected = [2, 0.021277, 0.415055, 0.003467, 0.422915, 0.414912]
    assert data.x[1].tolist() == pytest.approx(expected, rel=1e-6)  # float32


def test_read_idx_reads_the_integers_of_qmnist():
    labels = read_idx(root_with("qmnist") / "qmnist" / "qmnist-train-labels-idx2-int.gz")
    assert labels.shape == (60000, 8)
    assert labels[:5, 0].tolist() == [5, 0, 4, 1, 9]


# Roots, names, options, sources


def test_root_comes_from_the_environment_unless_given(monkeypatch, tmp_path):
    monkeypatch.setenv("DRIFTLINE_DATA", str(tmp_path / "environment"))
    with pytest.raises(MissingDataError, match="environment"):
        load("usps")
    with pytest.raises(MissingDataError, match="argument"):
        load("usps", tmp_path / "argument")
    monkeypatch.delenv("DRIFTLINE_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(MissingDataError) as caught:
        load("usps")
    assert str(tmp_path / "home" / ".cache" / "driftline") in str(caught.value)


def test_missing_files_are_all_named_with_the_folder_and_the_way_to_get_them(tmp_path):
    folder = copy_of("MNIST/raw", tmp_path)
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(MissingDataError) as caught:
        load("mnist", tmp_path)
    message = str(caught.value)
    for part in ("train-labels-idx1-ubyte, t10k-images-idx3-ubyte (or .gz)", str(folder), "DRIFTLINE_DATA"):
        assert part in message
    assert 'download("mnist", root)' in message and "driftline[vision]" in message


@pytest.mark.parametrize(
    ("given", "nearest"), [("mnits", "mnist"), ("FashionMNIST", "fashion-mnist"), ("cifar10", "cifar-10")]
)
def test_unknown_name_suggests_the_nearest(given, nearest):
    with pytest.raises(ConfigError, match=f"unknown dataset '{given}'; did you mean '{nearest}'"):
        load(given)


def test_unknown_option_and_split_name_the_valid_ones():
    with pytest.raises(ConfigError, match="digits: unknown option size; it takes none"):
        load("digits", size=4)
    with pytest.raises(ConfigError, match="cifar-10: unknown option part; it takes partial"):
        load("cifar-10", part=True)
    with pytest.raises(ConfigError, match="no split 'val'; it has train, test"):
        load("digits", split="val")


def test_every_name_has_one_line_of_description():
    assert {"digits", "image-segments", "phishing", "mnist", "fashion-mnist", "usps", "cifar-10"} <= set(names())
    assert all(20 < len(line) < 120 and line.endswith(".") for line in names().values())


@pytest.mark.parametrize(
    "arguments",
    [
        *({}, {"split": "test"}, {"standardize": True}, {"split": "test", "standardize": True}),
        *({"input_range": [-1, 1]}, {"split": "test", "input_range": [0.5, 2]}),
    ],
)
def test_source_survives_json_and_repeats_the_load(arguments):
    data = load("digits", **arguments)
    again = load(**json.loads(json.dumps(data.source)))
    assert torch.equal(again.x, data.x) and torch.equal(again.y, data.y)
    assert again.source == data.source


def test_source_of_the_test_split_loads_the_test_split():
    test = load("digits").test
    assert torch.equal(load(**test.source).x, test.x)


# Ranges


def test_bytes_and_floats_are_moved_to_the_range_with_their_splits():
    data = tensors(
        torch.tensor([[0, 51, 255]], dtype=torch.uint8),
        torch.tensor([1]),
        classes=["a", "b"],
        test=(torch.tensor([[255, 0, 0]], dtype=torch.uint8), torch.tensor([0])),
    )
    moved = scale(data, -1, 1)
    assert moved.x.tolist() == [[-1.0, pytest.approx(-0.6), 1.0]] and moved.test.x.tolist() == [[1.0, -1.0, -1.0]]
    assert moved.x.dtype == torch.float32 and data.x.dtype == torch.uint8
    floats = Dataset(torch.tensor([[0.0, 1.0]]))
    assert scale(floats, -3, 5).x.tolist() == [[-3.0, 5.0]] and floats.x.tolist() == [[0.0, 1.0]]


def test_mnist_in_minus_one_to_one_is_what_normalize_makes_of_it():
    root = root_with("MNIST")
    whole, moved = load("mnist", root), load("mnist", root, input_range=(-1, 1))
    published = (whole.x[:200].float() / 255 - 0.5) / 0.5
    assert torch.allclose(moved.x[:200], published, atol=1e-6)  # one rounding more or less
    assert (float(moved.x.min()), float(moved.x.max())) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"input_range": (1, -1)}, ConfigError, "the lower one first"),
        ({"input_range": (0, float("inf"))}, ConfigError, "two finite numbers"),
        ({"input_range": "-1,1"}, ConfigError, "input_range='-1,1': give two numbers"),
        ({"input_range": 1}, ConfigError, "input_range=1: give two numbers"),
        ({"input_range": (-1, 1), "standardize": True}, ConfigError, "give one of them"),
        ({"name": "image-segments", "input_range": (-1, 1)}, DataError, "image-segments: .* to .*; use standardize"),
    ],
)
def test_a_range_that_cannot_be_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        load(**{"name": "digits", **given})


# Damage


def write_plain(folder: Path, file: str, change) -> Path:
    """Replace ``file.gz`` by its content, changed, as the plain ``file``."""
    packed = folder / f"{file}.gz"
    plain = folder / file
    plain.write_bytes(change(bytearray(gzip.decompress(packed.read_bytes()))))
    packed.unlink()
    return plain


def flip(content: bytearray, at: int) -> bytearray:
    content[at] ^= 1
    return content


def test_truncated_gzip_is_a_checksum_error_naming_the_file(tmp_path):
    path = copy_of("MNIST/raw", tmp_path) / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ChecksumError, match=r"t10k-images-idx3-ubyte\.gz: gzip data cut short"):
        load("mnist", tmp_path)


def test_flipped_byte_in_a_gzip_is_a_checksum_error(tmp_path):
    path = copy_of("FashionMNIST/raw", tmp_path) / "train-labels-idx1-ubyte.gz"
    content = bytearray(path.read_bytes())
    path.write_bytes(flip(content, len(content) // 2))
    with pytest.raises(ChecksumError, match=r"train-labels-idx1-ubyte\.gz"):
        load("fashion-mnist", tmp_path)


def test_flipped_pixel_in_a_plain_file_is_a_checksum_error(tmp_path):
    folder = copy_of("MNIST/raw", tmp_path)
    write_plain(folder, "t10k-images-idx3-ubyte", lambda content: flip(content, 5000))
    with pytest.raises(ChecksumError, match="t10k-images-idx3-ubyte: not the published content"):
        load("mnist", tmp_path)


def test_plain_files_and_recompressed_files_are_the_original(tmp_path):
    folder = copy_of("MNIST/raw", tmp_path)
    write_plain(folder, "t10k-images-idx3-ubyte", bytes)
    packed = folder / "train-labels-idx1-ubyte.gz"
    packed.write_bytes(gzip.compress(gzip.decompress(packed.read_bytes()), 1))
    assert len(load("mnist", tmp_path).test) == 10000


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda content: b"<html>not found</html>", DataError, "begins with b'<htm'"),
        (lambda content: content[:-1], ChecksumError, "10007 bytes where its header"),
        (lambda content: b"", DataError, "begins with b''"),
    ],
)
def test_wrong_magic_and_wrong_length_are_named(tmp_path, change, error, message):
    folder = copy_of("MNIST/raw", tmp_path)
    path = write_plain(folder, "t10k-labels-idx1-ubyte", change)
    with pytest.raises(error) as caught:
        load("mnist", tmp_path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_damaged_usps_is_a_checksum_error(tmp_path):
    path = copy_of("usps", tmp_path) / "usps_16x16.npz"
    original = path.read_bytes()
    path.write_bytes(original[:-5000])
    with pytest.raises(ChecksumError, match=r"usps_16x16\.npz"):
        load("usps", tmp_path)
    path.write_bytes(flip(bytearray(original), len(original) // 2))
    with pytest.raises(ChecksumError, match=r"usps_16x16\.npz"):
        load("usps", tmp_path)
    with np.load(data_root() / "usps" / "usps_16x16.npz") as archive:
        arrays = dict(archive)
    arrays["x_test"] = arrays["x_test"][::-1]
    np.savez(path, **arrays)
    with pytest.raises(ChecksumError, match="not the published content"):
        load("usps", tmp_path)


def test_changed_digit_in_a_table_is_a_checksum_error(tmp_path):
    path = copy_of("streams/keystroke", tmp_path) / "keystroke.data"
    path.write_bytes(path.read_bytes().replace(b"9.77", b"9.78", 1))
    with pytest.raises(ChecksumError, match=r"keystroke\.data"):
        load("keystroke", tmp_path)


def test_no_damage_to_an_npz_escapes_as_a_foreign_error(tmp_path):
    path = tmp_path / "small.npz"
    np.savez_compressed(path, x=np.zeros((4, 2), np.float32), y=np.array([0, 1, 0, 1]))
    original = path.read_bytes()
    damaged = [original[:end] for end in range(len(original))]
    damaged += [bytes(flip(bytearray(original), at)) for at in range(len(original))]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            from_npz(path)
        except DriftlineError:
            refused += 1
    assert refused > len(original)  # every truncation, and every flip that matters


# CIFAR-10


def test_incomplete_cifar_raises_and_says_what_was_found(tmp_path):
    copy_of("cifar-10-batches-bin", tmp_path)
    with pytest.raises(MissingDataError) as caught:
        load("cifar-10", tmp_path)
    message = str(caught.value)
    assert "data_batch_2, data_batch_3, data_batch_4, data_batch_5, test_batch missing or short" in message
    assert "data_batch_5_first5000.bin.gz (5000 rows)" in message and "partial=True" in message


def test_partial_cifar_is_not_called_cifar_10_and_its_source_names_the_rows():
    data = load("cifar-10", root_with("cifar-10-batches-bin"), partial=True)
    assert data.name == "cifar-10-partial" and data.test.name == "cifar-10-partial/test"
    assert data.x.shape == (15000, 3, 32, 32) and data.test.x.shape == (1000, 3, 32, 32)
    assert data.x.dtype == torch.uint8
    assert [data.classes[y] for y in data.y[:3]] == ["frog", "truck", "truck"]
    assert data.x[0, :, 0, 0].tolist() == [59, 62, 63]  # the red, green, blue of the first training pixel
    assert data.source["partial"] == {"data_batch_1": 10000, "data_batch_5": 5000, "test_batch": 1000}
    fewer = load("cifar-10", root_with("cifar-10-batches-bin"), partial={"test_batch": 10, "data_batch_5": 20})
    assert torch.equal(fewer.x, data.x[10000:10020]) and torch.equal(fewer.test.x, data.test.x[:10])


def test_partial_cifar_refuses_rows_that_are_not_there():
    with pytest.raises(MissingDataError, match="test_batch missing or short"):
        load("cifar-10", root_with("cifar-10-batches-bin"), partial={"data_batch_1": 10000, "test_batch": 1001})
    with pytest.raises(MissingDataError, match=r"data_batch_1, .* missing or short"):
        load("cifar-10", root_with("cifar-10-batches-bin"), partial={"test_batch": 1000})
    with pytest.raises(ConfigError, match="'data_batch_6'"):
        load("cifar-10", root_with("cifar-10-batches-bin"), partial={"data_batch_6": 1})
    with pytest.raises(ConfigError, match="partial='yes'"):
        load("cifar-10", root_with("cifar-10-batches-bin"), partial="yes")


def test_damaged_cifar_part_is_a_checksum_error(tmp_path):
    folder = copy_of("cifar-10-batches-bin", tmp_path)
    path = folder / "test_batch_first1000.bin.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(content[:-1], 1))
    with pytest.raises(ChecksumError, match="3072999 bytes where 1000 rows"):
        load("cifar-10", tmp_path, partial=True)
    path.write_bytes(gzip.compress(flip(content, 100), 1))
    with pytest.raises(ChecksumError, match="not the published content"):
        load("cifar-10", tmp_path, partial=True)


# Anybody's tensors and npz files


def test_npz_round_trip(tmp_path):
    x, y = np.random.default_rng(0).random((20, 3)), np.arange(20) % 4
    np.savez(tmp_path / "mine.npz", x_train=x[:12], y_train=y[:12], x_test=x[12:], y_test=y[12:])
    data = load(tmp_path / "mine.npz", classes=["a", "b", "c", "d"])
    assert data.name == "mine" and data.classes == ("a", "b", "c", "d")
    assert torch.equal(data.x, torch.tensor(x[:12], dtype=torch.float32)) and data.y.tolist() == y[:12].tolist()
    assert (
        torch.equal(data.test.x, torch.tensor(x[12:], dtype=torch.float32)) and data.test.y.tolist() == y[12:].tolist()
    )
    again = load(**json.loads(json.dumps(data.test.source)))
    assert torch.equal(again.x, data.test.x) and again.classes == data.classes


def test_relative_npz_is_found_under_the_root(tmp_path):
    np.savez(tmp_path / "mine.npz", x=np.zeros((2, 1)), y=np.array([0, 1]))
    data = load("mine.npz", tmp_path)
    assert data.source == {"name": "mine.npz"} and len(data) == 2


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3)])
def test_floating_targets_in_an_npz_are_numbers_to_predict(tmp_path, shape):
    y = np.random.default_rng(0).random(shape)
    np.savez(tmp_path / "tides.npz", x_train=np.zeros((6, 2)), y_train=y, x_test=np.ones((6, 2)), y_test=-y)
    data = load(tmp_path / "tides.npz")
    assert data.classes == data.test.classes == ()
    assert data.y.dtype == torch.float32 and np.allclose(data.y.numpy(), y, rtol=1e-6)  # float32
    assert torch.equal(data.test.y, -data.y)
    standardized = load(tmp_path / "tides.npz", standardize=True)
    assert torch.equal(standardized.y, data.y)


def test_floating_targets_with_class_names_are_refused(tmp_path):
    np.savez(tmp_path / "odd.npz", x=np.zeros((2, 1)), y=np.array([0.5, 1.5]))
    with pytest.raises(DataError, match="class indices must be integers, got torch.float32"):
        load(tmp_path / "odd.npz", classes=["low", "high"])


def test_npz_with_x_alone_has_no_labels(tmp_path):
    np.savez(tmp_path / "unlabelled.npz", x=np.zeros((2, 1), np.uint8))
    data = from_npz(tmp_path / "unlabelled.npz")
    assert data.y is None and data.x.dtype == torch.uint8


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 1)), "labels": np.zeros(2)}, "found arrays images, labels; expected x and y"),
        ({"x": np.zeros((2, 1)), "labels": np.zeros(2)}, "found arrays labels, x; expected x and y"),
        ({"x": np.zeros((2, 1)), "y": np.array(["cat", "dog"])}, "y: dtype <U3"),
        ({"x": np.zeros((2, 1)), "y": np.array([0, None], dtype=object)}, "allow_pickle=False"),
        ({"x": np.array([[0.0], [np.nan]]), "y": np.array([0, 1])}, "NaN or Inf in row 1"),
    ],
)
def test_unusable_npz_says_why(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError) as caught:
        from_npz(tmp_path / "bad.npz")
    assert message in str(caught.value)


def test_big_endian_and_wide_unsigned_arrays_keep_their_values(tmp_path):
    np.savez(tmp_path / "odd.npz", x=np.array([[1.5], [2.5]], ">f4"), y=np.array([0, 1], np.uint16))
    data = from_npz(tmp_path / "odd.npz")
    assert data.x.tolist() == [[1.5], [2.5]] and data.y.tolist() == [0, 1]


def test_tensors_counts_classes_over_both_parts():
    x = torch.zeros(4, 2)
    data = tensors(x, torch.tensor([0, 1, 0, 1]), test=(x, torch.tensor([2, 2, 2, 0])), name="mine")
    assert data.classes == data.test.classes == ("0", "1", "2")
    assert data.test.name == "mine/test" and data.source == {}


def test_tensors_refuses_parts_that_do_not_agree():
    y = torch.tensor([0, 1])
    with pytest.raises(DataError, match=r"mine/test: samples of shape \(3,\)"):
        tensors(torch.zeros(2, 2), y, test=(torch.zeros(2, 3), y), name="mine")
    with pytest.raises(DataError, match=r"torch\.uint8"):
        tensors(torch.zeros(2, 2), y, test=(torch.zeros(2, 2, dtype=torch.uint8), y))


# Tables in text


def table(folder: Path, text: str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_csv_with_fractions_in_its_last_column_is_a_regression_table(tmp_path):
    data = load(table(tmp_path, "a,b,height\n1,2,0.5\n3,4,7\n"))
    assert data.name == "table" and data.classes == ()
    assert data.x.tolist() == [[1.0, 2.0], [3.0, 4.0]] and data.y.tolist() == [0.5, 7.0]


@pytest.mark.parametrize(
    ("cells", "kind", "classes", "y"),
    [
        (["dog", "cat", "dog"], None, ("cat", "dog"), [1, 0, 1]),
        (["10", "9", "10"], None, ("9", "10"), [1, 0, 1]),
        (["1.0", "0", "1"], None, ("0", "1"), [1, 0, 1]),
        (["0.5", "1.5", "0.5"], "classes", ("0.5", "1.5"), [0, 1, 0]),
        (["10", "9", "10"], "numbers", (), [10.0, 9.0, 10.0]),
    ],
)
def test_a_column_holds_classes_or_numbers(tmp_path, cells, kind, classes, y):
    text = "".join(f"{i},{cell}\n" for i, cell in enumerate(cells))
    options = {} if kind is None else {"kind": kind}
    data = load(table(tmp_path, text), **options)
    assert data.classes == classes and data.y.tolist() == y and data.x.flatten().tolist() == [0.0, 1.0, 2.0]


def test_columns_are_chosen_by_name_or_number_and_the_source_repeats_it(tmp_path):
    path = table(tmp_path, "day;temperature;rain;note\n1;20.5;0.5;x\n2;21.5;0;y\n\n")
    data = load(path, target="rain", columns=["temperature", 0], delimiter=";")
    assert data.x.tolist() == [[20.5, 1.0], [21.5, 2.0]] and data.y.tolist() == [0.5, 0.0]
    again = load(**json.loads(json.dumps(data.source)))
    assert torch.equal(again.x, data.x) and torch.equal(again.y, data.y)
    assert from_csv(path, target=-1, columns=[1], delimiter=";").classes == ("x", "y")


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        ("", {}, DataError, "no line in it"),
        ("a,b\n", {}, DataError, "only a line of names"),
        ("a,b\n1,2\n3\n", {}, DataError, "line 3: 1 columns, but the first line has 2"),
        ("a,b\n1,2\n\n3,4\n", {}, DataError, "line 3: 0 columns"),
        ("a,b\n1,2\nx,4\n", {}, DataError, "line 3, column a: expected a number, found 'x'"),
        ("1,2\n,4\n", {}, DataError, "line 2, column 0: expected a number, found nothing"),
        ("a,b\n1,x\n2,\n", {}, DataError, "line 3, column b: no class"),
        ("a,b\n1,2.5\n2,x\n", {"kind": "numbers"}, DataError, "line 3, column b: expected a number, found 'x'"),
        ("a,b\nnan,2.5\n2,3\n", {}, DataError, "NaN or Inf in row 0"),
        ("a,b\n1,2\n", {"target": "bb"}, ConfigError, r"unknown column in .*: 'bb'; did you mean 'b'\?"),
        ("a,b\n1,2\n", {"target": 2}, ConfigError, "unknown column in .*: '2'"),
        ("a,b\n1,2\n", {"columns": ["b"]}, ConfigError, r"columns=\['b'\]: give at least one column, and not"),
        ("a\n1\n", {}, ConfigError, "give at least one column"),
        ("a,b\n1,2\n", {"kind": "text"}, ConfigError, "kind='text'"),
        ("a,b\n1,2\n", {"delimiter": ""}, ConfigError, "must be one character"),
    ],
)
def test_an_unusable_csv_says_where_and_why(tmp_path, text, options, error, message):
    with pytest.raises(error, match=message) as caught:
        load(table(tmp_path, text), **options)
    assert "table" in str(caught.value)


def test_a_csv_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(MissingDataError, match=r"absent\.csv: no such file"):
        load(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="binary.csv: not a table in text"):
        load(tmp_path / "binary.csv")


# Image folders


def write_images(folder: Path, shape: tuple[int, ...] = (4, 6, 3)) -> dict[str, np.ndarray]:
    """Two classes of two random PNGs; return the pixels by relative path."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    pixels = {}
    for file in ("dog/2.png", "dog/1.png", "cat/b.png", "cat/a.png"):
        pixels[file] = rng.integers(0, 256, shape, dtype=np.uint8)
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels[file]).save(folder / file)
    return pixels


def test_image_folder_reads_pixels_in_sorted_order(tmp_path):
    pixels = write_images(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    data = load(tmp_path)
    assert data.classes == ("cat", "dog") and data.y.tolist() == [0, 0, 1, 1]
    expected = [pixels[file].transpose(2, 0, 1) for file in ("cat/a.png", "cat/b.png", "dog/1.png", "dog/2.png")]
    assert data.x.dtype == torch.uint8 and np.array_equal(data.x.numpy(), np.stack(expected))
    assert data.name == tmp_path.name


def test_image_folder_with_train_and_test_has_splits(tmp_path):
    write_images(tmp_path / "train")
    pixels = write_images(tmp_path / "test")
    shutil.rmtree(tmp_path / "test" / "cat")
    data = from_folder(tmp_path)
    assert len(data) == 4 and data.test.y.tolist() == [1, 1] and data.test.classes == ("cat", "dog")
    assert np.array_equal(data.test.x[0].numpy(), pixels["dog/1.png"].transpose(2, 0, 1))


def test_image_folder_keeps_train_as_a_class_name_beside_other_classes(tmp_path):
    write_images(tmp_path)
    (tmp_path / "dog").rename(tmp_path / "train")
    assert from_folder(tmp_path).classes == ("cat", "train")


def test_image_folder_resizes_and_converts_on_request_and_its_source_repeats_it(tmp_path):
    write_images(tmp_path)
    data = load(tmp_path, size=(5, 3), mode="L")
    assert data.x.shape == (4, 1, 5, 3)
    again = load(**json.loads(json.dumps(data.source)))
    assert torch.equal(again.x, data.x)
    assert load(tmp_path, size=8).x.shape == (4, 3, 8, 8)


def test_image_of_another_size_is_named(tmp_path):
    image = pytest.importorskip("PIL.Image")
    write_images(tmp_path)
    image.new("RGB", (6, 5)).save(tmp_path / "dog" / "3.png")
    with pytest.raises(DataError, match=r"3\.png: 5x6 pixels .* 4x6; pass size="):
        from_folder(tmp_path)


def test_unusable_images_and_folders_are_named(tmp_path):
    image = pytest.importorskip("PIL.Image")
    write_images(tmp_path)
    path = tmp_path / "dog" / "3.png"
    path.write_bytes((tmp_path / "dog" / "1.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"3\.png: not a readable image"):
        from_folder(tmp_path)
    image.fromarray(np.full((4, 6), 40000, np.uint16)).save(path)
    with pytest.raises(DataError, match=r"3\.png: pixel mode 'I;16'"):
        from_folder(tmp_path)
    path.unlink()
    (tmp_path / "eel").mkdir()
    with pytest.raises(DataError, match="eel: no image of a known type"):
        from_folder(tmp_path)
    with pytest.raises(MissingDataError, match="no such folder"):
        load(tmp_path / "absent")
    with pytest.raises(MissingDataError, match="no folders of images"):
        from_folder(tmp_path / "eel")
    with pytest.raises(ConfigError, match="size=0"):
        from_folder(tmp_path, size=0)


def test_missing_pillow_says_what_to_install(tmp_path, monkeypatch):
    write_images(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r"pip install \"driftline\[vision\]\""):
        from_folder(tmp_path)


# Downloads: torchvision's own downloaders, pointed at a mirror on this machine


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def datasets():
    return pytest.importorskip("torchvision.datasets")


@pytest.fixture
def serve(monkeypatch):
    """Serve a folder over HTTP on this machine; return its URL."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_download_fills_the_root_from_a_mirror(name, folder, datasets, serve, tmp_path, monkeypatch):
    mirror = root_with(folder) / folder / "raw"
    monkeypatch.setattr(getattr(datasets, folder), "mirrors", [f"{serve(mirror)}/"])
    assert download(name, tmp_path / "new") == tmp_path / "new"
    assert torch.equal(load(name, tmp_path / "new").x, load(name, data_root()).x)


def test_failed_download_says_so(datasets, serve, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{serve(tmp_path)}/nothing-here/"])
    with pytest.raises(MissingDataError, match=r"mnist: the download into .* failed: Error downloading train-images"):
        download("mnist", tmp_path)


def test_download_leaves_intact_files_alone(tmp_path, monkeypatch):
    copy_of("usps", tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert download("usps", tmp_path) == tmp_path


def test_download_without_torchvision_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ConfigError, match=r"pip install \"driftline\[vision\]\""):
        download("mnist", tmp_path)


def test_download_refuses_names_it_cannot_fetch(tmp_path):
    with pytest.raises(ConfigError, match="'elec2' has no downloader; these can be downloaded: mnist"):
        download("elec2", tmp_path)
    with pytest.raises(ConfigError, match="'minst' is unknown; did you mean 'mnist'"):
        download("minst", tmp_path)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_download_turns_usps_text_into_the_published_arrays(datasets, serve, tmp_path, monkeypatch):
    # The mirror is LIBSVM's text format, written from the arrays; three decimals are what LIBSVM's file has.
    usps = load("usps", root_with("usps"))
    files, url = {}, serve(tmp_path)
    for split, data, file in (("train", usps, "usps.bz2"), ("test", usps.test, "usps.t.bz2")):
        values = (data.x.flatten(1).double() * 2 - 1).numpy()
        rows = [" ".join(f"{i}:{v:.3f}" for i, v in enumerate(row, 1)) for row in values]
        lines = "".join(f"{label + 1} {row}\n" for label, row in zip(data.y.tolist(), rows))
        (tmp_path / file).write_bytes(bz2.compress(lines.encode(), 1))
        files[split] = [f"{url}/{file}", file, md5(tmp_path / file)]
    monkeypatch.setattr(datasets.USPS, "split_list", files)
    again = load("usps", download("usps", tmp_path / "new"))
    assert torch.equal(again.x, usps.x) and torch.equal(again.test.y, usps.test.y)


@pytest.mark.slow
def test_download_turns_cifar_pickles_into_the_binary_version(datasets, serve, tmp_path, monkeypatch):
    # The mirror holds the real rows that are here, and black images in place of the others.
    real = load("cifar-10", root_with("cifar-10-batches-bin"), partial=True)
    images = np.zeros((60000, 3072), np.uint8)
    labels = np.zeros(60000, np.int64)
    pieces = (
        (0, real.x[:10000], real.y[:10000]),
        (40000, real.x[10000:], real.y[10000:]),
        (50000, real.test.x, real.test.y),
    )
    for start, x, y in pieces:
        images[start : start + len(x)] = x.flatten(1).numpy()
        labels[start : start + len(x)] = y.numpy()
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    sums = []
    for i, part in enumerate(
        ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    ):
        rows = slice(i * 10000, (i + 1) * 10000)
        (folder / part).write_bytes(pickle.dumps({"data": images[rows], "labels": labels[rows].tolist()}))
        sums.append([part, md5(folder / part)])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(real.classes)}))
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(folder, folder.name)
    meta = {**datasets.CIFAR10.meta, "md5": md5(folder / "batches.meta")}
    changes = {
        "url": f"{serve(tmp_path)}/{archive.name}",
        "tgz_md5": md5(archive),
        "train_list": sums[:5],
        "test_list": sums[5:],
        "meta": meta,
    }
    for key, value in changes.items():
        monkeypatch.setattr(datasets.CIFAR10, key, value)
    data = load("cifar-10", download("cifar-10", tmp_path / "new"))
    assert data.name == "cifar-10" and len(data) == 50000 and data.source == {"name": "cifar-10"}
    assert torch.equal(data.x[:10000], real.x[:10000]) and torch.equal(data.test.x[:1000], real.test.x)
    assert torch.equal(data.y[40000:45000], real.y[10000:])
