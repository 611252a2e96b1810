"""Tabular streams by name, each in its own order of arrival, which is where its drift lies."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from driftline.data.arrays import build, to_tensor
from driftline.data.files import check_content, find, read_content
from driftline.stream.dataset import Dataset


def image_segments(root: Path) -> Dataset:
    """Segments of outdoor images, 2 310 x 18 features, 7 classes; comes with river, needs no files.

    UCI "Statlog (Image Segmentation)", in river's order.
    """
    from river.datasets import ImageSegments

    return _river(ImageSegments(), "image-segments")  # type: ignore[no-untyped-call]


def phishing(root: Path) -> Dataset:
    """Phishing and honest web pages, 1 250 x 9 features, 2 classes; comes with river, needs no files.

    UCI "Website Phishing", in river's order; the classes are river's labels, False and True (phishing).
    """
    from river.datasets import Phishing

    return _river(Phishing(), "phishing")


def trump_approval(root: Path) -> Dataset:
    """A president's approval day by day from five polls, 1 001 x 6 features, regression; comes with river.

    FiveThirtyEight, 2017 to 2019, in river's order. y is the share of people, 0.36 to 0.45, that their model gives.
    """
    from river.datasets import TrumpApproval

    features, percent = zip(*TrumpApproval())  # type: ignore[no-untyped-call]
    x = torch.tensor([list(row.values()) for row in features], dtype=torch.float32)
    return build("trump-approval", {"train": (x, torch.tensor(percent, dtype=torch.float32) / 100)})


def _river(rows: Iterable[tuple[dict[str, float], str | bool]], name: str) -> Dataset:
    features, labels = zip(*rows)
    classes = sorted(set(labels))
    x = torch.tensor([list(row.values()) for row in features], dtype=torch.float32)
    y = torch.tensor([classes.index(label) for label in labels])
    return build(name, {"train": (x, y)}, [str(label) for label in classes])


def elec2(root: Path) -> Dataset:
    """Electricity price up or down, New South Wales, 45 312 x 6 features; files in streams/elec2.

    Half-hourly, 1996 to 1998. Of the eight columns, date and nswprice are left out (the label is derived from
    the price), as Gama et al. 2004 do. Harries 1999.
    """
    files = ("elec2_data.dat", "elec2_label.dat")
    return _table(root, "elec2", "elec2", files, ("UP", "DOWN"), columns=(1, 2, 4, 5, 6, 7))


def weather(root: Path) -> Dataset:
    """Rain or none at Bellevue, Nebraska, day by day, 18 159 x 8 features; files in streams/weather-noaa.

    1949 to 1999. Elwell and Polikar 2011.
    """
    files = ("NEweather_data.csv", "NEweather_class.csv")
    return _table(root, "weather", "weather-noaa", files, ("no rain", "rain"), delimiter=",")


def outdoor(root: Path) -> Dataset:
    """Objects filmed in a garden under changing light, 4 000 x 21 features, 40 classes; files in streams/outdoor.

    Losing, Hammer and Wersing 2015.
    """
    files = ("outdoorStream.data", "outdoorStream.labels")
    return _table(root, "outdoor", "outdoor", files, [str(i) for i in range(40)])


def keystroke(root: Path) -> Dataset:
    """Four people typing one password, their rhythm drifting, 1 600 x 10 features; files in streams/keystroke.

    Souza, Silva, Gama and Batista 2015, from the CMU keystroke data.
    """
    return _table(root, "keystroke", "keystroke", ("keystroke.data", "keystroke.labels"), ("0", "1", "2", "3"))


def _table(
    root: Path,
    name: str,
    folder: str,
    files: tuple[str, str],
    classes: Sequence[str],
    columns: Sequence[int] | None = None,
    delimiter: str | None = None,
) -> Dataset:
    folder = f"streams/{folder}"
    contents = []
    for file, path in zip(files, find(root, folder, files, name)):
        contents.append(io.BytesIO(read_content(path)))
        check_content(contents[-1].getvalue(), f"{folder}/{file}", path)
    x = np.loadtxt(contents[0], np.float32, delimiter=delimiter, usecols=columns)
    y = np.loadtxt(contents[1], np.int64)
    return build(name, {"train": (to_tensor(x, f"{name}.x"), to_tensor(y, f"{name}.y"))}, classes)
