import pytest
import torch

import driftline
from driftline.errors import ScenarioError
from driftline.scenarios import correlate, shift_labels
from driftline.scenarios.correlated import _dirichlet, _divide
from driftline.stream import Dataset, Segment


def segment(samples=2000, classes=10):
    y = torch.arange(samples) % classes
    return Segment.of(Dataset(torch.rand(samples, 2), y, classes=[str(i) for i in range(classes)]))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def runs(labels):
    return 1 + int((labels[1:] != labels[:-1]).sum())


@pytest.mark.parametrize("rule", ["note", "rotta"])
@pytest.mark.parametrize("concentration", [1e-4, 0.01, 0.1, 1.0, 100.0])
def test_every_sample_is_played_once(rule, concentration):
    smallest = 0 if concentration < 0.01 else None
    found = correlate(segment(), rng(), rule, concentration, smallest)
    assert torch.equal(found.rows.sort().values, torch.arange(2000))


@pytest.mark.parametrize("rule", ["note", "rotta"])
def test_a_slot_plays_each_class_in_one_run(rule):
    """Ten slots of ten classes are at most a hundred runs, where a shuffle has about 1800."""
    assert runs(correlate(segment(), rng(), rule).labels()) <= 100
    assert runs(segment().shuffle(rng()).labels()) > 1500


def test_a_small_concentration_makes_longer_runs():
    lengths = [runs(correlate(segment(), rng(), "rotta", c).labels()) for c in (0.001, 0.1, 10.0)]
    assert lengths == sorted(lengths) and lengths[0] <= 15


def test_shares_are_dirichlet():
    """Over many draws a class's share of a slot has mean 1/10 and variance (1/10)(9/10)/(10a + 1)."""
    for a in (0.1, 1.0):
        shares = torch.stack([_dirichlet(10, a, rng(seed)) for seed in range(4000)])
        torch.testing.assert_close(shares.sum(1), torch.ones(4000, dtype=torch.float64))
        assert abs(float(shares[:, 0].mean()) - 0.1) < 0.015
        assert abs(float(shares[:, 0].var()) / (0.09 / (10 * a + 1)) - 1) < 0.15


def test_a_tiny_concentration_gives_one_slot_everything():
    share = _dirichlet(5, 1e-6, rng())
    assert torch.isfinite(share).all() and float(share.max()) > 0.999


def test_notes_slots_are_balanced():
    """A slot is full at a tenth of all samples, but for the class that fills it; the smallest holds ten."""
    labels = segment().labels()
    for seed in range(20):
        slots = _divide(labels, list(range(10)), 10, rng(seed), 0.1, balanced=True)
        assert max(sum(map(len, slot)) for slot in slots) <= 200 + 200


def test_the_seed_decides():
    first, again, other = (correlate(segment(), rng(s)).rows for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_rare_classes_are_played_too():
    y = torch.cat([torch.zeros(500), torch.ones(3)]).long()
    found = correlate(Segment.of(Dataset(torch.rand(503, 2), y)), rng())
    assert int((found.labels() == 1).sum()) == 3


@pytest.mark.parametrize(
    "settings", [{"rule": "note2"}, {"concentration": 0.0}, {"smallest": -1}, {"smallest": 500, "concentration": 0.01}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ScenarioError, match=next(iter(settings))):
        correlate(segment(), rng(), **settings)


def test_data_without_classes_is_refused():
    with pytest.raises(ScenarioError):
        correlate(Segment.of(driftline.Dataset(torch.rand(10, 2), torch.rand(10))), rng())


def test_each_class_dominates_a_phase_of_even_length():
    found = shift_labels(segment(), rng(), ratio=500)
    phases = found.labels().reshape(10, 200)
    assert sorted(phases.mode(1).values.tolist()) == list(range(10))
    # Each of 2000 draws is of the phase's class with probability 500/509.
    share = float((phases == phases.mode(1, keepdim=True).values).float().mean())
    assert abs(share - 500 / 509) < 4 * (500 / 509 * 9 / 509 / 2000) ** 0.5


def test_a_ratio_of_one_is_a_shuffle_and_an_infinite_one_a_class_alone():
    assert runs(shift_labels(segment(), rng(), ratio=1).labels()) > 1500
    assert runs(shift_labels(segment(), rng(), ratio=float("inf")).labels()) == 10


@pytest.mark.parametrize("ratio", [0.5, float("nan"), True, "high"])
def test_a_ratio_below_one_is_refused(ratio):
    with pytest.raises(ScenarioError, match="ratio"):
        shift_labels(segment(), rng(), ratio)
