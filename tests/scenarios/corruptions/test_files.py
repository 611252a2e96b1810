"""Corrupted copies on disk: what is written is what is read, and what streams show."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import driftline
from driftline.errors import ChecksumError, ConfigError, DataError, MissingDataError, RecordError
from driftline.scenarios import corruptions
from driftline.scenarios.corruptions.files import write_corrupted
from driftline.stream import Dataset
from driftline.stream.reader import BLOCK
from driftline.stream.seeds import derive_seed, generator


def pictures(count=70, size=(8, 10), dtype=torch.uint8):
    x = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Dataset(x if dtype == torch.uint8 else x / 255, torch.arange(count) % 3, ["a", "b", "c"], "pictures")


def copy_of(folder, name, severity):
    return driftline.load("cifar10-c", folder=str(folder), corruption=name, severity=severity)


def published(root, images=(50_000, 32, 32, 3), labels=50_000):
    """Write files of the published form, whose first pixel is the place and whose second is the severity."""
    folder = root / "CIFAR-10-C"
    folder.mkdir()
    x = np.zeros(images, np.uint8)
    x[:, 0, 0, 0] = np.arange(images[0]) % 10_000 % 256
    x[:, 0, 1, 2] = np.arange(images[0]) // 10_000 + 1
    np.save(folder / "fog.npy", x)
    np.save(folder / "labels.npy", np.arange(labels) % 10)
    return folder


def test_a_copy_is_read_as_what_the_corruption_gives_block_by_block(tmp_path):
    data = pictures()
    write_corrupted(data, tmp_path, ["fog", "contrast"], [2, 5], seed=3)
    for name in ("fog", "contrast"):
        stored = np.load(tmp_path / f"{name}.npy")
        assert stored.shape == (140, 8, 10, 3) and stored.dtype == np.uint8
        for severity in (2, 5):
            read = copy_of(tmp_path, name, severity)
            assert read.classes == ("a", "b", "c") and torch.equal(read.y, data.y)
            for block, start in enumerate(range(0, 70, BLOCK)):
                rng = generator(derive_seed(3, "corrupt", name, severity, block))
                corrupted = corruptions.get(name, severity, bytes=True)
                expected = corrupted(data.rows(torch.arange(start, min(start + BLOCK, 70))), rng)
                assert torch.equal(read.rows(torch.arange(start, min(start + BLOCK, 70))), expected)


def test_what_else_is_written_does_not_change_a_file_and_fractions_are_as_bytes(tmp_path):
    write_corrupted(pictures(), tmp_path / "a", ["snow"], [4])
    write_corrupted(pictures(dtype=torch.float32), tmp_path / "b", ["fog", "snow"], [1, 4])
    assert np.array_equal(np.load(tmp_path / "a/snow.npy"), np.load(tmp_path / "b/snow.npy")[70:])
    assert np.load(tmp_path / "b/labels.npy").tolist() == [i % 3 for i in range(70)] * 2


def test_files_are_replaced_only_when_asked_and_none_is_left_half_written(tmp_path):
    write_corrupted(pictures(), tmp_path, ["contrast"], [1])
    before = (tmp_path / "contrast.npy").read_bytes()
    with pytest.raises(RecordError, match=r"contrast\.npy, labels\.npy.*overwrite"):
        write_corrupted(pictures(), tmp_path, ["contrast"], [5])
    assert (tmp_path / "contrast.npy").read_bytes() == before
    write_corrupted(pictures(), tmp_path, ["contrast"], [5], overwrite=True)
    assert (tmp_path / "contrast.npy").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["contrast.npy", "corrupted.json", "labels.npy"]


@pytest.mark.parametrize(
    ("names", "severities", "said"),
    [
        (["fgo"], [1], "did you mean 'fog'"),
        ([], [1], "corruption: none: give at least one"),
        (["fog", "fog"], [1], "each once"),
        (["fog"], [], "severity: none"),
        (["fog"], [0], "severity 0: files hold whole severities"),
        (["fog"], [2.5], "severity 2.5"),
        (["fog"], [6], "severity 6"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path, names, severities, said):
    with pytest.raises(ConfigError, match=said):
        write_corrupted(pictures(), tmp_path / "out", names, severities)
    assert not (tmp_path / "out").exists()


def test_data_that_is_no_labelled_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="needs images"):
        write_corrupted(Dataset(torch.rand(4, 3), torch.tensor([0, 1, 0, 1])), tmp_path, ["fog"])
    with pytest.raises(DataError, match="needs class labels"):
        write_corrupted(Dataset(torch.rand(4, 3, 8, 8)), tmp_path, ["fog"])
    with pytest.raises(DataError, match=r"needs values in \[0, 1\]"):
        write_corrupted(Dataset(torch.full((4, 3, 8, 8), 2.0), torch.tensor([0, 1, 0, 1])), tmp_path, ["fog"])


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot write"):
        write_corrupted(pictures(), tmp_path / "file" / "out", ["fog"], [1])


def test_the_published_files_are_read_at_each_severity(tmp_path):
    published(tmp_path)
    for severity in (1, 5):
        data = driftline.load("cifar10-c", tmp_path, corruption="fog", severity=severity)
        assert data.x.shape == (10_000, 3, 32, 32) and data.classes[0] == "airplane"
        assert data.x[:, 2, 0, 1].unique().tolist() == [severity]
        assert data.x[:300, 0, 0, 0].tolist() == [i % 256 for i in range(300)]
        assert data.y[:3].tolist() == [0, 1, 2]
    with pytest.raises(MissingDataError, match=r"snow\.npy not found.*zenodo\.org, record 2535967"):
        driftline.load("cifar10-c", tmp_path, corruption="snow")
    with pytest.raises(ConfigError, match="severity=6"):
        driftline.load("cifar10-c", tmp_path, corruption="fog", severity=6)


def test_files_of_another_shape_or_cut_short_are_not_taken_for_the_published_ones(tmp_path):
    folder = published(tmp_path, images=(500, 32, 32, 3), labels=500)
    with pytest.raises(ChecksumError, match=r"shape \(500, 32, 32, 3\) where the published file has"):
        driftline.load("cifar10-c", tmp_path, corruption="fog")
    (folder / "fog.npy").write_bytes((folder / "fog.npy").read_bytes()[:-1])
    with pytest.raises(ChecksumError, match=r"fog\.npy: cut short or damaged"):
        driftline.load("cifar10-c", tmp_path, corruption="fog")
    np.save(folder / "fog.npy", np.zeros((5, 3)))
    with pytest.raises(DataError, match="expected bytes"):
        driftline.load("cifar10-c", tmp_path, corruption="fog")


def test_a_copy_tells_what_it_holds_and_notices_damage(tmp_path):
    write_corrupted(pictures(), tmp_path, ["contrast"], [3])
    with pytest.raises(ConfigError, match="severity=5.* holds 3"):
        copy_of(tmp_path, "contrast", 5)
    with pytest.raises(ConfigError, match="corruption='fog'.* holds contrast"):
        copy_of(tmp_path, "fog", 3)
    np.save(tmp_path / "labels.npy", np.zeros(69, np.uint8))
    with pytest.raises(ChecksumError, match="70 images in contrast.npy and 69 labels"):
        copy_of(tmp_path, "contrast", 3)
    (tmp_path / "corrupted.json").write_text("{")
    with pytest.raises(ChecksumError, match="damaged"):
        copy_of(tmp_path, "contrast", 3)


def test_the_record_says_whether_frost_was_photographs(tmp_path, monkeypatch):
    monkeypatch.setenv("DRIFTLINE_DATA", str(tmp_path / "nowhere"))
    write_corrupted(pictures(), tmp_path / "out", ["frost"], [1])
    assert json.loads((tmp_path / "out/corrupted.json").read_text())["notes"] == ["frost: textures of our own"]


def test_the_command_writes_what_python_writes(tmp_path):
    command = [sys.executable, "-m", "driftline", "corrupt", "digits", "out", "--corruption", "fog,contrast"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = dict(cwd=tmp_path, capture_output=True, text=True, env=environment)
    done = subprocess.run([*command, "--severity", "1,4-5", "--seed", "2"], **options)
    assert done.returncode == 0, done.stderr
    assert "wrote 2 corruptions of 359 images to out" in done.stdout
    write_corrupted(driftline.load("digits", split="test"), tmp_path / "mine", ["fog", "contrast"], [1, 4, 5], seed=2)
    for name in ("fog.npy", "contrast.npy", "labels.npy", "corrupted.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "mine" / name).read_bytes()
    again = subprocess.run(command, **options)
    assert again.returncode == 2 and "overwrite" in again.stderr
