"""Where data files lie, and whether they are what was published: root, search, gunzip, checksums."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from driftline.errors import ChecksumError, MissingDataError

DOWNLOADABLE = ("mnist", "fashion-mnist", "usps", "cifar-10")

# Length in bytes and sha256 of the published files' content *after* gunzip, so that a recompressed file
# still counts as the original. A CIFAR-10 entry shorter than its file vouches for the file's beginning;
# the entry of an .npz is over its arrays' bytes in the order of their names.
KNOWN: dict[str, tuple[int, str]] = {
    "MNIST/raw/train-images-idx3-ubyte": (
        47040016,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "MNIST/raw/train-labels-idx1-ubyte": (
        60008,
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "MNIST/raw/t10k-images-idx3-ubyte": (
        7840016,
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "MNIST/raw/t10k-labels-idx1-ubyte": (
        10008,
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "FashionMNIST/raw/train-images-idx3-ubyte": (
        47040016,
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "FashionMNIST/raw/train-labels-idx1-ubyte": (
        60008,
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "FashionMNIST/raw/t10k-images-idx3-ubyte": (
        7840016,
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "FashionMNIST/raw/t10k-labels-idx1-ubyte": (
        10008,
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    "cifar-10-batches-bin/data_batch_1": (
        30730000,
        "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    ),
    "cifar-10-batches-bin/data_batch_5": (
        15365000,
        "72fc5b42e157cb43aa7cb27538c939f177a32c1f7724c4260548c9dbd5aec049",
    ),
    "cifar-10-batches-bin/test_batch": (
        3073000,
        "8314c96d7cd65618193bab23acdd5d4c4af15bf6dd00a1781d55beedf3be1ef5",
    ),
    "cifar-10-test-jpeg/test_jpg.tar": (
        15452160,
        "e48adedee3b04d8030be234342ac61b1d57961c070be4e10380b98c98b8ede40",
    ),
    "qmnist/qmnist-train-labels-idx2-int": (
        1920012,
        "bb1b6e1ec7b04fd5696f1ed50b5f58f8ef195118edd5c93c81783df9740b8ac5",
    ),
    "qmnist/qmnist-test-labels-idx2-int": (
        1920012,
        "92d0ccb8c25f9c6534270fb4be7e1d24a1c6d315edfc8a638bfbd31c70f362dd",
    ),
    "usps/usps_16x16.npz": (9530450, "495fcfceed589de0ecc6a684d4ed18c4986fb967bbf68930a9d3388d152bb39e"),
    "streams/elec2/elec2_data.dat": (2903434, "f96f3b096a5318c1dab465f9c64b50824f751d651a13b864137cfefac6a6bef2"),
    "streams/elec2/elec2_label.dat": (90624, "769805ed2f942698b72bb6398d1f685ddd2c8b01213334658df709466890c154"),
    "streams/keystroke/keystroke.data": (401379, "046982809cd741280c6009494e39864f4854a49509d081d81bc8cdf57208fd9a"),
    "streams/keystroke/keystroke.labels": (3200, "fdeb07aed846df2b91cee117ed60672a0d2e93938e0f2c0eb9de34269e645259"),
    "streams/outdoor/outdoorStream.data": (
        582962,
        "53f9d793056bf60f832ded0122a9f7286ea35e42fa019d2f4b2158bf6ef4ec1b",
    ),
    "streams/outdoor/outdoorStream.labels": (
        11000,
        "e2dceebd3ab87380f7d60c03d8838a07135ba661ba0d626ab519bd97d6244435",
    ),
    "streams/weather-noaa/NEweather_class.csv": (
        36318,
        "90f39b754a9c95fc34047beb41752ebeb6fa1cde4e2d03fad3d3c5a46aee360f",
    ),
    "streams/weather-noaa/NEweather_data.csv": (
        664639,
        "e38ef95890ec0df3daee0493e92e59c38ae1c27cd01c4805367f189d52dfeed9",
    ),
}


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Folder of the data files: ``root``, else ``$DRIFTLINE_DATA``, else ``~/.cache/driftline``."""
    return Path(root or os.environ.get("DRIFTLINE_DATA") or "~/.cache/driftline").expanduser()


def find(root: Path, folder: str, files: Sequence[str], name: str) -> list[Path]:
    """Return the path of each of ``files`` in ``root/folder``, plain or with ``.gz`` appended.

    Raises
    ------
    MissingDataError
        Names every missing file at once.
    """
    found = [find_file(root / folder, file) for file in files]
    missing = [file for file, path in zip(files, found) if path is None]
    if missing:
        raise MissingDataError(
            f"{name}: {', '.join(missing)} (or .gz) not found in {root / folder}; {advice(name, folder)}"
        )
    return [path for path in found if path is not None]


def find_file(folder: Path, file: str) -> Path | None:
    """Return ``folder/file`` or ``folder/file.gz``, whichever is there first, or None."""
    return next((path for path in (folder / file, folder / f"{file}.gz") if path.is_file()), None)


def advice(name: str, folder: str) -> str:
    """What to do when the files of the dataset ``name`` are missing."""
    point = f"set DRIFTLINE_DATA or --data-root (root=...) to the folder that holds {folder}"
    if name in DOWNLOADABLE:
        return f'{point}, or run driftline.data.download("{name}", root) (needs pip install "driftline[vision]")'
    return f"{point}, with the published files in it"


def read_content(path: Path) -> bytes:
    """Return the bytes of a file, gunzipped when its name ends in ``.gz``.

    Raises
    ------
    ChecksumError
        The gzip data is cut short or damaged.
    """
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ChecksumError(f"{path}: gzip data cut short or damaged ({error}); delete it and get it again") from error


def check_content(content: bytes | memoryview, key: str, path: Path) -> None:
    """Raise unless ``content`` is the published content ``KNOWN[key]``.

    Raises
    ------
    ChecksumError
    """
    length, expected = KNOWN[key]
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise ChecksumError(
            f"{path}: not the published content of {key} (found {len(content)} bytes, sha256 {digest[:12]}...; "
            f"expected {length} bytes, {expected[:12]}...): it is damaged or another file; delete it and get it "
            "again, or load files of your own with driftline.data.from_npz"
        )
