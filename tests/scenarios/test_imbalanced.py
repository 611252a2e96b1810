import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from driftline.errors import ScenarioError
from driftline.scenarios import imbalanced
from driftline.stream import Dataset
from tests.golden import golden
from tests.scenarios.toy import rows, toy


def run_lengths(labels):
    cuts = np.flatnonzero(np.diff(labels)) + 1
    return np.diff(np.concatenate([[0], cuts, [len(labels)]]))


def statistics(labels):
    runs = run_lengths(labels)
    entropies = []
    for start in range(0, len(labels), 64):
        share = np.bincount(labels[start : start + 64]) / len(labels[start : start + 64])
        entropies.append(-(share[share > 0] * np.log(share[share > 0])).sum())
    return [runs.mean(), runs.max(), (labels[1:] == labels[:-1]).mean(), np.mean(entropies)]


def test_run_lengths_and_batch_entropies_are_those_of_the_published_dirichlet_order():
    arrays, config = golden("scenarios", "order_statistics_c10_n2000")
    published, error = arrays["stat_mean"][config["rows"].index("note beta .1")], arrays["stat_se"][1]
    y = torch.as_tensor(arrays["labels"])
    data = Dataset(torch.zeros(len(y), 1), y)
    ours = np.array([statistics(imbalanced(data, seed=s).labels().numpy()) for s in range(100)])
    # Two means of 100 draws each: five deviations of their difference.
    assert np.all(np.abs(ours.mean(0) - published[:4]) < 5 * np.sqrt(2) * error[:4])


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    chunks=st.integers(1, 12),
    concentration=st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_a_dirichlet_order_plays_every_sample_once_with_one_run_per_class_and_chunk(sizes, chunks, concentration, seed):
    chunks = min(chunks, sum(sizes))
    stream = imbalanced(toy(sizes=sizes), seed=seed, concentration=concentration, chunks=chunks)
    assert sorted(rows(stream)) == list(range(sum(sizes)))
    assert len(stream.segments) <= chunks
    for segment in stream.segments:
        labels = segment.labels().numpy()
        assert len(run_lengths(labels)) == len(set(labels.tolist()))


def test_concentration_goes_from_sorted_to_mixed():
    data = toy(samples=1000)

    def runs(concentration):
        return len(run_lengths(imbalanced(data, seed=1, concentration=concentration).labels().numpy()))

    assert runs(1e-4) <= 10 < runs(1e4) == 25


def test_class_order_within_chunks_is_random():
    stream = imbalanced(toy(samples=1000), concentration=1e4)
    orders = {tuple(dict.fromkeys(s.labels().tolist())) for s in stream.segments}
    assert len(orders) > 1


def test_long_tailed_sizes_follow_the_exponential_profile():
    stream = imbalanced(toy(samples=500), kind="long_tailed", imbalance=100, order=[4, 3, 2, 1, 0])
    assert stream.labels().bincount().tolist() == [1, 3, 10, 31, 100]
    assert len(set(rows(stream))) == len(stream)


def test_the_profile_holds_when_classes_differ_in_size():
    stream = imbalanced(toy(sizes=[50, 30, 30]), kind="long_tailed", imbalance=4, order="sorted")
    assert stream.labels().bincount().tolist() == [50, 25, 12]
    stream = imbalanced(toy(sizes=[50, 10, 30]), kind="long_tailed", imbalance=4, order="sorted")
    assert stream.labels().bincount().tolist() == [20, 10, 5]


def test_imbalance_of_one_keeps_a_balanced_dataset_whole():
    assert sorted(rows(imbalanced(toy(), kind="long_tailed", imbalance=1))) == list(range(60))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "zipf"}, r"kind='zipf': must be one of 'dirichlet', 'long_tailed'"),
        ({"concentration": 0}, r"concentration=0: must be a number above 0"),
        ({"concentration": float("inf")}, r"concentration=inf"),
        ({"chunks": 0}, r"chunks=0: must be a whole number from 1 to 60"),
        ({"chunks": 61}, r"toy has 60 samples"),
        ({"kind": "long_tailed", "imbalance": 0.5}, r"imbalance=0.5: must be a number of at least 1"),
        ({"kind": "long_tailed", "order": "size"}, r"order='size'"),
    ],
)
def test_impossible_parameters_are_named_with_their_range(given, message):
    with pytest.raises(ScenarioError, match=message):
        imbalanced(toy(), **given)
