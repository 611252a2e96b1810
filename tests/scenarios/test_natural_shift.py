from dataclasses import replace

import pytest
import torch

from driftline import scenarios
from driftline.data import load
from driftline.errors import ScenarioError
from driftline.stream import Dataset
from tests.golden import data_root
from tests.scenarios.toy import toy

SPLITS = {
    "test": toy(20, seed=1),
    "hsf_0": toy(30, seed=2),
    "test_hsf_4": toy(25, seed=3),
    "test_hsf_0": toy(15, seed=4),
}


def data():
    return replace(toy(40), splits=SPLITS)


def sizes(stream):
    return [(segment.name, len(segment)) for segment in stream.segments]


def test_every_split_is_a_domain_and_train_only_when_asked_for():
    assert sizes(scenarios.dataset_shift(data())) == [(name, len(split)) for name, split in SPLITS.items()]
    stream = scenarios.dataset_shift(data(), parts=["hsf_0", "train"], samples=10)
    assert sizes(stream) == [("hsf_0", 10), ("train", 10)] and stream.domain_names == ("hsf_0", "train")
    assert stream.describe()["domains"] == {"hsf_0": 10, "train": 10}


def test_samples_are_those_of_the_part():
    stream = scenarios.dataset_shift(data(), parts=["test", "train"], shuffle=False)
    x, y = stream.read(0, 60)
    assert torch.equal(x, torch.cat([SPLITS["test"].x, toy(40).x]))
    assert torch.equal(y, torch.cat([SPLITS["test"].y, toy(40).y]))


def test_samples_are_drawn_without_replacement_from_all_of_the_part():
    stream = scenarios.dataset_shift(data(), parts="test", samples=19, seed=3)
    assert len(set(stream.segments[0].rows.tolist())) == 19 and 19 in stream.segments[0].rows.tolist()


def test_writers_come_in_the_order_asked_for():
    assert sizes(scenarios.by_writer(data())) == [("hsf_0", 15), ("hsf_4", 25)]
    again = scenarios.by_writer(data(), order=[4, 0, 4], samples=5)
    assert sizes(again) == [("hsf_4", 5), ("hsf_0", 5), ("hsf_4", 5)] and again.domain_names == ("hsf_4", "hsf_0")
    assert sizes(scenarios.by_writer(data(), part="train")) == [("hsf_0", 30)]
    x, _ = scenarios.by_writer(data(), order=[4], shuffle=False).read(0, 25)
    assert torch.equal(x, SPLITS["test_hsf_4"].x)


@pytest.mark.parametrize(
    ("name", "settings", "found"),
    [
        ("dataset_shift", {"parts": ["night"]}, "toy has no part 'night'; it has train, test, hsf_0"),
        ("dataset_shift", {"parts": []}, "name at least one"),
        ("dataset_shift", {"samples": 21}, "samples=21"),
        ("by_writer", {"order": [1]}, r"no series 1 in the test part; it has \[0, 4\]"),
        ("by_writer", {"order": []}, "name at least one"),
        ("by_writer", {"part": "val"}, "part='val'"),
        ("by_writer", {"samples": 16}, "samples=16"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(name, settings, found):
    with pytest.raises(ScenarioError, match=found):
        scenarios.get(name)(data(), **settings)


def test_data_without_parts_is_refused():
    plain = Dataset(torch.rand(4, 2), torch.arange(4) % 2, name="plain")
    with pytest.raises(ScenarioError, match=r"plain has no writers: .*load\(\"qmnist\"\)"):
        scenarios.by_writer(plain)
    with pytest.raises(ScenarioError, match="name at least one"):
        scenarios.dataset_shift(plain)


def means(data):
    """Mean image of each class, flat and in [0, 1]."""
    x = data.x.flatten(1).float() / 255
    return torch.stack([x[data.y == c].mean(0) for c in range(10)])


def accuracy(centres, stream, number):
    x, y = stream.read(stream.starts[number], stream.starts[number + 1])
    return float((torch.cdist(x.flatten(1), centres).argmin(1) == y).float().mean())


def test_pupils_are_harder_for_a_model_of_census_staff():
    """Nearest class mean, so that nothing is drawn."""
    for folder in ("MNIST", "qmnist"):
        if not (data_root() / folder).is_dir():
            pytest.skip(f"real data {folder} not found")
    source = load("qmnist", data_root(), writers=0)
    stream = scenarios.by_writer(load("qmnist", data_root()))
    assert stream.describe()["data"] == [{"name": "qmnist", "split": f"test_hsf_{i}"} for i in (0, 4)]
    staff, pupils = (accuracy(means(source), stream, i) for i in (0, 1))
    assert staff > 0.8 and staff - pupils > 0.03


def test_usps_is_harder_for_a_model_of_mnist():
    for folder in ("MNIST", "usps"):
        if not (data_root() / folder).is_dir():
            pytest.skip(f"real data {folder} not found")
    data = load("mnist-usps", data_root())
    stream = scenarios.dataset_shift(data, parts=["test", "usps_test"], samples=2000)
    mnist, usps = (accuracy(means(data), stream, i) for i in (0, 1))
    assert mnist > 0.8 and mnist - usps > 0.2
