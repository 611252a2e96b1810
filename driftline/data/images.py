"""Image sets by name: digits, MNIST, Fashion-MNIST, USPS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from driftline.data.arrays import build, parse_idx, read_npz, to_tensor
from driftline.data.files import check_content, find, read_content
from driftline.errors import DataError
from driftline.stream.dataset import Dataset

_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DIGITS = tuple("0123456789")


def digits(root: Path) -> Dataset:
    """Handwritten digits, 8x8 grey, 1 438 + 359; comes with scikit-learn, needs no files.

    x is (N, 1, 8, 8) float32 in [0, 1]. The source has no split: here every fifth sample (the 5th, 10th, ...)
    is test. Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits".
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = to_tensor(bunch.images / 16.0, "digits.x").unsqueeze(1)
    y = to_tensor(bunch.target, "digits.y")
    test = torch.arange(len(x)) % 5 == 4
    return build("digits", {"train": (x[~test], y[~test]), "test": (x[test], y[test])}, DIGITS)


def mnist(root: Path) -> Dataset:
    """MNIST handwritten digits, 28x28 grey, 60 000 + 10 000; files in MNIST/raw.

    x is (N, 1, 28, 28) uint8. LeCun, Bottou, Bengio and Haffner 1998.
    """
    return _idx_pair(root, "MNIST/raw", "mnist", DIGITS)


def fashion_mnist(root: Path) -> Dataset:
    """Fashion-MNIST articles of clothing, 28x28 grey, 60 000 + 10 000; files in FashionMNIST/raw.

    x is (N, 1, 28, 28) uint8. Xiao, Rasul and Vollgraf 2017.
    """
    return _idx_pair(root, "FashionMNIST/raw", "fashion-mnist", _FASHION)


def _idx_pair(root: Path, folder: str, name: str, classes: tuple[str, ...]) -> Dataset:
    files = [file for pair in _IDX_FILES.values() for file in pair]
    tensors = []
    for file, path in zip(files, find(root, folder, files, name)):
        content = read_content(path)
        tensors.append(parse_idx(content, path))
        check_content(content, f"{folder}/{file}", path)
    x, y, x_test, y_test = tensors
    return build(name, {"train": (x.unsqueeze(1), y), "test": (x_test.unsqueeze(1), y_test)}, classes)


def usps(root: Path) -> Dataset:
    """USPS handwritten digits from envelopes, 16x16 grey, 7 291 + 2 007; file usps/usps_16x16.npz.

    x is (N, 1, 16, 16) float32 in [0, 1]. Hull 1994; values as in LIBSVM's copy, moved from [-1, 1] to [0, 1].
    """
    (path,) = find(root, "usps", ["usps_16x16.npz"], "usps")
    arrays = read_npz(path)
    missing = {"x_train", "y_train", "x_test", "y_test"} - set(arrays)
    if missing:
        raise DataError(f"{path}: array {', '.join(sorted(missing))} missing; get the file again")
    check_content(b"".join(arrays[key].tobytes() for key in sorted(arrays)), "usps/usps_16x16.npz", path)

    def part(which: str) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = np.reshape(arrays[f"x_{which}"], (-1, 1, 16, 16)), arrays[f"y_{which}"]
        return to_tensor(x, f"{path}: x_{which}"), to_tensor(y, f"{path}: y_{which}")

    return build("usps", {"train": part("train"), "test": part("test")}, DIGITS)
