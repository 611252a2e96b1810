from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from driftline.learners.renewers import SelfNormalizedReset
from driftline.learners.renewers.silences import PER_OCTAVE, Silences


def network(units=3):
    """Inputs are the hidden activations, so that a test can choose them."""
    model = nn.Sequential(nn.Linear(units, units), nn.ReLU(), nn.Linear(units, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(units))
        model[0].bias.zero_()
    return model


def step(model, renewer, activations):
    """Follow up a step that changed nothing; return the units that were renewed."""
    before = model[0].weight.clone()
    model(torch.as_tensor(activations, dtype=torch.float64))
    renewer.renew(model, torch.optim.SGD(model.parameters(), lr=0.0))
    return [i for i in range(len(before)) if not torch.equal(model[0].weight[i], before[i])]


def test_a_unit_is_renewed_when_its_silence_reaches_its_threshold():
    model = network()
    renewer = SelfNormalizedReset(model, threshold=4)
    found = [step(model, renewer, [[1, 1, 0]]) for _ in range(3)]
    assert found == [[]] * 3 and renewer.silences.age.tolist() == [0, 0, 3]
    assert step(model, renewer, [[1, 0, 0]]) == [2]
    assert renewer.silences.age.tolist() == [0, 1, 0]


def test_a_batch_counts_as_many_samples_and_one_that_fires_is_enough():
    model = network()
    renewer = SelfNormalizedReset(model)
    step(model, renewer, [[1, 0, 0], [0, 0, 0], [0, 0, 1]])
    assert renewer.silences.age.tolist() == [0, 3, 0] and renewer.samples == 3


def test_in_images_a_channel_fires_in_any_pixel():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        model[0].bias.zero_()
    renewer = SelfNormalizedReset(model)
    image = torch.zeros(3, 1, 2, 2)
    image[1, 0, 1, 0] = 1
    model(image)
    renewer.renew(model, torch.optim.SGD(model.parameters(), lr=0.0))
    assert renewer.silences.age.tolist() == [0, 3]


def test_an_activation_that_is_not_a_number_is_silence():
    model = network()
    with torch.no_grad():
        model[0].bias[0] = torch.nan
    renewer = SelfNormalizedReset(model, threshold=2)
    assert [step(model, renewer, [[1, 1, 1]]) for _ in range(2)] == [[], [0]]


def silences(threshold=1000, lowest=1, highest=10_000):
    return Silences(torch.zeros(1), threshold, lowest, highest)


def with_lengths(found, lengths):
    for length in lengths:
        found.age.fill_(length)
        found.meet(torch.tensor([True]), 1)
    return found


@pytest.mark.parametrize("eta", [0.01, 0.08, 0.3, 0.5])
def test_a_threshold_is_the_percentile_of_past_silences_up_to_the_width_of_a_bin(eta):
    lengths = np.random.default_rng(0).geometric(0.02, size=500)
    found = with_lengths(silences(), lengths)
    found.adjust(eta)
    # The smallest length that a share 1 - eta does not exceed; a bin ends at most this much above it.
    exact = np.sort(lengths)[int(np.ceil((1 - eta) * len(lengths))) - 1]
    assert exact <= int(found.threshold) <= exact * 2 ** (1 / PER_OCTAVE)


def test_a_threshold_that_would_not_fall_is_doubled_within_its_bounds():
    found = with_lengths(silences(threshold=40, highest=100), [90] * 10)
    thresholds = []
    for _ in range(2):
        found.adjust(0.1)
        thresholds.append(int(found.threshold))
        with_lengths(found, [90] * 10)
    assert thresholds == [80, 100]


def test_past_silences_are_forgotten_and_without_any_the_threshold_is_the_lowest():
    found = with_lengths(silences(lowest=7), [90] * 10)
    found.adjust(0.1)
    assert not found.counts.any()
    found.adjust(0.1)
    assert int(found.threshold) == 7


def test_firing_at_every_sample_is_no_silence():
    found = silences()
    for _ in range(5):
        found.meet(torch.tensor([True]), 1)
    assert not found.counts.any()


def test_silences_longer_than_the_highest_threshold_have_a_bin():
    found = with_lengths(silences(highest=100), [100, 101, 10**9])
    assert int(found.counts.sum()) == 3


def test_thresholds_are_set_anew_after_so_many_samples_and_renewals_count_as_silences():
    model = network(1)
    renewer = SelfNormalizedReset(model, eta=0.5, every=10, threshold=4, lowest=2, highest=100)
    for _ in range(4):
        step(model, renewer, [[-1.0]])
    assert int(renewer.silences.counts.sum()) == 1
    model[0].weight.data.fill_(1.0)
    for _ in range(2):
        step(model, renewer, [[-1.0], [-1.0]])
        assert int(renewer.silences.threshold) == 4
    step(model, renewer, [[-1.0], [-1.0], [-1.0]])
    # The two silences of 4, at which the unit was renewed: at the percentile, so that the threshold doubles.
    assert int(renewer.silences.threshold) == 8 and not renewer.silences.counts.any()
